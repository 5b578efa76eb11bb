"""Archives of numpy arrays: the digits that come with us, and anybody's .npz file."""

import zipfile
import zlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_probe.data.arrays.held import Held
from ckpt_probe.data.samples import ArraySplit, stratified
from ckpt_probe.errors import DataError
from ckpt_probe.files import require_regular

UNCHECKED_BYTES = 2**30
"""Up to here an array may be compressed as far as it likes."""
LARGEST_RATIO = 1000
SPLIT_SEED = 0
TEST_FRACTION = 0.25
CLASS_NAMES = "class_names"
"""The array of names of classes."""


def read_digits(test_fraction: float = TEST_FRACTION, split_seed: int = SPLIT_SEED) -> Held:
    """1,797 handwritten digits, inputs (1, 8, 8) in [0, 1], parted into train and test."""
    with resources.as_file(resources.files("ckpt_probe.data.arrays") / "digits.npz") as path, np.load(path) as arrays:
        images, labels = arrays["x"], arrays["y"]
    return Held(_split(images[:, None].astype(np.float32) / 16, labels, test_fraction, split_seed))


def read_npz(path: Path, test_fraction: float = TEST_FRACTION, split_seed: int = SPLIT_SEED) -> Held:
    """Arrays x and y, parted as the digits are, or x_train, y_train, x_test, y_test, …; perhaps class_names.

    Raises DataError where the file is none, or its arrays do not fit each other.
    """
    require_regular(path)
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: a single array; expected an .npz file with arrays x and y")
        with opened as arrays:
            _require_plain(path, arrays)
            held = {name: arrays[name] for name in arrays.files if name[:1] in "xy" or name == CLASS_NAMES}
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not an .npz file of plain arrays ({error})") from error
    names = _class_names(path, held.pop(CLASS_NAMES, None))
    if {"x", "y"} <= held.keys():
        return Held(_split(held["x"], whole_labels(path, held, "x", "y"), test_fraction, split_seed), names)
    found = [name.removeprefix("x_") for name in held if name.startswith("x_") and f"y_{name[2:]}" in held]
    if not found:
        raise DataError(f"{path}: no arrays x and y (or x_train, y_train, …); found: {', '.join(held) or 'none'}")
    splits = {name: (held[f"x_{name}"], whole_labels(path, held, f"x_{name}", f"y_{name}")) for name in found}
    return Held({name: ArraySplit(*arrays) for name, arrays in splits.items()}, names)


def _split(inputs: np.ndarray, labels: np.ndarray, fraction: float, seed: int) -> dict[str, ArraySplit]:
    train, test = stratified(labels, fraction, seed)
    return {"train": ArraySplit(inputs[train], labels[train]), "test": ArraySplit(inputs[test], labels[test])}


def _require_plain(path: Path, arrays: Any) -> None:
    """Raise DataError where an archive of a few bytes unpacks to gigabytes."""
    for member in arrays.zip.infolist():
        if member.file_size > UNCHECKED_BYTES and member.file_size > LARGEST_RATIO * member.compress_size:
            raise DataError(
                f"{path}: {member.filename}: unpacks to {member.file_size:,} bytes from only {member.compress_size:,}; "
                "save it with numpy.savez, which does not compress"
            )


def whole_labels(path: Path, held: Mapping[str, np.ndarray], inputs: str, labels: str) -> np.ndarray:
    """The labels (n,) of n inputs, by their names in the file. Raises DataError where they are no such labels."""
    found, shape = held[labels], held[inputs].shape
    if found.dtype.kind not in "iu":
        raise DataError(f"{path}: labels must be integers, found {found.dtype}")
    if found.ndim != 1 or found.shape != shape[:1]:
        raise DataError(f"{path}: {labels} has shape {found.shape}; expected one label per row of {inputs} {shape}")
    return found


def _class_names(path: Path, found: np.ndarray | None) -> tuple[str, ...] | None:
    if found is None:
        return None
    if found.ndim != 1 or found.dtype.kind != "U":
        raise DataError(f"{path}: {CLASS_NAMES} must be strings (C,), found {found.shape} of {found.dtype}")
    return tuple(str(name) for name in found)
