"""Decoding of one image file into 8-bit RGB or grey pixels; damaged and oversized files raise `Unreadable`."""

import io
import math
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.budget import Budget
from ckpt_probe.data.dataset import Unreadable
from ckpt_probe.errors import DataError
from ckpt_probe.plugins import require_extra

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
"""Suffixes of files that torchvision's ImageFolder treats as images."""

FORMATS = ("JPEG", "PNG", "GIF", "PPM", "BMP", "TIFF", "WEBP")
"""Accepted formats, whatever the suffix of the file. PostScript is excluded: reading it starts a program."""

ORIENTATION = 0x0112
"""EXIF tag of an image's orientation."""

MODES = {1: "L", 3: "RGB"}
"""Pillow's pixel modes, by number of channels."""


@dataclass(frozen=True)
class Decoding:
    """How a library decodes an image; the default is torchvision's loader.

    Args:
        upright: Whether the image is rotated to its EXIF orientation.
        mode: Pillow mode to which it is converted first; None for no conversion.
    """

    upright: bool = False
    mode: str | None = None


TORCHVISIONS = Decoding()


def read_picture(source: Path | bytes, name: str, channels: int = 3, decoding: Decoding = TORCHVISIONS) -> "Image":
    """Read an image and convert it like torchvision: `convert("RGB")`.

    Palettes, CMYK and transparency become RGB; an animation contributes its first frame. 16-bit grey keeps its high
    byte, where Pillow alone would clip at 255, unless `decoding` converts it before.

    Args:
        source: A file, or its content.
        name: Name of the image in messages.
        channels: 3 for RGB, 1 for grey.
        decoding: How the image is decoded before the conversion.

    Raises:
        Unreadable: If the file is empty, truncated or no image, has 32-bit pixels without a known range, or claims
            more pixels than its budget allows.
    """
    images: Any = require_extra("PIL.Image", "images")
    if not isinstance(source, bytes) and Path(source).exists() and not Path(source).is_file():
        raise Unreadable(f"{name} (no file)")
    try:
        with warnings.catch_warnings():
            # Warnings about large, odd and slightly broken files that can be read.
            warnings.simplefilter("ignore")
            opened = images.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
            with opened:
                size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
                # As it is stored, with four channels at most, and as it is returned.
                Budget(name, size).spend((4 + channels) * math.prod(opened.size))
                return _eight_bits(_decoded(opened, decoding), images).convert(MODES[channels])
    except (images.DecompressionBombError, DataError) as error:
        raise Unreadable(f"{name} (a decompression bomb: {_first_line(error)})") from error
    except images.UnidentifiedImageError as error:
        empty = not (source if isinstance(source, bytes) else Path(source).stat().st_size)
        raise Unreadable(f"{name} ({'an empty file' if empty else 'no image, or a damaged one'})") from error
    except (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, MemoryError, struct.error) as error:
        raise Unreadable(f"{name} ({_first_line(error)})") from error


def _decoded(image: "Image", decoding: Decoding) -> "Image":
    """Decode an image in the order of `datasets.Image`: rotate it to its EXIF orientation, then convert it."""
    if decoding.upright:
        # Some formats know their orientation only when they are loaded.
        image.load()
        if image.getexif().get(ORIENTATION) is not None:
            image = require_extra("PIL.ImageOps", "images").exif_transpose(image)
    return image if decoding.mode in (None, image.mode) else image.convert(decoding.mode)


def _eight_bits(image: "Image", images: Any) -> "Image":
    if image.mode.startswith("I;16"):
        import numpy as np

        return images.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise ValueError("32-bit pixels, whose range is not known; convert it to 8 or 16 bits")
    return image


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
