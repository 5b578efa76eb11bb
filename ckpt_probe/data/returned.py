"""What anybody's own function returned, as labelled data: arrays, datasets, loaders, one split or several."""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, Subset

from ckpt_probe.data.dataset import DatasetSplit
from ckpt_probe.data.samples import LEFT_OUT, ArraySplit, LabelledData, Split, first_samples, sample_shape
from ckpt_probe.errors import DataError

ONLY = "data"
"""The name of a split that was given none."""


def labelled(name: str, found: Any, arguments: dict[str, Any], workers: int = 0) -> LabelledData:
    """Labelled data of a mapping of splits, or of one split: (inputs, labels), a map-style dataset, or a loader of one.

    Of a loader the dataset, what collates it, and its workers are used; `workers` read datasets. Where a dataset has
    `classes`, as torchvision's have, these are the names. Raises DataError for anything else, or an empty split.
    """
    if isinstance(found, LabelledData):
        _require_labels(found)
        return found
    given = found if isinstance(found, Mapping) or not _is_split(found) else {ONLY: found}
    if not isinstance(given, Mapping) or not given:
        raise DataError(f"expected a dict of splits, found {type(found).__name__}")
    splits = {str(split): _as_split(split, value, workers) for split, value in given.items()}
    return of_splits(name, splits, arguments, _class_names(given))


def of_splits(
    name: str, splits: Mapping[str, Split], arguments: dict[str, Any], class_names: tuple[str, ...] | None = None
) -> LabelledData:
    """Labelled data of splits, classes counted from the labels. Raises DataError for empty splits, labels below 0."""
    empty = [split for split, samples in splits.items() if not len(samples)]
    if empty:
        raise DataError(f"split {empty[0]!r} is empty")
    lowest = min(int(samples.labels.min()) for samples in splits.values())
    if lowest < 0:
        raise DataError(f"a label is {lowest}; number the classes from 0 on")
    classes = max(len(class_names or ()), 1 + max(int(samples.labels.max()) for samples in splits.values()))
    inputs, _ = first_samples(next(iter(splits.values())), 1)
    return LabelledData(name, dict(splits), classes, sample_shape(inputs), arguments, class_names)


def _require_labels(data: LabelledData) -> None:
    """Raise DataError where a label is none of the classes that the data themselves say they have.

    Labels of positions, (N, positions), may leave some out.
    """
    for split, samples in data.splits.items():
        labels = samples.labels
        left_out = (labels == LEFT_OUT) & (labels.ndim == 2)
        outside = ~left_out & ((labels < 0) | (labels >= data.classes))
        if bool(outside.any()):
            place = outside.nonzero()[0].tolist()
            told = f"the label of sample {place[0]} is {int(labels[tuple(place)])}, outside 0 … {data.classes - 1}"
            raise DataError(f"split {split!r}: {told}, though the data say {data.classes} classes")


def _is_split(value: Any) -> bool:
    """Whether a value that is no mapping is one split by itself; a list is more likely a mistake."""
    pair = isinstance(value, tuple) and len(value) == 2
    return pair or isinstance(value, Split | DataLoader | Dataset)


def _as_split(split: Any, value: Any, workers: int) -> Split:
    if isinstance(value, Split):
        return value
    if isinstance(value, DataLoader):
        return _of_loader(split, value)
    if isinstance(value, tuple | list) and len(value) == 2:
        try:
            return ArraySplit(*value)
        except (DataError, TypeError, ValueError) as error:
            raise DataError(f"split {split!r}: {error}") from error
    if isinstance(value, IterableDataset):
        raise DataError(f"split {split!r}: a dataset that can only be iterated; return one with len and [i]")
    if hasattr(value, "__getitem__") and hasattr(value, "__len__"):
        return DatasetSplit(value, workers=workers)
    raise DataError(f"split {split!r} is neither (inputs, labels) nor a dataset nor a DataLoader")


def _of_loader(split: Any, loader: DataLoader[Any]) -> Split:
    """The dataset of a loader: each sample once and in order, whatever the loader would do."""
    if isinstance(loader.dataset, IterableDataset):
        raise DataError(f"split {split!r}: its dataset can only be iterated; return one with len and [i]")
    if not isinstance(loader.sampler, SequentialSampler | RandomSampler):
        kind = type(loader.sampler).__name__
        raise DataError(f"split {split!r}: a loader with a {kind}; return the dataset, or a Subset of it")
    return DatasetSplit(loader.dataset, collate=loader.collate_fn, workers=loader.num_workers)


def _class_names(given: Mapping[Any, Any]) -> tuple[str, ...] | None:
    for value in given.values():
        dataset = value.dataset if isinstance(value, DataLoader) else value
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        names = getattr(dataset, "classes", None)
        if isinstance(names, list | tuple) and names:
            return tuple(map(_text, names))
    return None


def _text(name: Any) -> str:
    """Return the name of a class as text. Raises DataError for bytes that are no UTF-8."""
    try:
        return name.decode() if isinstance(name, bytes) else str(name)
    except UnicodeDecodeError as error:
        raise DataError(f"classes: {name!r} is not UTF-8; return the names of classes as texts") from error
