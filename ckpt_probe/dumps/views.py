"""Provide access to one split of an open dump, and to one layer of a split; arrays are read when they are sliced."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ckpt_probe.dumps import schema
from ckpt_probe.errors import DataError
from ckpt_probe.hdf5 import SAMPLE_NAMES, native, own_reads, read_arrays, read_names
from ckpt_probe.moments.quality import Scored

StoredBlock = tuple[np.ndarray, np.ndarray, np.ndarray | Scored | None]


class StoredArray:
    """An array on disk: `array[:100]` reads 100 rows; `dataset` is the underlying h5py dataset.

    Slicing raises DataError, naming file and array, if the bytes cannot be read, and h5py's error for a bad index.
    """

    def __init__(self, path: Path, dataset: h5py.Dataset) -> None:
        self.dataset = dataset
        self.shape, self.ndim, self.dtype = dataset.shape, dataset.ndim, dataset.dtype
        self._path = path

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.dataset[index]
        except (OSError, RuntimeError, MemoryError) as error:
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            name = str(self.dataset.name).removeprefix("/")
            raise DataError(f"{self._path}: {name}: cannot be read, it may be damaged: {cause}") from error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[()], dtype=dtype)


class SplitView:
    """One split of an open dump; its arrays stay on disk until they are sliced, and are None if they were not stored.

    Attributes:
        name: Name of the split.
        features: Inputs of the classifier, shape (N, D).
        labels: Class indices, shape (N,).
        logits: Outputs of the classifier, shape (N, C).
        prediction: Predicted classes, shape (N,), stored in place of logits.
        loss: Cross-entropy of each row in nats, shape (N,), stored in place of logits.
        confidence: Largest probability of each row, shape (N,), stored in place of logits.
        documents: Index of the document of each row, shape (N,); rows of other documents do not depend on it.
        positions: Position of each row in its document, shape (N,).
        labelled: Whether rows have labels.
        not_stored: Number of rows that were forwarded but not stored.
        unreadable: Number of samples that could not be read, and have no row.
    """

    def __init__(self, path: Path, name: str, group: Any) -> None:
        self.name = name
        self._path = path
        self._group = group
        stored = {array: group.get(array) for array in schema.OF_ROWS}
        self._rows = {array: StoredArray(path, dataset) for array, dataset in stored.items() if dataset is not None}
        arrays = self._rows
        # Features and labels are None if only moments were stored.
        self.features: Any = arrays.get(schema.FEATURES)
        self.labels: Any = arrays.get(schema.LABELS)
        self.logits = arrays.get(schema.LOGITS)
        self.prediction = arrays.get(schema.PREDICTION)
        self.loss = arrays.get(schema.LOSS)
        self.confidence = arrays.get(schema.CONFIDENCE)
        self.documents = arrays.get(schema.DOCUMENTS)
        self.positions = arrays.get(schema.POSITIONS)
        self.labelled = not bool(group.attrs.get(schema.UNLABELLED, False))
        self.not_stored = int(group.attrs.get(schema.NOT_STORED, 0))
        self.unreadable = int(group.attrs.get("unreadable", 0))
        self._subset = group.get(schema.SUBSET)
        self._moments = group.get(schema.MOMENTS)
        self._by_document = group.get(schema.BY_DOCUMENT)

    @cached_property
    def layers(self) -> "list[LayerView]":
        """Stored layers, including the penultimate one, in execution order; often an empty list."""
        if schema.LAYERS not in self._group:
            return []
        with own_reads(self._path, self.name):
            groups = dict(self._group[schema.LAYERS])
            layers = (LayerView(self._path, name, group, self._group) for name, group in groups.items())
            return sorted(layers, key=lambda layer: (layer.depth, layer.name))

    def sample_names(self) -> tuple[str, ...] | None:
        """Return the names of the samples of the rows, such as files in the folder of the split, or None.

        Raises:
            DataError: If they are no texts, or not one for each row.
        """
        stored = self._group.get(SAMPLE_NAMES)
        if stored is None or self.features is None:
            return None
        names = read_names(self._path, stored, f"{self.name}/{SAMPLE_NAMES}")
        if len(names) != self.samples:
            rows = f"{len(names)} names for {self.samples} rows"
            raise DataError(f"{self._path}: {self.name}/{SAMPLE_NAMES}: {rows}; extract again")
        return names

    def subset_indices(self) -> tuple[np.ndarray, int] | None:
        """Return the indices of the rows of the fixed subset, shape (R,), and its seed, or None without a subset."""
        for name in (schema.SUBSET, schema.EARLIER_SUBSET):
            subset = self._group.get(name)
            if subset is not None:
                with own_reads(self._path, f"{self.name}/{name}"):
                    return native(np.asarray(subset[schema.INDICES])), int(subset.attrs[schema.SEED])
        return None

    def read_subset(self) -> dict[str, np.ndarray] | None:
        """Return the features of the fixed subset, shape (R, D), and numbers of its rows, shape (R,), by name, or None.

        Raises:
            DataError: If they cannot be read.
        """
        if self._subset is None:
            return None
        return read_arrays(self._path, f"{self.name}/{schema.SUBSET}", self._subset)

    @property
    def samples(self) -> int:
        """Number of rows N."""
        if self.features is not None:
            return self.features.shape[0]
        with own_reads(self._path):
            return int(self._moments["counts"][()].sum())

    @property
    def dimension(self) -> int:
        """Number of features D."""
        return (self.features if self.features is not None else self._moments["means"]).shape[1]

    def blocks(
        self, rows: int, start: int = 0, stop: int | None = None, *, scores: bool = True
    ) -> Iterator[StoredBlock]:
        """Yield features (n, D), labels (n,) and scores in blocks, in order and in the byte order of this machine.

        Labels are −1 if none are stored. Scores are logits (n, C), or prediction and loss of each row, or None.

        Args:
            rows: Largest number of rows of a block.
            start: First row.
            stop: Row after the last one; None for the end.
            scores: Whether to read scores.

        Raises:
            DataError: If the rows cannot be read.
        """
        names = (schema.FEATURES, schema.LABELS, *(schema.SCORES if scores else ()))
        stored = {name: array.dataset for name, array in self._rows.items() if name in names}
        end = self.samples if stop is None else min(stop, self.samples)
        for first in range(start, end, rows):
            part = slice(first, min(first + rows, end))
            arrays = read_arrays(self._path, f"{self.name}, rows {first} to {part.stop - 1}", stored, part)
            features = arrays[schema.FEATURES]
            labels = arrays.get(schema.LABELS, np.full(len(features), -1))
            known: np.ndarray | Scored | None = arrays.get(schema.LOGITS)
            if schema.PREDICTION in arrays and schema.LOSS in arrays:
                known = Scored(arrays[schema.PREDICTION], arrays[schema.LOSS], arrays.get(schema.CONFIDENCE))
            yield features, labels, known

    def read(self, array: Any, part: Any) -> np.ndarray:
        """Return part of one of the `arrays` in the byte order of this machine.

        Raises:
            DataError: If it cannot be read.
        """
        with own_reads(self._path, self.name):
            return native(np.asarray(array[part]))

    def arrays(self) -> dict[str, Any]:
        """Return every stored array, unread, by its name below the split."""
        arrays: dict[str, Any] = {**self._rows}
        for part in (schema.MOMENTS, schema.BY_DOCUMENT, schema.SUBSET, schema.EARLIER_SUBSET):
            arrays |= {f"{part}/{name}": array for name, array in datasets_in(self._group.get(part)).items()}
        for layer in self.layers:
            rows = (schema.SUBSET_ROWS, schema.EARLIER_ROWS)
            members = {name: layer._group[name] for name in rows if name in layer._group}
            members |= layer.arrays() if layer.stored else {}
            arrays |= {f"{schema.LAYERS}/{layer.name}/{name}": array for name, array in members.items()}
        if isinstance(self._group.get(SAMPLE_NAMES), h5py.Dataset):
            arrays[SAMPLE_NAMES] = self._group[SAMPLE_NAMES]
        return arrays

    def verify(self, rows: int = 4096) -> Iterator[tuple[bool, str | None]]:
        """Read every stored array; yield for each whether it has a checksum, and an error message or None."""
        for name, array in self.arrays().items():
            dataset: Any = getattr(array, "dataset", array)
            # A compact dataset is stored in its header, which has a checksum from version 2 on.
            checked = dataset.fletcher32 or dataset.id.get_create_plist().get_layout() == h5py.h5d.COMPACT
            try:
                for start in range(0, len(dataset) if dataset.shape else 1, rows):
                    with own_reads(self._path, f"{self.name}/{name}"):
                        dataset[start : start + rows] if dataset.shape else dataset[()]
            except DataError as error:
                yield checked, str(error)
            else:
                yield checked, None

    def read_moments(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return class moments as arrays by name, and the numbers stored beside them, or None if there are no moments.

        The names of the arrays are those of `Moments.state_dict`, with the subset of rows and the halves.

        Raises:
            DataError: If they cannot be read.
        """
        if self._moments is None:
            return None
        where = f"{self.name}/{schema.MOMENTS}"
        with own_reads(self._path, where):
            stored = {name.replace("/", "."): dataset for name, dataset in datasets_in(self._moments).items()}
            arrays = read_arrays(self._path, where, stored)
            numbers = {name: np.asarray(value).tolist() for name, value in self._moments.attrs.items()}
        subset = self.read_subset() or {}
        return {**arrays, **{f"{schema.SUBSET}.{name}": values for name, values in subset.items()}}, numbers

    def read_documents(self) -> tuple[dict[str, np.ndarray], int] | None:
        """Return numbers of each document by name, shape (K,), and how many have none because of their size, or None.

        Raises:
            DataError: If they cannot be read.
        """
        if self._by_document is None:
            return None
        arrays = read_arrays(self._path, f"{self.name}/{schema.BY_DOCUMENT}", self._by_document)
        return arrays, int(self._by_document.attrs.get(schema.OVERSIZED, 0))


@dataclass(frozen=True)
class Pass:
    """A function that starts a new pass over a split; its fields are the arguments of `SplitView.blocks`."""

    view: SplitView
    rows: int
    start: int = 0
    stop: int | None = None
    scores: bool = True

    def __call__(self) -> Iterator[StoredBlock]:
        return self.view.blocks(self.rows, self.start, self.stop, scores=self.scores)

    def documents(self, start: int, stop: int) -> np.ndarray | None:
        """Return the documents (n,) of the rows `start` … `stop` of the split, or None if rows have none."""
        documents = self.view.documents
        return None if documents is None else self.view.read(documents, slice(start, stop))

    def without_scores(self) -> "Pass":
        """Return a pass that does not read scores, which may be far larger than the features."""
        return replace(self, scores=False)


class LayerView(SplitView):
    """A layer of a split: features and labels, or moments, like the split itself, or neither.

    Attributes:
        depth: Position among the layers, 0 … 1.
        pooling: Name of the method by which activations become rows.
        rows: Rows of the fixed subset, shape (R, D), or None.
    """

    def __init__(self, path: Path, name: str, group: Any, split: Any) -> None:
        super().__init__(path, name, group)
        self._subset = split.get(schema.SUBSET)
        self.depth = float(group.attrs[schema.DEPTH])
        self.pooling = str(schema.text(group.attrs[schema.POOLING]))
        rows = group.get(schema.SUBSET_ROWS, group.get(schema.EARLIER_ROWS))
        if name == schema.PENULTIMATE and rows is None and self._subset is not None:
            rows = self._subset.get(schema.FEATURES)
        self.rows = None if rows is None else StoredArray(path, rows)

    @property
    def stored(self) -> bool:
        """Return whether features or moments are stored."""
        return self.features is not None or self._moments is not None

    def read_subset(self) -> dict[str, np.ndarray] | None:
        """Return the features of the fixed subset in this layer, and the numbers of its rows, by name, or None.

        Raises:
            DataError: If they cannot be read.
        """
        subset = super().read_subset()
        return None if subset is None or self.rows is None else {**subset, schema.FEATURES: native(self.rows[()])}


def datasets_in(group: Any) -> dict[str, h5py.Dataset]:
    """Return the datasets in a group and in the groups within it, by their path from the group; {} without a group."""
    datasets: dict[str, h5py.Dataset] = {}
    for name, member in (group or {}).items():
        nested = datasets_in(member) if isinstance(member, h5py.Group) else {"": member}
        datasets |= {f"{name}/{path}".rstrip("/"): dataset for path, dataset in nested.items()}
    return datasets
