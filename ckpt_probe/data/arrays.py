"""Read arrays of inputs and labels (digits, .npz, idx, HDF5), and choose classes and samples of them."""

import gzip
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.budget import Budget
from ckpt_probe.data.samples import ArraySplit, LabelledData, Split, of_splits, to_model_dtype
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.files import require_regular
from ckpt_probe.hdf5 import CLASS_NAMES, groups_with, native, opened, own_reads, read_names
from ckpt_probe.keywords import whole_argument

Arrays = tuple[dict[str, Split], tuple[str, ...] | None]
"""Splits by name, and names of the first classes (None without names)."""

SPLIT_SEED = 0
TEST_FRACTION = 0.25

INPUTS, LABELS = "inputs", "labels"
"""Names of the datasets of a split in an HDF5 file."""

INTEGERS = "store the numbers of the classes as an integer array (N,)"

BROKEN_ZIP = (zipfile.BadZipFile, zlib.error)

UNSIGNED_BYTE = 0x08
"""Code of the element type in the header of an idx file."""
IDX_PREFIXES = {"train": "train", "test": "t10k"}

CHOICES = ("classes", "per_class", "validation_per_class", "subset_seed")
"""Data arguments of all sources of arrays, the parameters of `choose_samples`."""


def read_digits(test_fraction: float = TEST_FRACTION, split_seed: int = SPLIT_SEED) -> Arrays:
    """Return 1,797 handwritten digits, inputs (1, 8, 8) in [0, 1], in splits train and test.

    Args:
        test_fraction: Fraction of each class in the test split.
        split_seed: Seed of the division.
    """
    with resources.as_file(resources.files("ckpt_probe.data") / "digits.npz") as path, np.load(path) as arrays:
        images, labels = arrays["x"], arrays["y"]
    return _divided(images[:, None].astype(np.float32) / 16, labels, test_fraction, split_seed), None


def read_npz(path: Path, test_fraction: float = TEST_FRACTION, split_seed: int = SPLIT_SEED) -> Arrays:
    """Read arrays x and y, which are divided like the digits, or x_train, y_train, x_test, y_test, …; and class_names.

    Raises:
        DataError: If the file is not an archive of such arrays, or they do not fit each other.
    """
    require_regular(path)
    try:
        opened_file = np.load(path, allow_pickle=False)
        if not isinstance(opened_file, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: a single array; expected an .npz file with arrays x and y")
        with opened_file as archive:
            present = archive.files
            names = [name for name in present if name.partition("_")[0] in ("x", "y") or name == CLASS_NAMES]
            zipped: Any = archive.zip
            sizes = {member.filename.removesuffix(".npy"): member.file_size for member in zipped.infolist()}
            if len(sizes) < len(zipped.infolist()):
                raise ValueError("two members have one name")
            # The data are in memory twice: as arrays and as splits.
            budget = Budget(path, path.stat().st_size)
            budget.spend(2 * sum(sizes[name] for name in names), len(sizes))
            arrays = {name: archive[name] for name in names}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("a member is no array")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, TypeError, ValueError, EOFError, RuntimeError, MemoryError, *BROKEN_ZIP) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path}: not an .npz file of plain arrays ({reason})") from error
    names = _class_names(path, arrays.pop(CLASS_NAMES, None), budget)
    split_names = [name.removeprefix("x_") for name in arrays if name.startswith("x_") and f"y_{name[2:]}" in arrays]
    if {"x", "y"} <= arrays.keys():
        if split_names:
            ambiguous = f"x and y beside x_{split_names[0]} and y_{split_names[0]}"
            raise DataError(f"{path}: {ambiguous}; call them x_train and y_train, or remove them")
        return _divided(arrays["x"], _labels(path, arrays, "x", "y"), test_fraction, split_seed), names
    if not split_names:
        raise DataError(f"{path}: no arrays x and y (or x_train, y_train, …); found: {listed(present) or 'none'}")
    labels = {name: _labels(path, arrays, f"x_{name}", f"y_{name}") for name in split_names}
    return {name: ArraySplit(arrays[f"x_{name}"], labels[name]) for name in split_names}, names


def read_idx(directory: Path) -> Arrays:
    """Read splits train and test of a directory in the format of MNIST, plain or gzipped: images (N, 1, H, W), uint8.

    One of the two splits may be absent.

    Raises:
        DataError: If a file is missing or damaged, or images and labels differ in number.
    """
    splits: dict[str, Split] = {}
    for split, prefix in IDX_PREFIXES.items():
        pair = [_find_idx_file(directory, f"{prefix}-{part}-ubyte") for part in ("images-idx3", "labels-idx1")]
        missing = [path for path in pair if not path.is_file()]
        if len(missing) == 1:
            raise DataError(f"{directory}: neither {missing[0].name} nor {missing[0].name}.gz exists")
        if missing:
            continue
        images, labels = _read_idx_file(pair[0], 3), _read_idx_file(pair[1], 1)
        if len(images) != len(labels):
            raise DataError(f"{directory}: {prefix} has {len(images)} images but {len(labels)} labels")
        splits[split] = ArraySplit(images[:, None].copy(), labels.astype(np.int64))
    if not splits:
        images = " nor ".join(f"{prefix}-images-idx3-ubyte" for prefix in IDX_PREFIXES.values())
        raise DataError(f"{directory}: neither {images}, plain or as .gz")
    return splits, None


def read_h5(path: Path) -> Arrays:
    """Open the splits of an HDF5 file, and read the names of its classes from a dataset `class_names`.

    Each group with `inputs` and `labels` is a split; if they are at the root, the split has the name of the file.

    Raises:
        DataError: If no group has both, they do not fit each other, or the file links to other files.
    """
    with opened(path) as file, own_reads(path):
        names = file.get(CLASS_NAMES)
        groups = groups_with(file, INPUTS, LABELS)
        if not groups:
            raise DataError(f"{path}: no arrays {INPUTS} and {LABELS}, at its root or in a group for each split")
        if len(groups) > 1 and "" in groups:
            ambiguous = f"{INPUTS} and {LABELS} at the root beside those in {list(groups)[1]}"
            raise DataError(f"{path}: {ambiguous}; move them to a group")
        splits: dict[str, Split] = {name or path.stem: _open_h5_split(path, group) for name, group in groups.items()}
        return splits, None if names is None else read_names(path, names)


class StoredSplit:
    """A split whose inputs stay in an HDF5 file until they are read; batches are converted as by `ArraySplit`.

    Args:
        path: The file.
        inputs: Name of the dataset of inputs, shape (N, …).
        labels: Labels, shape (N,), int64.
    """

    def __init__(self, path: Path, inputs: str, labels: Tensor) -> None:
        self._path = path
        self._inputs = inputs
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Read inputs, shape (n, …), and labels, shape (n,), of samples by index.

        Raises:
            DataError: If they cannot be read.
        """
        return to_model_dtype(self._read(indices)), self.labels[indices]

    def in_memory(self) -> ArraySplit:
        """Read all inputs and return the split in memory."""
        return ArraySplit(self._read(slice(None)), self.labels)

    def _read(self, indices: Tensor | slice) -> Tensor:
        # The file is opened for each batch, because processes cannot share an open file and a split is never closed.
        with opened(self._path) as file, own_reads(self._path, self._inputs):
            dataset: Any = file[self._inputs]
            if isinstance(indices, slice):
                return torch.from_numpy(native(dataset[indices]))
            # HDF5 reads rows in increasing order and each row once.
            rows, back = np.unique(indices.numpy(), return_inverse=True)
            return torch.from_numpy(native(dataset[rows])[back])


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
    whole_argument("subset_seed", subset_seed, 0)
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


def stratified(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide samples at random into two parts with the same fraction of every class.

    Args:
        labels: Label of each sample, shape (N,).
        fraction: Fraction of each class in the second part.
        seed: Seed of the random choice.

    Returns:
        Sorted indices of the first and of the second part.

    Raises:
        DataError: If the fraction is not between 0 and 1.
    """
    if not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise DataError(f"test_fraction: expected a number between 0 and 1, found {fraction!r}")
    generator = np.random.default_rng(whole_argument("split_seed", seed, 0))
    second = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        second[generator.permutation(members)[: round(fraction * len(members))]] = True
    return np.flatnonzero(~second), np.flatnonzero(second)


def _divided(inputs: np.ndarray, labels: np.ndarray, fraction: float, seed: int) -> dict[str, Split]:
    train, test = stratified(labels, fraction, seed)
    complete = ArraySplit(inputs, labels)
    return {"train": complete.part(train), "test": complete.part(test)}


def _labels(path: Path, arrays: Mapping[str, np.ndarray], inputs: str, labels: str) -> np.ndarray:
    """Return the labels (n,) of n inputs; raise DataError if they are not one integer for each input."""
    values, shape = arrays[labels], arrays[inputs].shape
    if values.dtype.kind not in "iu":
        raise DataError(f"{path}: {labels}: {INTEGERS}, found {values.dtype}")
    if values.ndim != 1 or values.shape != shape[:1]:
        raise DataError(f"{path}: {labels} has shape {values.shape}; expected one label per row of {inputs} {shape}")
    return values


def _class_names(path: Path, names: np.ndarray | None, budget: Budget) -> tuple[str, ...] | None:
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(f"{path}: {CLASS_NAMES} must be strings (C,), found {names.shape} of {names.dtype}")
    # A text of no characters takes no space in a file.
    budget.spend(entries=len(names), cause=f"{CLASS_NAMES}: ")
    return tuple(str(name) for name in names)


def _read_idx_file(path: Path, dimensions: int) -> np.ndarray:
    """Read an idx file of unsigned bytes; raise DataError if its header and its size do not agree."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, UNSIGNED_BYTE, dimensions]):
                raise DataError(f"{path}: not an idx file of unsigned bytes with {dimensions} dimensions")
            shape = [int.from_bytes(header[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
            size = math.prod(shape)
            if path.suffix != ".gz" and size > path.stat().st_size:
                raise DataError(f"{path}: the header promises {size} bytes, more than a file of this size can contain")
            # The content is in memory twice: as bytes and as an array.
            Budget(path, path.stat().st_size).spend(2 * size)
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if len(content) != size:
        more = "more" if len(content) > size else f"{len(content)}"
        raise DataError(f"{path}: the header promises {size} bytes of data, but the file has {more}; copy it again")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _find_idx_file(directory: Path, name: str) -> Path:
    """Return the path of a file in the spelling that exists, else the usual one."""
    spellings = (name, f"{name}.gz", name.replace("-idx", ".idx"), f"{name.replace('-idx', '.idx')}.gz")
    return next((path for spelling in spellings if (path := directory / spelling).is_file()), directory / name)


def _open_h5_split(path: Path, group: Any) -> StoredSplit:
    inputs, labels = group[INPUTS], group[LABELS]
    where = f"{path}: {group.name.strip('/')}".rstrip(": ")
    if not (hasattr(inputs, "shape") and hasattr(labels, "shape")):
        raise DataError(f"{where}: {INPUTS} or {LABELS} is no dataset")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{where}: {LABELS}: {INTEGERS}, found {labels.shape} of {labels.dtype}")
    if inputs.ndim < 2 or inputs.shape[:1] != labels.shape:
        raise DataError(f"{where}: {INPUTS} have shape {inputs.shape}; expected (N, …) for {LABELS} {labels.shape}")
    Budget(path, path.stat().st_size).spend(8 * len(labels), cause=f"{LABELS}: ")
    return StoredSplit(path, inputs.name, torch.from_numpy(native(labels[()]).astype(np.int64)))


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
    counts = {"per_class": training, "validation_per_class": validation}
    wanted = {name: whole_argument(name, count, 1) for name, count in counts.items() if count is not None}
    if "train" not in splits:
        raise UsageError(f"per_class: no split 'train'; there are: {', '.join(splits)}")
    if validation and "validation" in splits:
        raise UsageError("validation_per_class: the data have a split 'validation' already")
    train = splits["train"]
    labels = train.labels.numpy()
    first, last = torch.zeros(len(labels), dtype=torch.bool), torch.zeros(len(labels), dtype=torch.bool)
    for label in classes:
        members = np.flatnonzero(labels == label)
        # At least one sample remains for training.
        if len(members) < sum(wanted.values()) + (training is None):
            few = " and ".join(f"{name} = {count}" for name, count in wanted.items())
            raise UsageError(f"{few}: class {label} has {len(members)} samples in split train, which is too few")
        order = torch.from_numpy(np.random.default_rng([seed, label]).permutation(members))
        end = len(order) - (validation or 0)
        first[order[: end if training is None else training]] = True
        last[order[end:]] = True
    chosen = {**splits, "train": train.part(first)}
    return {**chosen, "validation": train.part(last)} if validation else chosen


def _renumbered(split: ArraySplit, classes: Sequence[int]) -> ArraySplit:
    wanted = torch.tensor(classes)
    chosen = split.part(torch.isin(split.labels, wanted))
    order = torch.argsort(wanted)
    return ArraySplit(chosen.inputs, order[torch.searchsorted(wanted[order], chosen.labels)])
