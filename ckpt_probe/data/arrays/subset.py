"""Fewer classes and fewer samples of data held in memory, and samples set aside for validation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ckpt_probe.data.samples import ArraySplit
from ckpt_probe.errors import UsageError, listed


def named(splits: Mapping[str, ArraySplit], classes: Any) -> list[int]:
    """The labels that `classes` names. Raises UsageError where one is none, named twice, or in no split."""
    if not isinstance(classes, list | tuple) or not classes or not all(type(label) is int for label in classes):
        raise UsageError(f"classes: expected a list of labels such as [0, 3, 7], found {classes!r}")
    twice = [label for number, label in enumerate(classes) if label in classes[:number]]
    if twice:
        raise UsageError(f"classes: {twice[0]} is listed twice")
    present = labels_of(splits)
    absent = [label for label in classes if label not in present]
    if absent:
        raise UsageError(
            f"classes: no sample has the label {absent[0]}; there are: {listed([str(label) for label in present], 20)}"
        )
    return list(classes)


def of_classes(splits: Mapping[str, ArraySplit], classes: Sequence[int]) -> dict[str, ArraySplit]:
    """Only the samples of these labels, renumbered 0 … k−1 in the order given, in every split."""
    return {name: _renumbered(split, classes) for name, split in splits.items()}


def per_class(
    splits: Mapping[str, ArraySplit],
    kept: int | None,
    validation: int | None,
    seed: int,
    classes: Sequence[int] | None = None,
) -> dict[str, ArraySplit]:
    """Of each class of "train": `kept` samples (None: all the others), and `validation` in a split of that name.

    Each class has an order of its own, which follows from the seed and the label: the kept ones are its first, those
    for validation its last. So ten are among a hundred, and the validation split is the same for any `kept`.
    classes: the labels that count, all where not given; "train" and "validation" have no others.
    Raises UsageError where a class has too few samples, there is no split "train", or already one for validation.
    """
    _require_count(kept, "per_class")
    _require_count(validation, "validation_per_class")
    if "train" not in splits:
        raise UsageError(f"per_class: no split 'train'; there are: {', '.join(splits)}")
    if validation and "validation" in splits:
        raise UsageError("validation_per_class: the data has a split 'validation' already")
    labels = splits["train"].labels.numpy()
    first, last = np.zeros(len(labels), dtype=bool), np.zeros(len(labels), dtype=bool)
    for label in labels_of(splits) if classes is None else classes:
        members = np.flatnonzero(labels == label)
        _require_enough(label, len(members), kept, validation)
        order = np.random.default_rng([seed, label]).permutation(members)
        end = len(order) - (validation or 0)
        first[order[: end if kept is None else kept]] = True
        last[order[end:]] = True
    chosen = dict(splits) | {"train": _taken(splits["train"], first)}
    return chosen | {"validation": _taken(splits["train"], last)} if validation else chosen


def labels_of(splits: Mapping[str, ArraySplit]) -> list[int]:
    """Every label that some split has, in order."""
    return sorted({int(label) for split in splits.values() for label in torch.unique(split.labels)})


def _renumbered(split: ArraySplit, classes: Sequence[int]) -> ArraySplit:
    wanted = torch.tensor(classes)
    rows = torch.isin(split.labels, wanted)
    order = torch.argsort(wanted)
    return ArraySplit(split.inputs[rows], order[torch.searchsorted(wanted[order], split.labels[rows])])


def _taken(split: ArraySplit, rows: np.ndarray) -> ArraySplit:
    wanted = torch.from_numpy(rows)
    return ArraySplit(split.inputs[wanted], split.labels[wanted])


def _require_count(count: Any, name: str) -> None:
    if count is not None and (type(count) is not int or count < 1):
        raise UsageError(f"{name}: expected a whole number of at least 1, found {count!r}")


def _require_enough(label: int, held: int, kept: int | None, validation: int | None) -> None:
    # Where all the others are kept, one at least has to be left.
    if held >= (1 if kept is None else kept) + (validation or 0):
        return
    asked = [f"per_class = {kept}"] if kept is not None else []
    asked += [f"validation_per_class = {validation}"] if validation else []
    raise UsageError(f"{' and '.join(asked)}: class {label} has {held} samples in split train, which is too few")
