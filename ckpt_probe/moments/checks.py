"""Checks of rows, their labels and numbers, and weights of a classifier that are passed to the accumulator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.metrics.rows import Array, as_labels, as_tensor, require_finite, where_float64_is

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}


def checked_precision(name: str) -> torch.dtype:
    """Return the dtype of a precision; raise UsageError if it is unknown."""
    if name not in PRECISIONS:
        raise UsageError(f"precision: expected {' or '.join(PRECISIONS)}, found {name!r}")
    return PRECISIONS[name]


def checked_block(
    features: Array, labels: Array | Sequence[int], width: int | None, device: torch.device | None, before: int
) -> tuple[Tensor, Tensor, float]:
    """Return a block of rows and its labels on a device, and the largest absolute entry of the rows.

    Args:
        features: Features, (n, D), of any floating dtype.
        labels: Labels, (n,), whole numbers.
        width: Number of features of earlier blocks, if there are any.
        device: The device; None for that of the features, or the CPU for MPS.
        before: Number of earlier rows, from which rows in messages are counted.

    Raises:
        DataError: If a row contains NaN or infinity, labels are not whole numbers, or shapes do not match.
    """
    rows, numbers = as_tensor(features, "features"), as_labels(labels)
    widthless = rows.ndim == 2 and len(rows) and not rows.shape[1]
    if rows.ndim != 2 or numbers.ndim != 1 or rows.shape[0] != numbers.shape[0] or widthless:
        shapes = f"{tuple(rows.shape)} and {tuple(numbers.shape)}"
        raise DataError(f"features and labels: expected (n, D) and (n,), found {shapes}")
    if width is not None and rows.shape[1] != width:
        raise DataError(f"features: this block has {rows.shape[1]} columns, earlier blocks had {width}")
    if numbers.dtype == torch.bool:
        raise DataError(f"labels: expected whole numbers, found {numbers.dtype}")
    rows = where_float64_is(rows.detach())
    rows = rows.to(device or rows.device)
    return rows, numbers.to(rows.device, torch.int64), require_finite(rows, "features", before)


def require_range(numbers: Tensor, classes: int | None, features: int, limit: int, before: int) -> None:
    """Check the labels of a block.

    Args:
        numbers: Labels, (n,), int64.
        classes: Number of classes C; None if labels can be any whole number from 0.
        features: Number of features D.
        limit: Memory budget of the class means in bytes.
        before: Number of earlier rows, from which rows in messages are counted.

    Raises:
        DataError: If a label is outside 0 … C−1, or so large that the class means are beyond the budget.
    """
    highest = classes - 1 if classes is not None else None
    outside = numbers < 0 if highest is None else (numbers < 0) | (numbers > highest)
    if bool(outside.any()):
        first = int(outside.nonzero()[0])
        allowed = "at least 0" if highest is None else f"between 0 and {highest}"
        raise DataError(f"labels: row {first + before} is {int(numbers[first])}, labels must be {allowed}")
    most = 1 + int(numbers.max()) if highest is None and len(numbers) else 0
    if (needed := 8 * most * features) > limit:
        raise DataError(
            f"labels: row {int(numbers.argmax()) + before} is {most - 1}: the means of {most:,} classes "
            f"would take {needed:,} bytes, more than the memory budget of {limit:,}; number the classes 0 … C−1, "
            "or raise the budget"
        )


def checked_numbers(values: Array | Sequence[int] | None, name: str, count: int) -> Tensor | None:
    """Return whole numbers of rows on the CPU, (n,); raise DataError if their number differs or one is negative."""
    if values is None:
        return None
    numbers = as_labels(values, name).detach().cpu()
    if numbers.shape != (count,):
        raise DataError(f"{name}: expected shape ({count},), found {tuple(numbers.shape)}")
    if count and int(numbers.min()) < 0:
        raise DataError(f"{name}: row {int(numbers.argmin())} is {int(numbers.min())}, expected at least 0")
    return numbers.to(torch.int64)


def checked_weights(
    values: Array | None, width: int | None, classes: int | None, highest: int, device: torch.device | None
) -> Tensor | None:
    """Return rows that stand for the classes, as float64 on a device.

    Args:
        values: Classifier weights, (C, D), or other rows of classes, or None.
        width: Number of features D; None for any.
        classes: Number of classes C, if it is known.
        highest: Largest label that occurs.
        device: The device.

    Raises:
        DataError: If they do not match the classes or the width, or contain NaN or infinity.
    """
    if values is None:
        return None
    rows = where_float64_is(as_tensor(values, "classifier weights").detach()).to(device, torch.float64)
    if rows.ndim != 2 or width not in (None, rows.shape[1]):
        expected = f"(classes, {width or 'features'})"
        raise DataError(f"classifier weights: expected shape {expected}, found {tuple(rows.shape)}")
    require_finite(rows, "classifier weights")
    if highest >= len(rows) or classes not in (None, len(rows)):
        labels = f"labels go up to {highest}" if classes is None else f"there are {classes} classes"
        raise DataError(f"classifier weights have {len(rows)} rows, but {labels}")
    return rows
