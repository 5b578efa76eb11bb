"""Several data as one: the classes of each after those of the one before it."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.data.arrays.held import Held
from ckpt_probe.data.samples import ArraySplit, LabelledData
from ckpt_probe.errors import DataError, UsageError

CHUNK = 2048
"""Images resized at a time, so that uint8 images are never all held as floats."""


def joined(parts: Sequence[LabelledData], size: Sequence[int] | None = None) -> Held:
    """The splits that all the parts have; labels of each part begin where those of the one before it end.

    size: (height, width) that images of every part are brought to by linear interpolation, corners on corners
    (scipy.ndimage.zoom, order 1). Where all images are uint8 they stay so; uint8 beside floats becomes float32.
    Raises UsageError for a size that is none, DataError for parts without a common split, shape or kind of values.
    """
    names = [name for name in parts[0].splits if all(name in part.splits for part in parts)]
    if not names:
        held = "; ".join(f"{part.name}: {', '.join(part.splits)}" for part in parts)
        raise DataError(f"the sources have no split in common ({held})")
    _require_shapes(parts, _size(size))
    offsets = [0, *accumulate(part.classes for part in parts)]
    return Held({name: _joined(parts, name, _size(size), offsets) for name in names}, _class_names(parts))


def entries(sources: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and arguments of each entry of `sources`. Raises UsageError where one is not {name = …, arguments = …}."""
    if not isinstance(sources, list | tuple) or not sources:
        raise UsageError(f'sources: expected a list such as [{{name = "digits"}}], found {sources!r}')
    found = []
    for number, entry in enumerate(sources, start=1):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise UsageError(f"sources: entry {number} has no name: {entry!r}")
        unknown = [key for key in entry if key not in ("name", "arguments")]
        if unknown:
            raise UsageError(f"sources: entry {number}: unknown key {unknown[0]!r}; it takes name and arguments")
        arguments = entry.get("arguments") or {}
        if not isinstance(arguments, Mapping):
            raise UsageError(f"sources: entry {number}: arguments: expected a table, found {arguments!r}")
        found.append((entry["name"], arguments))
    return found


def _class_names(parts: Sequence[LabelledData]) -> tuple[str, ...] | None:
    """The names of all classes, where every part names all of its own and no name comes twice."""
    names = [name for part in parts for name in part.class_names or ()]
    return tuple(names) if len(set(names)) == sum(part.classes for part in parts) == len(names) else None


def _size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(n) is int and 0 < n < 4096 for n in size):
        raise UsageError(f"size: expected height and width in pixels such as [28, 28], found {size!r}")
    return size[0], size[1]


def _require_shapes(parts: Sequence[LabelledData], size: tuple[int, int] | None) -> None:
    for part in parts:
        if not all(isinstance(split, ArraySplit) for split in part.splits.values()):
            raise DataError(f"{part.name}: only arrays in memory can be joined, not a dataset read sample by sample")
        if size is not None and len(part.input_shape) < 2:
            raise DataError(f"size: {part.name} has no images: its inputs have shape {part.input_shape}")
    shapes = [(part.name, shape[:-2] + size if size else shape) for part in parts for shape in _shapes(part)]
    if len({shape for _, shape in shapes}) > 1:
        named = ", ".join(f"{name} {shape}" for name, shape in dict.fromkeys(shapes))
        what = "channels differ" if size else "inputs differ in shape; size = [height, width] resizes images"
        raise DataError(f"{what}: {named}")


def _shapes(part: LabelledData) -> list[tuple[int, ...]]:
    return [tuple(split.inputs.shape[1:]) for split in part.splits.values() if isinstance(split, ArraySplit)]


def _joined(parts: Sequence[LabelledData], name: str, size: tuple[int, int] | None, offsets: list[int]) -> ArraySplit:
    splits = [part.splits[name] for part in parts]
    held = [split for split in splits if isinstance(split, ArraySplit)]
    inputs = [_resized(split.inputs, size) if size else split.inputs for split in held]
    labels = [split.labels + offset for split, offset in zip(held, offsets, strict=False)]
    return ArraySplit(torch.cat(_alike(name, inputs)), torch.cat(labels))


def _alike(name: str, inputs: list[Tensor]) -> list[Tensor]:
    if len({tensor.dtype for tensor in inputs}) == 1:
        return inputs
    bytes_ = [tensor.dtype == torch.uint8 for tensor in inputs]
    floating = [tensor for tensor in inputs if tensor.is_floating_point()]
    if len(floating) + sum(bytes_) < len(inputs):
        kinds = ", ".join(str(tensor.dtype) for tensor in inputs)
        raise DataError(f"split {name}: inputs of different dtypes cannot be joined: {kinds}")
    # Bytes are handed out in [0, 1]; beside values of another range they would be another scale, not another class.
    if any(bytes_) and not all(bool(((tensor >= 0) & (tensor <= 1)).all()) for tensor in floating):
        raise DataError(f"split {name}: uint8 images beside floats outside [0, 1]; scale those first")
    return [
        tensor.to(torch.float32).div_(255) if whole else tensor.to(torch.float32)
        for tensor, whole in zip(inputs, bytes_, strict=True)
    ]


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    whole = not images.is_floating_point()
    rows, columns = _interpolation(images.shape[-2], size[0]), _interpolation(images.shape[-1], size[1])
    result = torch.empty((*images.shape[:-2], *size), dtype=images.dtype if whole else torch.float32)
    for start in range(0, len(images), CHUNK):
        part = rows @ images[start : start + CHUNK].to(torch.float32) @ columns.T
        result[start : start + CHUNK] = part.round() if whole else part
    return result


def _interpolation(old: int, new: int) -> Tensor:
    """Weights (new, old) of linear interpolation between `old` pixels, the first and the last one kept in place."""
    at = np.linspace(0, old - 1, new)
    weights = [np.interp(at, np.arange(old), pixel) for pixel in np.eye(old)]
    return torch.from_numpy(np.stack(weights, axis=1)).to(torch.float32)
