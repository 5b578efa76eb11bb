"""Decode one image file, and resize, crop and normalise it with the rounding of torchvision for Pillow images."""

import io
import math
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.budget import Budget
from ckpt_probe.data.arguments import as_list
from ckpt_probe.data.dataset import Unreadable
from ckpt_probe.errors import DataError, UsageError
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

LARGEST = 16_384
"""Maximum side of a prepared image in pixels."""

PILLOWS = {0: "nearest", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming", 1: "lanczos"}
"""Pillow's interpolations, by their numbers."""


def read_picture(
    source: Path | bytes, name: str, channels: int = 3, *, upright: bool = False, mode: str | None = None
) -> "Image":
    """Read an image and convert it like torchvision: `convert("RGB")`.

    Palettes, CMYK and transparency become RGB; an animation contributes its first frame. 16-bit grey keeps its high
    byte, where Pillow alone would clip at 255, unless `mode` converts it before.

    Args:
        source: A file, or its content.
        name: Name of the image in messages.
        channels: 3 for RGB, 1 for grey.
        upright: Whether the image is rotated to its EXIF orientation.
        mode: Pillow mode to which it is converted before; None for no conversion.

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
                # The decoded image, of at most four channels, and the returned one are in memory.
                Budget(name, size).spend((4 + channels) * math.prod(opened.size))
                return _eight_bits(_decoded(opened, upright, mode), images).convert(MODES[channels])
    except (images.DecompressionBombError, DataError) as error:
        raise Unreadable(f"{name} (a decompression bomb: {_first_line(error)})") from error
    except images.UnidentifiedImageError as error:
        empty = not (source if isinstance(source, bytes) else Path(source).stat().st_size)
        raise Unreadable(f"{name} ({'an empty file' if empty else 'no image, or a damaged one'})") from error
    except (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, MemoryError, struct.error) as error:
        raise Unreadable(f"{name} ({_first_line(error)})") from error


def _decoded(image: "Image", upright: bool, mode: str | None) -> "Image":
    """Decode an image in the order of `datasets.Image`: rotate it to its EXIF orientation, then convert it."""
    if upright:
        # Some formats know their orientation only when they are loaded.
        image.load()
        if image.getexif().get(ORIENTATION) is not None:
            image = require_extra("PIL.ImageOps", "images").exif_transpose(image)
    return image if mode in (None, image.mode) else image.convert(mode)


def _eight_bits(image: "Image", images: Any) -> "Image":
    if image.mode.startswith("I;16"):
        return images.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise ValueError("32-bit pixels, whose range is not known; convert it to 8 or 16 bits")
    return image


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True)
class Steps:
    """Resize, crop, divide by 255, subtract the mean, divide by the standard deviation; None skips a step.

    Args:
        resize: Shorter side in pixels, or (height, width).
        crop: Side of the central square in pixels, or (height, width).
        mean: One number, or one per channel.
        std: One number, or one per channel.
        interpolation: One of Pillow's interpolations.
        channels: 3 for RGB, 1 for grey.

    Raises:
        UsageError: For the first field with an invalid value.
    """

    resize: int | Sequence[int] | None = None
    crop: int | Sequence[int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    interpolation: str = "bilinear"
    channels: int = 3

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            sides = as_list(getattr(self, name))
            if len(sides) > 2 or not all(type(side) is int and 0 < side <= LARGEST for side in sides):
                raise UsageError(
                    f"{name}: expected pixels such as 224, or height and width such as [224, 320], found "
                    f"{getattr(self, name)!r}"
                )
        if self.channels not in MODES:
            raise UsageError(f"channels: expected 3 or 1, found {self.channels!r}")
        for name in ("mean", "std"):
            values = as_list(getattr(self, name))
            if len(values) not in (0, 1, self.channels) or not all(type(value) in (int, float) for value in values):
                raise UsageError(f"{name}: expected one number a channel, such as [0.5, 0.5, 0.5], found {values!r}")
        if 0 in as_list(self.std):
            raise UsageError("std: expected numbers other than 0")
        if self.interpolation not in PILLOWS.values():
            raise UsageError(f"interpolation: one of {', '.join(PILLOWS.values())}, found {self.interpolation!r}")

    def __call__(self, image: "Image") -> Tensor:
        """Return the image as a tensor, shape (channels, height, width), float32."""
        if self.resize is not None:
            image = _resized(image, self.resize, self.interpolation)
        if self.crop is not None:
            image = _cropped(image, self.crop)
        pixels = torch.from_numpy(np.array(image))
        pixels = pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
        pixels = pixels.to(torch.float32).div_(255)
        if self.mean is not None:
            pixels -= _by_channel(self.mean)
        return pixels if self.std is None else pixels.div_(_by_channel(self.std))


def _resized(image: "Image", size: int | Sequence[int], interpolation: str) -> "Image":
    width, height = image.size
    sides = as_list(size)
    if len(sides) == 1:
        # torchvision rounds the longer side down.
        short, long = sides[0], int(sides[0] * max(width, height) / min(width, height))
        sides = [long, short] if height > width else [short, long]
    number = next(key for key, name in PILLOWS.items() if name == interpolation)
    return image.resize((sides[1], sides[0]), number)


def _cropped(image: "Image", size: int | Sequence[int]) -> "Image":
    """Return the centre of an image, with black beyond its edges."""
    sides = as_list(size)
    height, width = sides if len(sides) == 2 else (sides[0], sides[0])
    left, top = (_middle(length, wanted) for length, wanted in zip(image.size, (width, height), strict=True))
    return image.crop((left, top, left + width, top + height))


def _middle(length: int, wanted: int) -> int:
    # torchvision pads before it crops, which rounds differently.
    return round((length - wanted) / 2) if length >= wanted else -((wanted - length) // 2)


def _by_channel(values: Any) -> Tensor:
    return torch.tensor([float(value) for value in as_list(values)]).view(-1, 1, 1)
