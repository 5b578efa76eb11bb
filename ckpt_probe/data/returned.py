"""Labelled data from the return value of a user's function: arrays, datasets or loaders, one split or several."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, Subset

from ckpt_probe.data.dataset import DatasetSplit
from ckpt_probe.data.samples import LEFT_OUT, ArraySplit, LabelledData, Split, first_samples, sample_shape
from ckpt_probe.errors import DataError

ONLY = "data"
"""Name of the only split if the function returns no names."""


def labelled(name: str, value: Any, arguments: dict[str, Any], workers: int = 0) -> LabelledData:
    """Convert the return value of a user's function to labelled data.

    Class names are taken from the attribute `classes` of a dataset, as torchvision sets it.

    Args:
        name: Name of the data.
        value: LabelledData (without a name, it gets this one and these arguments), a split, or a mapping of splits by
            name. A split is a pair (inputs, labels), a map-style dataset, or a DataLoader, of which the dataset,
            collate function and number of workers are used.
        arguments: Arguments of the function, for the record.
        workers: Number of processes that read a dataset.

    Raises:
        DataError: For any other value, an empty split, or a label outside the classes.
    """
    if isinstance(value, LabelledData):
        _require_labels(value)
        return value if value.name else replace(value, name=name, arguments=arguments)
    splits_returned = value if isinstance(value, Mapping) or not _is_split(value) else {ONLY: value}
    if not isinstance(splits_returned, Mapping) or not splits_returned:
        raise DataError(f"expected a dict of splits, found {type(value).__name__}")
    splits = {str(split): _as_split(split, samples, workers) for split, samples in splits_returned.items()}
    return of_splits(name, splits, arguments, _class_names(splits_returned))


def of_splits(
    name: str, splits: Mapping[str, Split], arguments: dict[str, Any], class_names: tuple[str, ...] | None = None
) -> LabelledData:
    """Join splits to labelled data; the largest label determines the number of classes.

    Args:
        name: Name of the data.
        splits: The splits by name.
        arguments: Data arguments, for the record.
        class_names: Names of the first classes.

    Raises:
        DataError: If a split is empty, or a label is negative.
    """
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
    """Raise DataError for a label outside the number of classes of the data.

    Labels of positions, shape (N, positions), may be `LEFT_OUT`.
    """
    for split, samples in data.splits.items():
        labels = samples.labels
        left_out = (labels == LEFT_OUT) & (labels.ndim == 2)
        outside = ~left_out & ((labels < 0) | (labels >= data.classes))
        if bool(outside.any()):
            index = outside.nonzero()[0].tolist()
            message = f"the label of sample {index[0]} is {int(labels[tuple(index)])}, outside 0 … {data.classes - 1}"
            raise DataError(f"split {split!r}: {message}, though the data have {data.classes} classes")


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
    """Return the dataset of a loader as a split, with each sample once and in order."""
    if isinstance(loader.dataset, IterableDataset):
        raise DataError(f"split {split!r}: its dataset can only be iterated; return one with len and [i]")
    if not isinstance(loader.sampler, SequentialSampler | RandomSampler):
        kind = type(loader.sampler).__name__
        raise DataError(f"split {split!r}: a loader with a {kind}; return the dataset, or a Subset of it")
    return DatasetSplit(loader.dataset, collate=loader.collate_fn, workers=loader.num_workers)


def _class_names(splits: Mapping[Any, Any]) -> tuple[str, ...] | None:
    for value in splits.values():
        dataset = value.dataset if isinstance(value, DataLoader) else value
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        names = getattr(dataset, "classes", None)
        if isinstance(names, list | tuple) and names:
            return tuple(map(_text, names))
    return None


def _text(name: Any) -> str:
    """Return the name of a class as text; raise DataError for bytes that are not UTF-8."""
    try:
        return name.decode() if isinstance(name, bytes) else str(name)
    except UnicodeDecodeError as error:
        raise DataError(f"classes: {name!r} is not UTF-8; return the names of classes as texts") from error
