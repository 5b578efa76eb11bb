"""Names of classes, and the labels of data in the order of a model's classes."""

import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.data.arguments import suggestion
from ckpt_probe.data.dataset import LABEL_NAMES
from ckpt_probe.data.samples import (
    LEFT_OUT,
    UNLABELLED,
    LabelledBatch,
    LabelledData,
    Split,
    Streaming,
    names_of,
    notes_of,
    ready_parts,
)
from ckpt_probe.errors import DataError, listed

PLACEHOLDER = re.compile(r"LABEL_\d+")
"""Names that transformers gives to classes without names."""

MATCH, BY_NAME, BY_ORDER = "match", "name", "order"
"""The data argument that chooses how labels are matched to the model's classes, and its values."""

SHOWN = 4
"""Maximum number of class names in a message."""


def in_model_order(data: LabelledData, model_names: Sequence[str] | None) -> LabelledData:
    """Renumber labels to the model's classes, matched by name.

    Labels stay unchanged if the data or the model have no class names (LABEL_0, LABEL_1, … of a model count only if the
    data have such names too), or the data argument `match` is "order".

    Args:
        data: The data.
        model_names: Names of the model's classes in order.

    Returns:
        Data with the model's labels and class names.

    Raises:
        DataError: If the model has no class of a name of the data.
    """
    names = named(model_names)
    if names is None and model_names and data.class_names and named(data.class_names) is None:
        names = tuple(model_names)  # Placeholders on both sides state the numbers.
    if names is None:
        return data
    if data.class_names is None or data.arguments.get(MATCH) == BY_ORDER:
        return replace(data, class_names=names)
    order = matched_labels(data.class_names, names)
    splits: dict[str, Split] = dict(data.splits)
    if order != list(range(len(order))):
        splits = {name: RelabelledSplit(split, torch.tensor(order)) for name, split in splits.items()}
    return replace(data, splits=splits, classes=1 + max(order), class_names=names)


def in_width(data: LabelledData, classes: int) -> LabelledData:
    """Check labels against the number of classes of a model, and add a note if that is larger than the data's.

    Args:
        data: The data.
        classes: Number of classes of the model.

    Raises:
        DataError: If the model has fewer classes than the data; or more, and the data have class names. These are the
            model's first classes only if the data argument `match` is "order".
    """
    require_classes(data, classes)
    if data.classes >= classes or not data.labelled:
        return data
    by_order = data.arguments.get(MATCH) == BY_ORDER
    if data.class_names is None or by_order:
        message = f"labels are below {data.classes}, the model has {classes:,} classes"
        return data if by_order else replace(data, notes=(*data.notes, message))
    raise DataError(
        f"the data have {len(data.class_names)} classes ({listed(list(data.class_names), SHOWN)}), the model has "
        f"{classes:,} and no names by which they could be matched; if they are the model's first ones, in this order, "
        f"add {suggestion(match=BY_ORDER)}"
    )


def impossible_label(labels: Tensor, classes: int) -> str | None:
    """Return a sentence about the first label that is no class, None if there is no such label.

    Args:
        labels: Labels of samples, shape (n,), or of positions, (n, positions), which may be `LEFT_OUT`.
        classes: Number of classes.
    """
    outside = ((labels < 0) & ((labels != LEFT_OUT) | (labels.ndim == 1))) | (labels >= classes)
    if not bool(outside.any()):
        return None
    index = outside.nonzero()[0].tolist()
    return f"the label of sample {index[0]} is {int(labels[tuple(index)])}, outside 0 … {classes - 1}"


def require_classes(data: LabelledData, logits: int) -> None:
    """Raise DataError, with the names of the classes, if a model gives fewer logits than its data have classes."""
    if logits < data.classes:
        which = f" ({listed(data.class_names)})" if data.class_names else ""
        raise DataError(f"the model gives {logits} logits, fewer than the data's {data.classes} classes{which}")


def matched_labels(data_names: Sequence[str], model_names: Sequence[str]) -> list[int]:
    """Return the index of the model's class for each label of the data, matched by name.

    Names are compared exactly, then without regard to case, underscores, hyphens and spaces.

    Args:
        data_names: Names of the data's classes.
        model_names: Names of the model's classes.

    Raises:
        DataError: If a class has no partner, or two have the same; the message lists both sides.
    """
    for spelled in (str, _plain):
        numbers = _numbers(map(spelled, model_names))
        numbers_found = [numbers.get(spelled(name)) for name in data_names]
        if None not in numbers_found and len(set(numbers_found)) == len(numbers_found):
            return [number for number in numbers_found if number is not None]
    plain = _numbers(map(_plain, model_names))
    unmatched = [name for name in data_names if plain.get(_plain(name)) is None] or list(data_names)
    raise DataError(
        f"{len(unmatched)} of {len(data_names)} classes of the data have no class of the model of their own name: "
        f"{listed(unmatched, SHOWN)}; the data's are {listed(list(data_names), SHOWN)}, the model's "
        f"{listed(list(model_names), SHOWN)}; {suggestion(match=BY_ORDER)} takes both in their order"
    )


def named(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return names of classes; None if the sequence is empty or contains only placeholders."""
    if not names or all(PLACEHOLDER.fullmatch(name) for name in names):
        return None
    return tuple(names)


def label_column(source: object, columns: Iterable[str], requested: Any, typed: Sequence[str] = ()) -> str:
    """Return the name of the column of labels: the requested one, else `label` or `labels`, else one of class labels.

    Args:
        source: File or directory of the table, for messages.
        columns: Names of its columns.
        requested: Name from the caller, or None.
        typed: Names of columns whose type is a class label.

    Raises:
        DataError: If there is no such column, or there are several.
    """
    names = list(columns)
    choices = f"there are: {listed(names, 12)}; choose one by {suggestion(label='NAME')}"
    if requested is not None and requested not in names:
        raise DataError(f"{source}: no column {requested!r}; {choices}")
    named = [name for name in LABEL_NAMES if name in names]
    candidates = [str(requested)] if requested is not None else named or typed
    if len(candidates) != 1:
        raise DataError(f"{source}: which column has the labels? {choices}")
    return candidates[0]


def shared_names(names_of: Mapping[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    """Return the names of classes that all splits state; None if `names_of` is empty.

    Raises:
        DataError: If two splits name their classes differently, so that one number means two classes.
    """
    for other, names in names_of.items():
        split, first = next(iter(names_of.items()))
        if names != first:
            raise DataError(
                f"split {split!r} has the classes {listed(first)}, but split {other!r} has {listed(names)}; give all "
                "splits the same names in the same order"
            )
    return next(iter(names_of.values()), None)


def class_labels(values: Mapping[str, np.ndarray]) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Convert label columns to labels.

    Args:
        values: The label column of each split: texts, as objects, or integers from 0.

    Returns:
        Labels, shape (N,), int64, of each split, and class names. Texts become classes sorted by name, the same in
        all splits; integers are labels already and have no names (None).

    Raises:
        DataError: For other values.
    """
    if all(column.dtype.kind == "O" for column in values.values()):
        names = sorted(set().union(*(column.tolist() for column in values.values())))
        number = {name: label for label, name in enumerate(names)}
        labels = {split: torch.tensor([number[name] for name in column.tolist()]) for split, column in values.items()}
        return labels, tuple(names)
    return {split: _as_labels(split, column) for split, column in values.items()}, None


def _as_labels(split: str, values: np.ndarray) -> Tensor:
    if values.dtype.kind not in "biuf":
        kind = "texts here, and numbers in another split" if values.dtype.kind == "O" else values.dtype
        raise DataError(f"split {split}: labels must be whole numbers or texts, found {kind}")
    with np.errstate(invalid="ignore"):
        labels = torch.from_numpy(values.astype(np.int64))
    wrong = np.flatnonzero((labels.numpy() != values) | (values < 0))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"split {split}: label {values[row]} in row {row + 1}; labels are whole numbers from 0, or texts"
        )
    return labels


class RelabelledSplit:
    """A split with renumbered labels.

    Args:
        split: The split.
        order: New label of each class, shape (classes,); None sets all labels to −1.
    """

    def __init__(self, split: Split, order: Tensor | None) -> None:
        self._split = split
        self._order = order

    @property
    def labels(self) -> Tensor:
        """Return all labels, shape (N,), int64."""
        return torch.full((len(self._split),), UNLABELLED) if self._order is None else self._order[self._split.labels]

    @property
    def names(self) -> Sequence[str] | None:
        """Return the names of the samples; None if they have none."""
        return names_of(self._split)

    @property
    def left_out(self) -> Mapping[int, str]:
        """Return the reason for each sample that could not be read so far, by its index."""
        return self._split.left_out if isinstance(self._split, Streaming) else {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Return notes on the samples read so far."""
        return notes_of(self._split)

    def __len__(self) -> int:
        return len(self._split)

    def batch(self, indices: Tensor | slice) -> LabelledBatch:
        """Read samples by index."""
        return self._relabelled(self._split.batch(indices))

    def batches(
        self, parts: Sequence[slice], *, total: int | None = None, pinned: bool = False
    ) -> Generator[LabelledBatch, None, None]:
        """Yield a batch for each part of the split in order, see `Streaming.batches`."""
        with ready_parts(self._split, parts, total=total, pinned=pinned) as loaded:
            yield from map(self._relabelled, loaded)

    def leave_out(self, reasons: Mapping[int, str], total: int) -> None:
        """Add samples that another process could not read, see `Streaming.leave_out`."""
        if isinstance(self._split, Streaming):
            self._split.leave_out(reasons, total)

    def _relabelled(self, batch: LabelledBatch) -> LabelledBatch:
        inputs, labels = batch
        if self._order is None:
            return inputs, torch.full((len(labels),), UNLABELLED)
        return inputs, self._order[labels]


def _numbers(names: Iterable[str]) -> dict[str, int | None]:
    """Return the index of each name, None for a name that occurs several times."""
    numbers: dict[str, int | None] = {}
    for number, name in enumerate(names):
        numbers[name] = None if name in numbers else number
    return numbers


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
