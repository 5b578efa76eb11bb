"""Data of the study of class counts: several sources joined, such as handwritten digits and Fashion-MNIST."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.data import ArraySplit, LabelledData, Split, choose_samples, load_data
from ckpt_probe.errors import DataError, UsageError

CHUNK = 2048
"""Number of images that are converted to floats at a time."""


def union(sources: Sequence[Mapping[str, Any]], size: Sequence[int] | None = None, **choices: Any) -> LabelledData:
    """Join several sources; the classes of each are numbered after those of the previous one.

    Args:
        sources: Name and arguments of each source, such as `{name = "digits", arguments = {per_class = 100}}`. Splits
            that all sources have are joined.
        size: Height and width to which all images are resized by linear interpolation with aligned corners, like
            `scipy.ndimage.zoom` of order 1.
        **choices: Choice of classes and samples of the union, see `choose_samples`.

    Returns:
        The joined data. If all inputs are uint8 they stay uint8; uint8 beside floats becomes float32.

    Raises:
        UsageError: If an argument is invalid.
        DataError: If the sources have no split, shape or kind of values in common.
    """
    parts = [load_data(name, arguments) for name, arguments in _entries(sources)]
    names = [name for name in parts[0].splits if all(name in part.splits for part in parts)]
    if not names:
        existing = "; ".join(f"{part.name}: {', '.join(part.splits)}" for part in parts)
        raise DataError(f"the sources have no split in common ({existing})")
    _require_shapes(parts, shape := _image_size(size))
    offsets = [0, *accumulate(part.classes for part in parts)]
    splits: dict[str, Split] = {name: _joined(parts, name, shape, offsets) for name in names}
    shape_of_input = tuple(splits[names[0]].batch(slice(0, 1))[0].shape[1:])
    data = LabelledData("", splits, offsets[-1], shape_of_input, class_names=_class_names(parts))
    return choose_samples(data, **choices)


def _entries(sources: Any) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(sources, list | tuple) or not sources:
        raise UsageError(f'sources: expected a list such as [{{name = "digits"}}], found {sources!r}')
    entries = []
    for number, entry in enumerate(sources, start=1):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise UsageError(f"sources: entry {number} has no name: {entry!r}")
        unknown = [key for key in entry if key not in ("name", "arguments")]
        if unknown:
            raise UsageError(f"sources: entry {number}: unknown key {unknown[0]!r}; it takes name and arguments")
        arguments = entry.get("arguments") or {}
        if not isinstance(arguments, Mapping):
            raise UsageError(f"sources: entry {number}: arguments: expected a table, found {arguments!r}")
        entries.append((entry["name"], arguments))
    return entries


def _image_size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(n) is int and 0 < n < 4096 for n in size):
        raise UsageError(f"size: expected height and width in pixels such as [28, 28], found {size!r}")
    return size[0], size[1]


def _require_shapes(parts: Sequence[LabelledData], size: tuple[int, int] | None) -> None:
    shapes = []
    for part in parts:
        for split in part.splits.values():
            if not isinstance(split, ArraySplit):
                raise DataError(
                    f"{part.name}: only arrays in memory can be joined, not a dataset read sample by sample"
                )
            shape = tuple(split.inputs.shape[1:])
            if size is not None and len(shape) < 2:
                raise DataError(f"size: {part.name} has no images: its inputs have shape {shape}")
            shapes.append((part.name, shape[:-2] + size if size else shape))
    if len({shape for _, shape in shapes}) > 1:
        named = ", ".join(f"{name} {shape}" for name, shape in dict.fromkeys(shapes))
        problem = "channels differ" if size else "inputs differ in shape; size = [height, width] resizes images"
        raise DataError(f"{problem}: {named}")


def _class_names(parts: Sequence[LabelledData]) -> tuple[str, ...] | None:
    """Return the names of all classes if every source names all of its classes and no name is repeated."""
    names = [name for part in parts for name in part.class_names or ()]
    return tuple(names) if len(set(names)) == sum(part.classes for part in parts) == len(names) else None


def _joined(parts: Sequence[LabelledData], name: str, size: tuple[int, int] | None, offsets: list[int]) -> ArraySplit:
    splits = [split for part in parts if isinstance(split := part.splits[name], ArraySplit)]
    inputs = [_resized(split.inputs, size) if size else split.inputs for split in splits]
    labels = [split.labels + offset for split, offset in zip(splits, offsets, strict=False)]
    return ArraySplit(torch.cat(_in_one_dtype(name, inputs)), torch.cat(labels))


def _in_one_dtype(name: str, inputs: list[Tensor]) -> list[Tensor]:
    if len({tensor.dtype for tensor in inputs}) == 1:
        return inputs
    floats = [tensor for tensor in inputs if tensor.is_floating_point()]
    if any(not tensor.is_floating_point() and tensor.dtype != torch.uint8 for tensor in inputs):
        dtypes = ", ".join(str(tensor.dtype) for tensor in inputs)
        raise DataError(f"split {name}: inputs of different dtypes cannot be joined: {dtypes}")
    # uint8 becomes [0, 1]. Beside floats of another range, the scale would identify the source.
    if len(floats) < len(inputs) and not all(bool(((tensor >= 0) & (tensor <= 1)).all()) for tensor in floats):
        raise DataError(f"split {name}: uint8 images beside floats outside [0, 1]; scale those first")
    scales = [255 if tensor.dtype == torch.uint8 else 1 for tensor in inputs]
    return [tensor.to(torch.float32) / scale for tensor, scale in zip(inputs, scales, strict=True)]


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    is_integer = not images.is_floating_point()
    rows, columns = _interpolation(images.shape[-2], size[0]), _interpolation(images.shape[-1], size[1])
    result = torch.empty((*images.shape[:-2], *size), dtype=images.dtype if is_integer else torch.float32)
    for start in range(0, len(images), CHUNK):
        part = rows @ images[start : start + CHUNK].to(torch.float32) @ columns.T
        result[start : start + CHUNK] = part.round() if is_integer else part
    return result


def _interpolation(old: int, new: int) -> Tensor:
    """Return weights, shape (new, old), of linear interpolation that keeps the first and the last pixel in place."""
    positions = np.linspace(0, old - 1, new)
    weights = [np.interp(positions, np.arange(old), pixel) for pixel in np.eye(old)]
    return torch.from_numpy(np.stack(weights, axis=1)).to(torch.float32)
