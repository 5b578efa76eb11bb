"""Load labelled data by name: builtin sources, files, entry points of packages, and functions of users."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, Subset

from ckpt_probe.addresses import is_address
from ckpt_probe.data.arguments import ModelHints, as_list
from ckpt_probe.data.arrays import CHOICES, choose_samples, read_digits, read_h5, read_idx, read_npz
from ckpt_probe.data.dataset import DatasetSplit, default_workers, transforms_labels
from ckpt_probe.data.labels import BY_NAME, BY_ORDER, MATCH, RelabelledSplit, impossible_label, shared_names
from ckpt_probe.data.samples import ArraySplit, LabelledData, Split, of_splits
from ckpt_probe.errors import CkptProbeError, DataError, UsageError, last_line
from ckpt_probe.keywords import require_known, whole_argument
from ckpt_probe.plugins import is_function_name, load_function, registered

ENTRY_POINTS = "ckpt_probe.data"
WORKERS = "workers"
WITHOUT_LABELS = "unlabelled"
"""The data argument that ignores all labels."""

DIVISION = ("test_fraction", "split_seed")
ARRAYS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "digits": (read_digits, DIVISION),
    "idx": (read_idx, ()),
    "npz": (read_npz, DIVISION),
    "h5": (read_h5, ()),
}
"""Sources of arrays: the function that reads them, and its arguments besides `CHOICES`."""

FILES = {
    "text": ("ckpt_probe.data.documents", "load"),
    "imagefolder": ("ckpt_probe.data.images.folder", "load"),
    "hf-dataset": ("ckpt_probe.data.saved", "load"),
    "csv": ("ckpt_probe.data.tables", "load_csv"),
    "parquet": ("ckpt_probe.data.tables", "load_parquet"),
}
"""Sources that prepare files for a model: module and function (path, arguments, hints, workers) → LabelledData."""

SPELLINGS = (
    *("digits", "idx:DIR", "npz:FILE", "h5:FILE", "text:FILE", "imagefolder:DIR", "hf-dataset:DIR", "csv:FILE"),
    *("parquet:FILE", "package.module:function", "path/to/file.py:function"),
)

NO_LABELS: dict[str, dict[str, Any]] = {"text": {"labels": "none"}, "hf-dataset": {"label": None}}
"""Arguments with which a source reads no labels; the labels of other sources are read and dropped."""

MODULAR = "sample_configs/grokking/modular.py:modular_table"
UNION = "sample_configs/class_count/digits_and_fashion.py:union"
SHIFTED = "sample_configs/cma/shifted.py:shifted"
"""Functions of the studies that replace sources of earlier versions."""

ONLY = "data"
"""Name of the only split if the function returns no names."""


def load_data(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    hints: ModelHints | None = None,
    workers: int | None = None,
) -> LabelledData:
    """Load labelled data in named splits.

    `digits`: 1,797 handwritten digits, inputs (1, 8, 8) in [0, 1], 10 classes, splits train and test (a stratified
    quarter chosen by seed 0; `test_fraction` and `split_seed` change that). `idx:DIR`: the format of MNIST, inputs
    (1, H, W). `npz:FILE`: arrays `x` and `y`, divided like the digits, or x_train, y_train, x_test, y_test. `h5:FILE`:
    arrays `inputs` and `labels` in a group for each split. These four also take `classes`, `per_class`,
    `validation_per_class` and `subset_seed`, see `choose_samples`. `text:FILE`, `imagefolder:DIR`, `hf-dataset:DIR`,
    `csv:FILE` and `parquet:FILE` are prepared for the model in `hints`. `package.module:function` or
    `path/to/file.py:function` is called with `arguments`; see `labelled` for what it may return.

    Args:
        name: Name of the source.
        arguments: Arguments of the source. For every source, `unlabelled` ignores the labels, and `match` chooses how
            they are matched to the model's classes.
        hints: The model that will receive the data.
        workers: Number of processes that read images and datasets, 0 for none; the data do not depend on it.

    Raises:
        UsageError: For an unknown name or argument.
        DataError: If a file, or the return value of a function, is not such data.
    """
    arguments = dict(arguments or {})
    match, unlabelled = arguments.pop(MATCH, None), arguments.pop(WITHOUT_LABELS, False)
    try:
        if match not in (None, BY_NAME, BY_ORDER):
            raise UsageError(f"{MATCH}: expected {BY_NAME} or {BY_ORDER}, found {match!r}")
        if not isinstance(unlabelled, bool):
            raise UsageError(f"{WITHOUT_LABELS}: expected true or false, found {unlabelled!r}")
        load = _load_unlabelled if unlabelled else _load
        data = load(name, arguments, hints or ModelHints(), workers)
    except CkptProbeError as error:
        raise type(error)(f"data {name}: {error}") from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"data {name}: cannot be loaded with arguments {arguments}: {error}") from error
    return replace(data, arguments={**data.arguments, MATCH: BY_ORDER}) if match == BY_ORDER else data


def functions_named(name: str) -> list[str]:
    """Return the functions of users that loading data would import, and the addresses that it would download.

    Args:
        name: Name of the data.
    """
    kind, _, location = name.partition(":")
    if location and is_address(location):
        return [name]
    builtin = _is_arrays(name) or kind in FILES or _replacement(name, {}) is not None
    return [] if builtin or not is_function_name(name) or name in registered(ENTRY_POINTS) else [name]


def recorded_arguments(name: str, recorded: str | None, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the data arguments in a checkpoint's metadata if they belong to the data that the caller names.

    Args:
        name: Name of the data from the caller.
        recorded: Name of the data in the metadata. If an earlier version wrote a source that is now a function of a
            study, the name of that function is accepted too.
        arguments: Data arguments in the metadata.

    Returns:
        The arguments for the named data; empty if the metadata name other data.
    """
    if recorded is None or name == recorded:
        return arguments if recorded else {}
    function, converted = _replacement(recorded, arguments) or ("", {})
    return converted if name.rpartition(":")[2] == function.rpartition(":")[2] else {}


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
        for split, samples in value.splits.items():
            if message := impossible_label(samples.labels, value.classes):
                raise DataError(f"split {split!r}: {message}, though the data have {value.classes} classes")
        return value if value.name else replace(value, name=name, arguments=arguments)
    splits_returned = value if isinstance(value, Mapping) or not _is_split(value) else {ONLY: value}
    if not isinstance(splits_returned, Mapping) or not splits_returned:
        raise DataError(f"expected a dict of splits, found {type(value).__name__}")
    splits = {str(split): _as_split(split, samples, workers) for split, samples in splits_returned.items()}
    return of_splits(name, splits, arguments, _class_names(splits_returned))


def _load(name: str, arguments: dict[str, Any], hints: ModelHints, workers: int | None) -> LabelledData:
    kind, _, location = name.partition(":")
    if (replacement := _replacement(name, arguments)) is not None:
        function, converted = replacement
        raise UsageError(
            f"moved to the studies: name it with `data={function!r}`, a file of the repository, and "
            f"`data_arguments={converted!r}` (checkpoints that record the earlier name contain these arguments)"
        )
    if _is_arrays(name):
        read, names = ARRAYS[kind]
        division = {key: value for key, value in arguments.items() if key in names}
        choices = {key: value for key, value in arguments.items() if key in CHOICES}
        require_known(kind, arguments, (*names, *CHOICES))
        splits, class_names = read(*([Path(location)] if location else []), **division)
        data = of_splits(name, splits, arguments, class_names)
        return choose_samples(data, **choices) if choices else data
    if kind in FILES and location:
        module, function = FILES[kind]
        requested = arguments.pop(WORKERS, None) if workers is None else workers
        count = default_workers() if requested is None else whole_argument(WORKERS, requested, 0)
        return getattr(import_module(module), function)(location, arguments, hints, count)
    count = whole_argument(WORKERS, workers or 0, 0)
    return labelled(name, _called(_function(name), arguments), arguments, count)


def _load_unlabelled(name: str, arguments: dict[str, Any], hints: ModelHints, workers: int | None) -> LabelledData:
    none = NO_LABELS.get(name.partition(":")[0], {})
    data = _load(name, {**arguments, **none}, hints, workers)
    splits: dict[str, Split] = {key: RelabelledSplit(split, None) for key, split in data.splits.items()}
    recorded = {key: value for key, value in data.arguments.items() if key not in none}
    return replace(data, splits=splits, classes=0, class_names=None, arguments={**recorded, WITHOUT_LABELS: True})


def _is_arrays(name: str) -> bool:
    kind, _, location = name.partition(":")
    return name == "digits" or (kind != "digits" and kind in ARRAYS and location != "")


def _function(name: str) -> Callable[..., Any]:
    if name in (others := registered(ENTRY_POINTS)):
        return others[name]
    if is_function_name(name):
        return load_function(name)
    known = ", ".join([*SPELLINGS[:-2], *others, *SPELLINGS[-2:]])
    raise UsageError(f"no data called {name!r}{_meant(name)}; there are: {known}")


def _meant(name: str) -> str:
    """Return "; did you mean npz:data.npz?" for the path of a file or directory, which may be too long for a name."""
    with suppress(OSError):
        suffix = "imagefolder" if Path(name).is_dir() else Path(name).suffix[1:].lower()
        kind = {"txt": "text"}.get(suffix, suffix)
        if Path(name).exists() and kind in {*ARRAYS, *FILES}:
            return f"; did you mean {kind}:{name}?"
    return ""


def _called(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    try:
        return function(**arguments)
    except (CkptProbeError, TypeError, ValueError):
        raise
    except Exception as error:
        raise UsageError(f"the function raised {last_line(error)}") from error


def _replacement(name: str, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the study's function that replaces a source of an earlier version, and its arguments; else None."""
    kind, _, text = name.partition(":")
    if kind == "modular":
        settings = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
        merged = {**{key: as_list(value)[0] for key, value in settings.items() if value}, **arguments}
        return MODULAR, {"split_seed" if key == "seed" else key: value for key, value in merged.items()}
    if name == "union":
        return UNION, dict(arguments)
    if kind in ARRAYS and "shift" in arguments:
        return SHIFTED, {"source": name, **arguments}
    return None


def _is_split(value: Any) -> bool:
    """Return whether a value that is not a mapping is a single split; a list is not, as it is more likely a mistake."""
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
    """Return the names that the datasets of the splits have for their classes, None without names."""
    names_of: dict[str, tuple[str, ...]] = {}
    for split, value in splits.items():
        dataset = value.dataset if isinstance(value, DataLoader) else value
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        names = getattr(dataset, "classes", None)
        if isinstance(names, list | tuple) and names and not transforms_labels(dataset):
            names_of[str(split)] = tuple(map(_text, names))
    return shared_names(names_of)


def _text(name: Any) -> str:
    """Return the name of a class as text; raise DataError for bytes that are not UTF-8."""
    try:
        return name.decode() if isinstance(name, bytes) else str(name)
    except UnicodeDecodeError as error:
        raise DataError(f"classes: {name!r} is not UTF-8; return the names of classes as texts") from error
