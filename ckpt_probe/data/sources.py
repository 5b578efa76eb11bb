"""Labelled data by name: `digits`, `idx:DIR`, `npz:FILE`, an entry point, or anybody's `package.module:function`."""

import zipfile
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_probe.data import idx
from ckpt_probe.data.samples import ArraySplit, DatasetSplit, LabelledData, Split, stratified
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.plugins import is_function_name, load_function, registered

SPLIT_SEED = 0
TEST_FRACTION = 0.25
ENTRY_POINTS = "ckpt_probe.data"


def load_data(name: str, arguments: Mapping[str, Any] | None = None) -> LabelledData:
    """Labelled data in named splits.

    `digits`: 1,797 handwritten digits, inputs (1, 8, 8) in [0, 1], 10 classes, splits train and test (a stratified
    quarter chosen by seed 0; `test_fraction`, `split_seed` change that). `idx:DIR`: (1, H, W). `npz:FILE`: arrays `x`
    and `y`, split as digits are, or x_train, y_train, x_test, y_test. `package.module:function` is called with
    `arguments` and returns LabelledData, or a mapping of splits to (inputs, labels) or to a map-style dataset.

    Raises UsageError for an unknown name or argument, DataError for a file or a function's result that is no such data.
    """
    given = dict(arguments or {})
    source = _source(name)
    try:
        found = source(**given)
    except (TypeError, ValueError) as error:
        raise UsageError(f"data {name}: cannot be loaded with arguments {given}: {error}") from error
    except DataError as error:
        raise DataError(f"data {name}: {error}") from error
    return found if isinstance(found, LabelledData) else _labelled(name, found, given)


def _source(name: str) -> Callable[..., Any]:
    kind, _, place = name.partition(":")
    if name == "digits":
        return _digits
    if kind == "idx" and place:
        return lambda: idx.read_splits(Path(place))
    if kind == "npz" and place:
        return lambda **arguments: _npz(Path(place), **arguments)
    if name in (others := registered(ENTRY_POINTS)):
        return others[name]
    if is_function_name(name):
        return load_function(name)
    known = ", ".join(["digits", "idx:DIR", "npz:FILE", *others, "package.module:function"])
    raise UsageError(f"no data called {name!r}; there are: {known}")


def _digits(test_fraction: float = TEST_FRACTION, split_seed: int = SPLIT_SEED) -> dict[str, Split]:
    with resources.as_file(resources.files("ckpt_probe.data") / "digits.npz") as path, np.load(path) as arrays:
        images, labels = arrays["x"], arrays["y"]
    return _split(images[:, None].astype(np.float32) / 16, labels, test_fraction, split_seed)


def _npz(path: Path, test_fraction: float = TEST_FRACTION, split_seed: int = SPLIT_SEED) -> dict[str, Split]:
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: one array, where an .npz with x and y is needed")
        with opened as arrays:
            held = {name: arrays[name] for name in arrays.files if name[:1] in "xy"}
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not an .npz file of plain arrays ({error})") from error
    if {"x", "y"} <= held.keys():
        return _split(held["x"], held["y"], test_fraction, split_seed)
    names = [name.removeprefix("x_") for name in held if name.startswith("x_") and f"y_{name[2:]}" in held]
    if not names:
        raise DataError(f"{path}: no arrays x and y (or x_train, y_train, …); it holds: {', '.join(held) or 'nothing'}")
    return {name: ArraySplit(held[f"x_{name}"], _whole(path, held[f"y_{name}"])) for name in names}


def _split(inputs: np.ndarray, labels: np.ndarray, fraction: float, seed: int) -> dict[str, Split]:
    train, test = stratified(labels, fraction, seed)
    return {"train": ArraySplit(inputs[train], labels[train]), "test": ArraySplit(inputs[test], labels[test])}


def _whole(path: Path, labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind not in "iu":
        raise DataError(f"{path}: labels must be whole numbers, found {labels.dtype}")
    return labels


def _labelled(name: str, found: Any, arguments: dict[str, Any]) -> LabelledData:
    if not isinstance(found, Mapping) or not found:
        raise DataError(f"data {name}: expected a mapping of splits, found {type(found).__name__}")
    splits = {split: _as_split(name, split, value) for split, value in found.items()}
    empty = [split for split, samples in splits.items() if not len(samples)]
    if empty:
        raise DataError(f"data {name}: split {empty[0]!r} has no sample")
    lowest = min(int(samples.labels.min()) for samples in splits.values())
    if lowest < 0:
        raise DataError(f"data {name}: a label is {lowest}; labels must be at least 0")
    classes = 1 + max(int(samples.labels.max()) for samples in splits.values())
    one, _ = next(iter(splits.values())).batch(slice(0, 1))
    return LabelledData(name, splits, classes, tuple(one.shape[1:]), arguments)


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
