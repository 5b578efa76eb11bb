"""Choose classes and samples of data in memory, and set samples aside for validation."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ckpt_probe.data.arrays import StoredSplit
from ckpt_probe.data.returned import of_splits
from ckpt_probe.data.samples import ArraySplit, LabelledData, Split
from ckpt_probe.errors import UsageError, listed

CHOICES = ("classes", "per_class", "validation_per_class", "subset_seed")
"""Data arguments of all sources of arrays, the parameters of `choose_samples`."""


def choose_samples(
    data: LabelledData,
    classes: Sequence[int] | None = None,
    per_class: int | None = None,
    validation_per_class: int | None = None,
    subset_seed: int = 0,
) -> LabelledData:
    """Return data with fewer classes, fewer training samples, or a validation split.

    Each class has its own random order, which depends on the seed and the label. Training samples are taken from its
    start and validation samples from its end. So a smaller `per_class` chooses a subset of a larger one, and the
    validation split is the same for any `per_class`.

    Args:
        data: Data whose splits are arrays.
        classes: Labels of the classes to keep in every split; they are renumbered 0, 1, … in this order.
        per_class: Number of samples of each class in the split train.
        validation_per_class: Number of samples of each class to move from train to a new split validation.
        subset_seed: Seed of the random choice.

    Raises:
        UsageError: If an argument is invalid, a class has too few samples, or the splits are not arrays.
        DataError: If a split has no sample of these classes.
    """
    if type(subset_seed) is not int or subset_seed < 0:
        raise UsageError(f"subset_seed: expected a whole number of at least 0, found {subset_seed!r}")
    splits = {name: _in_memory(name, split) for name, split in data.splits.items()}
    labels = sorted({int(label) for split in splits.values() for label in torch.unique(split.labels)})
    names = data.class_names
    if classes is not None:
        _require_classes(classes, labels)
        names = tuple(names[label] for label in classes) if names and max(classes) < len(names) else None
    if per_class is not None or validation_per_class is not None:
        splits = _of_each_class(
            splits, labels if classes is None else classes, per_class, validation_per_class, subset_seed
        )
    if classes is not None:
        splits = {name: _renumbered(split, classes) for name, split in splits.items()}
    chosen = of_splits(data.name, splits, data.arguments, names)
    return replace(data, splits=chosen.splits, classes=chosen.classes, class_names=chosen.class_names)


def _in_memory(name: str, split: Split) -> ArraySplit:
    if isinstance(split, StoredSplit):
        return split.in_memory()
    if isinstance(split, ArraySplit):
        return split
    raise UsageError(f"split {name!r} is read sample by sample; {', '.join(CHOICES)} take arrays")


def _require_classes(classes: Any, labels: Sequence[int]) -> None:
    if not isinstance(classes, list | tuple) or not classes or not all(type(label) is int for label in classes):
        raise UsageError(f"classes: expected a list of labels such as [0, 3, 7], found {classes!r}")
    repeated = [label for number, label in enumerate(classes) if label in classes[:number]]
    if repeated:
        raise UsageError(f"classes: {repeated[0]} is listed twice")
    absent = [label for label in classes if label not in labels]
    if absent:
        existing = listed([str(label) for label in labels], 20)
        raise UsageError(f"classes: no sample has the label {absent[0]}; there are: {existing}")


def _of_each_class(
    splits: Mapping[str, ArraySplit], classes: Sequence[int], training: int | None, validation: int | None, seed: int
) -> dict[str, ArraySplit]:
    for count, name in ((training, "per_class"), (validation, "validation_per_class")):
        if count is not None and (type(count) is not int or count < 1):
            raise UsageError(f"{name}: expected a whole number of at least 1, found {count!r}")
    if "train" not in splits:
        raise UsageError(f"per_class: no split 'train'; there are: {', '.join(splits)}")
    if validation and "validation" in splits:
        raise UsageError("validation_per_class: the data have a split 'validation' already")
    train = splits["train"]
    labels = train.labels.numpy()
    first, last = torch.zeros(len(labels), dtype=torch.bool), torch.zeros(len(labels), dtype=torch.bool)
    for label in classes:
        members = np.flatnonzero(labels == label)
        _require_enough(label, len(members), training, validation)
        order = torch.from_numpy(np.random.default_rng([seed, label]).permutation(members))
        end = len(order) - (validation or 0)
        first[order[: end if training is None else training]] = True
        last[order[end:]] = True
    chosen = {**splits, "train": ArraySplit(train.inputs[first], train.labels[first])}
    return {**chosen, "validation": ArraySplit(train.inputs[last], train.labels[last])} if validation else chosen


def _require_enough(label: int, count: int, training: int | None, validation: int | None) -> None:
    # At least one sample remains for training.
    if count >= (1 if training is None else training) + (validation or 0):
        return
    wanted = [f"per_class = {training}"] if training is not None else []
    wanted += [f"validation_per_class = {validation}"] if validation else []
    raise UsageError(f"{' and '.join(wanted)}: class {label} has {count} samples in split train, which is too few")


def _renumbered(split: ArraySplit, classes: Sequence[int]) -> ArraySplit:
    wanted = torch.tensor(classes)
    rows = torch.isin(split.labels, wanted)
    order = torch.argsort(wanted)
    return ArraySplit(split.inputs[rows], order[torch.searchsorted(wanted[order], split.labels[rows])])
