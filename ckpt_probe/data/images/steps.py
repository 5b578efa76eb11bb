"""Resize, crop and normalise an image, with the rounding of torchvision for Pillow images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.data.arguments import as_list
from ckpt_probe.data.images.pictures import MODES
from ckpt_probe.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST = 16_384
"""Maximum side of a prepared image in pixels."""

PILLOWS = {0: "nearest", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming", 1: "lanczos"}
"""Pillow's interpolations, by their numbers."""


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
    """

    resize: int | Sequence[int] | None = None
    crop: int | Sequence[int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    interpolation: str = "bilinear"
    channels: int = 3

    def __call__(self, image: "Image") -> Tensor:
        """Return the image as a tensor, shape (channels, height, width), float32."""
        if self.resize is not None:
            image = _resized(image, self.resize, self.interpolation)
        if self.crop is not None:
            image = _cropped(image, self.crop)
        pixels = _pixels(image).to(torch.float32).div_(255)
        if self.mean is not None:
            pixels -= _by_channel(self.mean)
        return pixels if self.std is None else pixels.div_(_by_channel(self.std))


def require_sensible(steps: Steps) -> None:
    """Raise UsageError for the first field with an invalid value."""
    for name in ("resize", "crop"):
        sides = as_list(getattr(steps, name))
        if len(sides) > 2 or not all(type(side) is int and 0 < side <= LARGEST for side in sides):
            raise UsageError(
                f"{name}: expected pixels such as 224, or height and width such as [224, 320], found "
                f"{getattr(steps, name)!r}"
            )
    if steps.channels not in MODES:
        raise UsageError(f"channels: expected 3 or 1, found {steps.channels!r}")
    for name in ("mean", "std"):
        values = as_list(getattr(steps, name))
        if len(values) not in (0, 1, steps.channels) or not all(type(value) in (int, float) for value in values):
            raise UsageError(f"{name}: expected one number a channel, such as [0.5, 0.5, 0.5], found {values!r}")
    if 0 in as_list(steps.std):
        raise UsageError("std: expected numbers other than 0")
    if steps.interpolation not in PILLOWS.values():
        raise UsageError(f"interpolation: one of {', '.join(PILLOWS.values())}, found {steps.interpolation!r}")


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


def _pixels(image: "Image") -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _by_channel(values: Any) -> Tensor:
    return torch.tensor([float(value) for value in as_list(values)]).view(-1, 1, 1)
