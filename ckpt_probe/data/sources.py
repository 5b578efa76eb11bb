"""Labelled data by name: builtin, an entry point, or anybody's `package.module:function`."""

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_probe.data import idx, modular, shifts, subset, union
from ckpt_probe.data.samples import ArraySplit, DatasetSplit, LabelledData, Split, stratified
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.plugins import is_function_name, load_function, registered

SPLIT_SEED = 0
TEST_FRACTION = 0.25
ENTRY_POINTS = "ckpt_probe.data"
CHOICES = ("classes", "per_class", "validation_per_class", "subset_seed", "shift")
"""Arguments that every builtin source of images takes beside its own."""


def load_data(name: str, arguments: Mapping[str, Any] | None = None) -> LabelledData:
    """Labelled data in named splits.

    `digits`: 1,797 handwritten digits, inputs (1, 8, 8) in [0, 1], 10 classes, splits train and test (a stratified
    quarter chosen by seed 0; `test_fraction`, `split_seed` change that). `idx:DIR`: (1, H, W). `npz:FILE`: arrays `x`
    and `y`, split as digits are, or x_train, y_train, x_test, y_test. `union`: `sources` = [{name, arguments}, …] in
    one, `size` = [H, W]. These four take `classes`, `per_class`, `validation_per_class`, `subset_seed` (see
    data.subset) and `shift` (see data.shifts) too, applied in this order. `modular:p=59,op=add,fraction=0.3`: see
    data.modular. `package.module:function` is called with `arguments` and returns LabelledData, or a mapping of splits
    to (inputs, labels) or to a map-style dataset.

    Raises UsageError for an unknown name or argument, DataError for a file or a function's result that is no such data.
    """
    given = dict(arguments or {})
    builtin = _builtin(name)
    if builtin is not None:
        return _load_builtin(name, builtin, given)
    source = _source(name)
    with _named(name, given):
        found = source(**given)
    if isinstance(found, LabelledData):
        _require_labels(name, found)
        return found
    return _labelled(name, found, given)


def functions_named(name: str, arguments: Mapping[str, Any] | None = None) -> list[str]:
    """Each `package.module:function` that loading data called `name` would import; none for what comes with us."""
    if name == "union":
        parts = union.entries((arguments or {}).get("sources"))
        return [function for part, given in parts for function in functions_named(part, given)]
    known = _builtin(name) is not None or name.partition(":")[0] == "modular" or not is_function_name(name)
    return [] if known or name in registered(ENTRY_POINTS) else [name]


def _load_builtin(name: str, source: Callable[..., dict[str, ArraySplit]], given: dict[str, Any]) -> LabelledData:
    chosen = {key: given[key] for key in CHOICES if key in given}
    with _named(name, given):
        splits = source(**{key: value for key, value in given.items() if key not in chosen})
    data = _labelled(name, splits, given)
    if not chosen:
        return data
    with _named(name, given):
        splits = _chosen(splits, **chosen)
    return _labelled(name, splits, given)


@contextmanager
def _named(name: str, given: Mapping[str, Any]) -> Iterator[None]:
    """What goes wrong inside is told with the data's name."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UsageError(f"data {name}: cannot be loaded with arguments {given}: {error}") from error
    except (DataError, UsageError) as error:
        raise type(error)(f"data {name}: {error}") from error


def _builtin(name: str) -> Callable[..., dict[str, ArraySplit]] | None:
    kind, _, place = name.partition(":")
    if name == "digits":
        return _digits
    if name == "union":
        return _union
    if kind == "idx" and place:
        return lambda: idx.read_splits(Path(place))
    if kind == "npz" and place:
        return lambda **arguments: _npz(Path(place), **arguments)
    return None


def _source(name: str) -> Callable[..., Any]:
    kind, _, place = name.partition(":")
    if kind == "modular":
        return lambda **arguments: modular.read_splits(place, arguments)
    if name in (others := registered(ENTRY_POINTS)):
        return others[name]
    if is_function_name(name):
        return load_function(name)
    builtin = ["digits", "idx:DIR", "npz:FILE", "union", "modular:p=59,op=add,fraction=0.3"]
    raise UsageError(f"no data called {name!r}; there are: {', '.join([*builtin, *others, 'package.module:function'])}")


def _chosen(
    splits: dict[str, ArraySplit],
    classes: Sequence[int] | None = None,
    per_class: int | None = None,
    validation_per_class: int | None = None,
    subset_seed: int = 0,
    shift: str | None = None,
) -> dict[str, ArraySplit]:
    if type(subset_seed) is not int or subset_seed < 0:
        raise UsageError(f"subset_seed: expected a whole number of at least 0, found {subset_seed!r}")
    wanted = None if shift is None else shifts.parsed(shift)
    named = None if classes is None else subset.named(splits, classes)
    if per_class is not None or validation_per_class is not None:
        splits = subset.per_class(splits, per_class, validation_per_class, subset_seed, named)
    if named is not None:
        splits = subset.of_classes(splits, named)
    return splits if wanted is None else shifts.shifted(splits, wanted, subset_seed)


def _union(sources: Any = None, size: Sequence[int] | None = None) -> dict[str, ArraySplit]:
    return union.joined([load_data(name, arguments) for name, arguments in union.entries(sources)], size)


def _digits(test_fraction: float = TEST_FRACTION, split_seed: int = SPLIT_SEED) -> dict[str, ArraySplit]:
    with resources.as_file(resources.files("ckpt_probe.data") / "digits.npz") as path, np.load(path) as arrays:
        images, labels = arrays["x"], arrays["y"]
    return _split(images[:, None].astype(np.float32) / 16, labels, test_fraction, split_seed)


def _npz(path: Path, test_fraction: float = TEST_FRACTION, split_seed: int = SPLIT_SEED) -> dict[str, ArraySplit]:
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: a single array; expected an .npz file with arrays x and y")
        with opened as arrays:
            held = {name: arrays[name] for name in arrays.files if name[:1] in "xy"}
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not an .npz file of plain arrays ({error})") from error
    if {"x", "y"} <= held.keys():
        return _split(held["x"], _whole(path, held, "x", "y"), test_fraction, split_seed)
    names = [name.removeprefix("x_") for name in held if name.startswith("x_") and f"y_{name[2:]}" in held]
    if not names:
        raise DataError(f"{path}: no arrays x and y (or x_train, y_train, …); found: {', '.join(held) or 'none'}")
    return {name: ArraySplit(held[f"x_{name}"], _whole(path, held, f"x_{name}", f"y_{name}")) for name in names}


def _split(inputs: np.ndarray, labels: np.ndarray, fraction: float, seed: int) -> dict[str, ArraySplit]:
    train, test = stratified(labels, fraction, seed)
    return {"train": ArraySplit(inputs[train], labels[train]), "test": ArraySplit(inputs[test], labels[test])}


def _whole(path: Path, held: Mapping[str, np.ndarray], inputs: str, labels: str) -> np.ndarray:
    """The labels (n,) of n inputs, by their names in the file."""
    found, shape = held[labels], held[inputs].shape
    if found.dtype.kind not in "iu":
        raise DataError(f"{path}: labels must be integers, found {found.dtype}")
    if found.ndim != 1 or found.shape != shape[:1]:
        raise DataError(f"{path}: {labels} has shape {found.shape}; expected one label per row of {inputs} {shape}")
    return found


def _labelled(name: str, found: Any, arguments: dict[str, Any]) -> LabelledData:
    if not isinstance(found, Mapping) or not found:
        raise DataError(f"data {name}: expected a dict of splits, found {type(found).__name__}")
    splits = {split: _as_split(name, split, value) for split, value in found.items()}
    empty = [split for split, samples in splits.items() if not len(samples)]
    if empty:
        raise DataError(f"data {name}: split {empty[0]!r} is empty")
    lowest = min(int(samples.labels.min()) for samples in splits.values())
    if lowest < 0:
        raise DataError(f"data {name}: a label is {lowest}; number the classes from 0 on")
    classes = 1 + max(int(samples.labels.max()) for samples in splits.values())
    one, _ = next(iter(splits.values())).batch(slice(0, 1))
    return LabelledData(name, splits, classes, tuple(one.shape[1:]), arguments)


def _require_labels(name: str, data: LabelledData) -> None:
    """Raise DataError where a label is none of the classes that the data themselves say they have."""
    for split, samples in data.splits.items():
        outside = (samples.labels < 0) | (samples.labels >= data.classes)
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            told = f"the label of sample {row} is {int(samples.labels[row])}, outside 0 … {data.classes - 1}"
            raise DataError(f"data {name}: split {split!r}: {told}, though the data say {data.classes} classes")


def _as_split(name: str, split: str, value: Any) -> Split:
    if isinstance(value, ArraySplit | DatasetSplit):
        return value
    if isinstance(value, tuple | list) and len(value) == 2:
        try:
            return ArraySplit(*value)
        except (DataError, TypeError, ValueError) as error:
            raise DataError(f"data {name}: split {split!r}: {error}") from error
    if hasattr(value, "__getitem__") and hasattr(value, "__len__"):
        return DatasetSplit(value)
    raise DataError(f"data {name}: split {split!r} is neither (inputs, labels) nor a dataset")
