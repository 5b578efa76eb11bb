"""Data of the CMA study: images that are inverted, rotated, noisy, blurred or of another contrast."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ckpt_probe.data import ArraySplit, LabelledData, load_data
from ckpt_probe.errors import DataError, UsageError

RANGES = {"rotate": (-360, 360), "noise": (0, 10), "blur": (0, 100), "contrast": (0, 100)}
"""Shifts that take a number, and its range."""

CHUNK = 2048
"""Number of images that are converted to floats at a time."""

Shift = tuple[str, float]
"""A kind of shift and its number, 0 for `invert`."""


def shifted(source: str, shift: str, subset_seed: int = 0, **arguments: Any) -> LabelledData:
    """Return the images of another source after one or more shifts, clipped to [0, 1] after each.

    Args:
        source: Name of the data, such as `idx:DIR`; images (N, …, H, W), either uint8 or floats in [0, 1].
        shift: Shifts joined by "+": "invert" (1 − x); "rotate:30", in degrees, by linear interpolation, with 0 outside;
            "noise:0.3", Gaussian with this standard deviation; "blur:1.5", Gaussian with this standard deviation in
            pixels; "contrast:0.5", a factor of the difference from the mean of each image.
        subset_seed: Seed of the choice of samples and of the noise.
        **arguments: Further arguments of the source; its choice of samples comes before the shifts.

    Returns:
        The data with all splits shifted; uint8 images stay uint8, others are float32.

    Raises:
        UsageError: For an unknown shift, or a number that is missing or out of range.
        DataError: If the inputs are not such images.
    """
    if not isinstance(shift, str):
        raise UsageError(f"shift: expected a string such as invert+noise:0.2, found {shift!r}")
    shifts = [_parsed(part) for part in shift.split("+")]
    data = load_data(source, {**arguments, "subset_seed": subset_seed})
    splits = {}
    for name, split in data.splits.items():
        if not isinstance(split, ArraySplit):
            raise DataError(f"shift: split {name} is read from a file; expected arrays in memory")
        splits[name] = ArraySplit(_shifted_images(name, split, shifts, subset_seed), split.labels)
    return replace(data, name="", splits=splits)


def _parsed(part: str) -> Shift:
    kind, colon, text = part.partition(":")
    if kind == "invert":
        if colon:
            raise UsageError(f"shift: {part!r}: invert takes no number")
        return kind, 0.0
    if kind not in RANGES:
        raise UsageError(f"shift: {part!r}: unknown shift; there are: invert, {', '.join(RANGES)}, joined by +")
    low, high = RANGES[kind]
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise UsageError(f"shift: {part!r}: {kind} takes a number from {low} to {high}, as in {kind}:0.5")
    return kind, number


def _shifted_images(name: str, split: ArraySplit, shifts: list[Shift], seed: int) -> Tensor:
    _require_images(name, split.inputs)
    is_bytes = split.inputs.dtype == torch.uint8
    result = torch.empty(split.inputs.shape, dtype=torch.uint8 if is_bytes else torch.float32)
    generators = [np.random.default_rng([seed, number, *name.encode()]) for number in range(len(shifts))]
    for start in range(0, len(split), CHUNK):
        images = split.batch(slice(start, start + CHUNK))[0].numpy()
        for shift, generator in zip(shifts, generators, strict=True):
            images = np.clip(_apply(shift, images, generator), 0, 1, dtype=np.float32)
        result[start : start + CHUNK] = torch.from_numpy(np.rint(images * 255) if is_bytes else images)
    return result


def _apply(shift: Shift, images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    kind, number = shift
    if kind == "invert":
        return 1 - images
    if kind == "rotate":
        return ndimage.rotate(images, number, axes=(-2, -1), order=1, reshape=False)
    if kind == "noise":
        return images + np.float32(number) * generator.standard_normal(images.shape, dtype=np.float32)
    if kind == "blur":
        return ndimage.gaussian_filter(images, number, axes=(-2, -1))
    mean = images.mean(axis=tuple(range(1, images.ndim)), keepdims=True)
    return mean + np.float32(number) * (images - mean)


def _require_images(name: str, inputs: Tensor) -> None:
    if inputs.ndim < 3:
        raise DataError(f"shift: inputs of split {name} are no images: shape {tuple(inputs.shape)}, not (N, …, H, W)")
    if inputs.dtype == torch.uint8:
        return
    if not inputs.is_floating_point():
        raise DataError(f"shift: images of split {name} are {inputs.dtype}, expected uint8 or floats in [0, 1]")
    lowest, highest = (float(value) for value in torch.aminmax(inputs))
    if not 0 <= lowest <= highest <= 1:
        raise DataError(f"shift: images of split {name} have values from {lowest:g} to {highest:g}, expected [0, 1]")
