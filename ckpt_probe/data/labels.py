"""Names of classes, and the labels of data in the order of a model's classes."""

import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.data.prefetch import ready_parts
from ckpt_probe.data.samples import UNLABELLED, Batch, LabelledData, Split, Streaming, notes_of
from ckpt_probe.errors import DataError, listed

PLACEHOLDER = re.compile(r"LABEL_\d+")
"""What transformers calls the classes of a model that was given no names."""

MATCH, BY_NAME, BY_ORDER = "match", "name", "order"
"""The argument that says how labels and the model's classes are matched, and its values."""

SHOWN = 4
"""Names of classes in a message."""


def in_model_order(data: LabelledData, model_names: Sequence[str] | None) -> LabelledData:
    """Data whose labels are the model's own class numbers, matched by name, and named as the model names them.

    Where either side has no names (LABEL_0, LABEL_1, … are none), or the data's argument `match` is "order", labels
    stay as they are. Raises DataError, showing both, where a name of the data is none of the model's.
    """
    names = named(model_names)
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
    """Data for a model of so many classes; where it has more than the data, a note says which labels come.

    Raises DataError where the data name fewer classes than the model has without names, unless the data's argument
    `match` is "order": the first ones of the model would be taken for them.
    """
    if data.classes >= classes or not data.labelled:
        return data
    by_order = data.arguments.get(MATCH) == BY_ORDER
    if data.class_names is None or by_order:
        told = f"labels are below {data.classes}, the model has {classes:,} classes"
        return data if by_order else replace(data, notes=(*data.notes, told))
    raise DataError(
        f"the data have {len(data.class_names)} classes ({listed(list(data.class_names), SHOWN)}), the model has "
        f"{classes:,} and no names by which they could be matched; if they are the model's first ones, in this order, "
        f"add --data-argument {MATCH}={BY_ORDER}"
    )


def matched_labels(data_names: Sequence[str], model_names: Sequence[str]) -> list[int]:
    """For each label of the data the number of the model's class of that name.

    Names are compared as they are, then without regard to capitals, underscores, hyphens and spaces. Raises DataError
    that shows both where one has no partner, or two would have the same.
    """
    for spelled in (str, _plain):
        numbers = _numbers(map(spelled, model_names))
        found = [numbers.get(spelled(name)) for name in data_names]
        if None not in found and len(set(found)) == len(found):
            return [number for number in found if number is not None]
    plain = _numbers(map(_plain, model_names))
    strangers = [name for name in data_names if plain.get(_plain(name)) is None] or list(data_names)
    raise DataError(
        f"{len(strangers)} of {len(data_names)} classes of the data have no class of the model of their own name: "
        f"{listed(strangers, SHOWN)}; the data's are {listed(list(data_names), SHOWN)}, the model's "
        f"{listed(list(model_names), SHOWN)}; --data-argument {MATCH}={BY_ORDER} takes both in their own order"
    )


def named(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of classes; None where there are none, or only placeholders."""
    if not names or all(PLACEHOLDER.fullmatch(name) for name in names):
        return None
    return tuple(names)


def class_labels(values: Mapping[str, np.ndarray]) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Labels (N,) int64 of each split from the values of its label column, and the names of their classes.

    Texts become classes sorted by name, the same ones in each split; whole numbers are labels already, and have no
    names. Raises DataError for anything else.
    """
    if all(found.dtype.kind == "U" for found in values.values()):
        names = sorted(set().union(*(found.tolist() for found in values.values())))
        number = {name: label for label, name in enumerate(names)}
        labels = {split: torch.tensor([number[name] for name in found.tolist()]) for split, found in values.items()}
        return labels, tuple(names)
    return {split: _whole(split, found) for split, found in values.items()}, None


def _whole(split: str, values: np.ndarray) -> Tensor:
    if values.dtype.kind not in "biuf":
        raise DataError(f"split {split}: labels must be whole numbers or texts, found {values.dtype}")
    labels = torch.from_numpy(values.astype(np.int64))
    wrong = np.flatnonzero((labels.numpy() != values) | (values < 0))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"split {split}: label {values[row]} in row {row + 1}; labels are whole numbers from 0, or texts"
        )
    return labels


def without_labels(split: Split) -> Split:
    """A split whose labels, whatever they are, are −1."""
    return RelabelledSplit(split, None)


class RelabelledSplit:
    """A split with its labels renumbered: `order` (classes,) has the new number of each; None takes them away."""

    def __init__(self, split: Split, order: Tensor | None) -> None:
        self._split = split
        self._order = order

    @property
    def labels(self) -> Tensor:
        """All labels, (N,) int64."""
        return torch.full((len(self._split),), UNLABELLED) if self._order is None else self._order[self._split.labels]

    @property
    def left_out(self) -> Mapping[int, str]:
        """Samples that could not be read so far, by number: which, and why."""
        return self._split.left_out if isinstance(self._split, Streaming) else {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of the samples read so far."""
        return notes_of(self._split)

    def __len__(self) -> int:
        return len(self._split)

    def batch(self, indices: Tensor | slice) -> Batch:
        """Inputs and labels of the samples named."""
        return self._relabelled(self._split.batch(indices))

    def batches(
        self, parts: Sequence[slice], *, of: int | None = None, pinned: bool = False
    ) -> Generator[Batch, None, None]:
        """A batch for each part of the split in order, in pinned memory where asked for; none where all are damaged."""
        with ready_parts(self._split, parts, of=of, pinned=pinned) as found:
            yield from map(self._relabelled, found)

    def leave_out(self, found: Mapping[int, str], of: int) -> None:
        """Count samples that another process could not read, of so many that are read."""
        if isinstance(self._split, Streaming):
            self._split.leave_out(found, of)

    def _relabelled(self, batch: Batch) -> Batch:
        inputs, labels = batch
        if self._order is None:
            return inputs, torch.full((len(labels),), UNLABELLED)
        return inputs, self._order[labels]


def _numbers(names: Iterable[str]) -> dict[str, int | None]:
    """The number of each name, None where several have it."""
    numbers: dict[str, int | None] = {}
    for number, name in enumerate(names):
        numbers[name] = None if name in numbers else number
    return numbers


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
