"""One image file → RGB or grey pixels of eight bits, whatever it holds; damaged and oversized ones are told apart."""

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.data.dataset import Unreadable
from ckpt_probe.plugins import require_extra

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
"""Names of files that torchvision's ImageFolder takes for images."""

FORMATS = ("JPEG", "PNG", "GIF", "PPM", "BMP", "TIFF", "WEBP")
"""What a file may hold, whatever its name says. PostScript, for one, is not among them: reading it starts a program."""

ORIENTATION = 0x0112
"""EXIF's tag of how an image is to be turned."""

MODES = {1: "L", 3: "RGB"}
"""Pillow's name of pixels with so many channels."""


@dataclass(frozen=True)
class Decoding:
    """Set what a library does to an image before a training sees it; the default is torchvision's loader.

    upright: whether the image is turned as EXIF's orientation says. mode: what it is converted to first, by Pillow.
    """

    upright: bool = False
    mode: str | None = None


TORCHVISIONS = Decoding()


def read_picture(source: Path | bytes, name: str, channels: int = 3, decoding: Decoding = TORCHVISIONS) -> "Image":
    """Read the pixels of an image file, or of its content, and convert them as torchvision does: `convert("RGB")`.

    So palettes, CMYK and transparency become RGB, and of an animation the first picture counts. 16-bit grey keeps its
    high byte, where Pillow alone would cut at 255, unless `decoding` converts it before.

    Raises:
        Unreadable: Opening with `name`, if the file is empty, no image, truncated, of 32-bit pixels without a known
            range, or announces more pixels than Pillow's limit against decompression bombs (twice MAX_IMAGE_PIXELS,
            179 million).
    """
    images: Any = require_extra("PIL.Image", "images")
    if not isinstance(source, bytes) and Path(source).exists() and not Path(source).is_file():
        raise Unreadable(f"{name} (no file)")
    try:
        with warnings.catch_warnings():
            # Large, odd and slightly broken files that can be read are no news.
            warnings.simplefilter("ignore")
            opened = images.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
            with opened:
                return _eight_bits(_decoded(opened, decoding), images).convert(MODES[channels])
    except images.DecompressionBombError as error:
        raise Unreadable(f"{name} (a decompression bomb: {_first_line(error)})") from error
    except images.UnidentifiedImageError as error:
        empty = not (source if isinstance(source, bytes) else Path(source).stat().st_size)
        raise Unreadable(f"{name} ({'an empty file' if empty else 'no image, or a damaged one'})") from error
    except (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, MemoryError, struct.error) as error:
        raise Unreadable(f"{name} ({_first_line(error)})") from error


def _decoded(image: "Image", decoding: Decoding) -> "Image":
    """Return an image as `datasets.Image` decodes it, in its order: upright by EXIF's orientation, then converted."""
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
