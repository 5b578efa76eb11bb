"""Images as another camera would see them: inverted, turned, noisy, blurred, or of another contrast."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ckpt_probe.data.samples import ArraySplit
from ckpt_probe.errors import DataError, UsageError

SHIFTS: dict[str, tuple[float, float] | None] = {
    "invert": None,
    "rotate": (-360, 360),
    "noise": (0, 10),
    "blur": (0, 100),
    "contrast": (0, 100),
}
"""Every shift, and the range of its number."""

CHUNK = 2048
"""Images shifted at a time, so that uint8 images are never all held as floats."""


@dataclass(frozen=True)
class Shift:
    """One change: "rotate:30" is kind rotate, amount 30."""

    kind: str
    amount: float = 0.0


def parsed(text: str) -> tuple[Shift, ...]:
    """The shifts that "invert+noise:0.2" spells, in order.

    Raises UsageError for an unknown one, or a number that is missing or out of its range.
    """
    if not isinstance(text, str):
        raise UsageError(f"shift: expected a string such as invert+noise:0.2, found {text!r}")
    return tuple(_parsed(part) for part in text.split("+"))


def shifted(splits: Mapping[str, ArraySplit], shifts: tuple[Shift, ...], seed: int) -> dict[str, ArraySplit]:
    """Images (N, …, H, W) in [0, 1] after the shifts, in every split; uint8 images stay uint8, others are float32.

    invert: 1 − x. rotate: degrees, by linear interpolation, black outside. noise: Gaussian of that standard deviation,
    drawn from the seed and the split's name. blur: Gaussian of that standard deviation in pixels. contrast: each
    image's distance from its own mean, times that. Values are clipped to [0, 1] after each.
    Raises DataError where inputs are no such images.
    """
    return {name: ArraySplit(_images(name, split, shifts, seed), split.labels) for name, split in splits.items()}


def _parsed(part: str) -> Shift:
    kind, colon, number = part.partition(":")
    if kind not in SHIFTS:
        raise UsageError(f"shift: {part!r}: unknown shift; there are: {', '.join(SHIFTS)}, joined by +")
    span = SHIFTS[kind]
    if span is None:
        if colon:
            raise UsageError(f"shift: {part!r}: {kind} takes no number")
        return Shift(kind)
    try:
        amount = float(number)
    except ValueError:
        amount = math.nan
    if not span[0] <= amount <= span[1]:
        raise UsageError(f"shift: {part!r}: {kind} takes a number from {span[0]} to {span[1]}, as in {kind}:0.5")
    return Shift(kind, amount)


def _images(name: str, split: ArraySplit, shifts: tuple[Shift, ...], seed: int) -> torch.Tensor:
    _require_images(name, split.inputs)
    whole = split.inputs.dtype == torch.uint8
    result = torch.empty(split.inputs.shape, dtype=torch.uint8 if whole else torch.float32)
    generators = [np.random.default_rng([seed, number, *name.encode()]) for number in range(len(shifts))]
    for start in range(0, len(split), CHUNK):
        part = split.batch(slice(start, start + CHUNK))[0].numpy()
        for shift, generator in zip(shifts, generators, strict=True):
            part = np.clip(_one(part, shift, generator), 0, 1, dtype=np.float32)
        result[start : start + CHUNK] = torch.from_numpy(np.rint(part * 255) if whole else part)
    return result


def _one(images: np.ndarray, shift: Shift, generator: np.random.Generator) -> np.ndarray:
    from scipy import ndimage

    match shift.kind:
        case "invert":
            return 1 - images
        case "rotate":
            return ndimage.rotate(images, shift.amount, axes=(-2, -1), order=1, reshape=False)
        case "noise":
            return images + np.float32(shift.amount) * generator.standard_normal(images.shape, dtype=np.float32)
        case "blur":
            return ndimage.gaussian_filter(images, shift.amount, axes=(-2, -1))
        case _:
            mean = images.mean(axis=tuple(range(1, images.ndim)), keepdims=True)
            return mean + np.float32(shift.amount) * (images - mean)


def _require_images(name: str, inputs: torch.Tensor) -> None:
    if inputs.ndim < 3:
        raise DataError(f"shift: inputs of split {name} are no images: shape {tuple(inputs.shape)}, not (N, …, H, W)")
    if inputs.dtype == torch.uint8:
        return
    if not inputs.is_floating_point():
        raise DataError(f"shift: images of split {name} are {inputs.dtype}, expected uint8 or floats in [0, 1]")
    lowest, highest = (float(value) for value in torch.aminmax(inputs))
    if not 0 <= lowest <= highest <= 1:
        raise DataError(f"shift: images of split {name} have values from {lowest:g} to {highest:g}, expected [0, 1]")
