"""One image file → RGB or grey pixels of eight bits, whatever it holds; damaged and oversized ones are told apart."""

import io
import struct
import warnings
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

MODES = {1: "L", 3: "RGB"}
"""Pillow's name of pixels with so many channels."""


def read_picture(source: Path | bytes, name: str, channels: int = 3) -> "Image":
    """The pixels of an image file, or of its content, converted as torchvision's loader does: `convert("RGB")`.

    So palettes, CMYK and transparency become RGB, of an animation the first picture counts, and EXIF's orientation is
    not applied. 16-bit grey keeps its high byte, where Pillow alone would cut at 255. Raises Unreadable, opening with
    `name`, where the file is empty, no image, truncated, of 32-bit pixels without a known range, or announces more
    pixels than Pillow's limit against decompression bombs (twice MAX_IMAGE_PIXELS, 179 million).
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
                return _eight_bits(opened, images).convert(MODES[channels])
    except images.DecompressionBombError as error:
        raise Unreadable(f"{name} (a decompression bomb: {_first_line(error)})") from error
    except images.UnidentifiedImageError as error:
        empty = not (source if isinstance(source, bytes) else Path(source).stat().st_size)
        raise Unreadable(f"{name} ({'an empty file' if empty else 'no image, or a damaged one'})") from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, MemoryError, struct.error) as error:
        raise Unreadable(f"{name} ({_first_line(error)})") from error


def _eight_bits(image: "Image", images: Any) -> "Image":
    if image.mode.startswith("I;16"):
        import numpy as np

        return images.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise ValueError("32-bit pixels, whose range is not known; convert it to 8 or 16 bits")
    return image


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
