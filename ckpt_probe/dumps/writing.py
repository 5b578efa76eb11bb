"""Write a dump block by block; the file is marked as complete at the end, and then renamed to its name."""

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ckpt_probe.dumps import schema
from ckpt_probe.dumps.schema import Provenance
from ckpt_probe.errors import DataError
from ckpt_probe.files import interrupts_delayed, replacing
from ckpt_probe.hdf5 import CLASS_NAMES, SAMPLE_NAMES, structure_hash
from ckpt_probe.moments.quality import Scored

CHUNK_BYTES = 2**20
"""Largest size of a chunk, unless one row is larger."""


class Sink(io.FileIO):
    """A file for h5py that remembers the first write error and then ignores further writes.

    HDF5 writes late, when a dataset or the file is closed, tries again at the end of the process, and crashes if that
    fails too. So it never sees the error: `DumpWriter` raises it, and abandons the dump.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`, or nothing after a failure; return its size in both cases."""
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            while self.failure is None and view:
                view = view[super().write(view) or 0 :]
        except OSError as error:
            self.failure = error
        return size

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the file, with zeros for bytes that could not be written."""
        view = memoryview(buffer).cast("B")
        count = super().readinto(view) or 0
        if self.failure is not None:
            view[count:] = bytes(len(view) - count)
            return len(view)
        return count

    def truncate(self, size: int | None = None) -> int:
        """Change the size of the file, unless there is no space for that; return the new size in both cases."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0

    def flush(self) -> None:
        """Do nothing: the file is unbuffered."""


class DumpWriter:
    """Write one HDF5 dump; the file gets its name when everything announced is in it.

        with DumpWriter(path, provenance, classes=10, features=128) as writer:
            writer.write_classifier(weights, bias)
            writer.start_split("test", samples=450)
            writer.append("test", features, labels, logits)     # blocks of rows, numpy or CPU tensors

    Args:
        path: File to write.
        provenance: Origin of the numbers, if it is known.
        classes: Number of classes C.
        features: Number of features D.
        feature_dtype: Precision of stored features: one of `FEATURE_DTYPES`.
        overwrite: Whether to replace an existing file.

    Raises:
        UsageError: If the file exists and `overwrite` is false.
        DataError: If it cannot be written, or gets fewer or more rows than announced.
    """

    def __init__(
        self,
        path: Path | str,
        provenance: Provenance | None,
        *,
        classes: int,
        features: int,
        feature_dtype: str = "float32",
        overwrite: bool = False,
    ) -> None:
        if feature_dtype not in schema.FEATURE_DTYPES:
            raise DataError(f"features can be stored as {', '.join(schema.FEATURE_DTYPES)}, not as {feature_dtype}")
        self.path = Path(path)
        self._provenance = provenance
        self._classes = classes
        self._features = features
        self.feature_dtype = feature_dtype
        self._overwrite = overwrite
        self._announced: dict[str, int | None] = {}
        self._written: dict[str, int] = {}
        self._rows_of: dict[str, dict[str, Any]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "DumpWriter":
        try:
            with interrupts_delayed():
                temporary = self._stack.enter_context(replacing(self.path, overwrite=self._overwrite))
                self._sink = self._stack.enter_context(Sink(temporary, "w+"))
                self._file = self._stack.enter_context(h5py.File(self._sink, "w", libver=("v110", "v110")))
                self._start()
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._leave(error)
            return
        try:
            with interrupts_delayed():
                self._require_complete()
                self._attribute("structure_sha256", structure_hash(self._file))
                self._file.attrs["complete"] = True
                self._file.close()
                self._require_written()
                self._stack.close()
        except BaseException as failure:
            self._leave(failure)
            raise

    @interrupts_delayed()
    def _leave(self, error: BaseException) -> None:
        """Close and remove the unfinished file."""
        self._stack.__exit__(type(error), error, error.__traceback__)

    @interrupts_delayed()
    def write_classifier(self, weights: Any, bias: Any = None) -> None:
        """Write the classifier's weights (C, D) and its bias (C,), if it has one."""
        group = self._file.create_group(schema.CLASSIFIER)
        dataset = create_array(group, schema.WEIGHTS, weights)
        if dataset.shape != (self._classes, self._features):
            raise DataError(
                f"{self.path}: classifier weights have shape {dataset.shape}, not the (classes, features) given"
            )
        self._label(dataset, schema.CLASS_SCALE, schema.FEATURE_SCALE)
        if bias is not None:
            self._label(create_array(group, schema.BIAS, bias), schema.CLASS_SCALE)

    @interrupts_delayed()
    def write_class_names(self, names: Sequence[str]) -> None:
        """Write names of the first classes into the group of the classifier."""
        dataset = create_texts(self._file.require_group(schema.CLASSIFIER), CLASS_NAMES, names)
        if len(names) == self._classes:
            self._label(dataset, schema.CLASS_SCALE)

    @interrupts_delayed()
    def write_sample_names(self, split: str, names: Sequence[str]) -> None:
        """Write the names of the samples of all rows of a split."""
        create_texts(self._file[split], SAMPLE_NAMES, names)

    @interrupts_delayed()
    def leave_out(self, name: str, count: int) -> None:
        """Reduce the number of rows announced for a split by `count`, whose samples could not be read."""
        self._file[name].attrs["unreadable"] = count
        announced = self._announced.get(name)
        if announced is not None:
            self._announced[name] = announced - count
            self._resize(name, announced - count)

    @interrupts_delayed()
    def start_split(
        self,
        name: str,
        samples: int | None = None,
        *,
        logits: bool = True,
        scored: bool = False,
        labelled: bool = True,
        documents: bool = False,
        positions: bool = False,
    ) -> None:
        """Create a split.

        Args:
            name: Name of the split.
            samples: Number of rows that will be appended; None if it is not known yet.
            logits: Whether logits are stored, unless `scored`.
            scored: Whether prediction, confidence and loss of each row are stored in place of logits.
            labelled: Whether labels are stored.
            documents: Whether the document of each row is stored.
            positions: Whether the position of each row in its document is stored.

        Raises:
            DataError: If a split cannot have this name (`require_split_name`).
        """
        schema.require_split_name(name)
        group = self._file.require_group(name)
        arrays: list[tuple[str, int | None, Any, bool]] = [
            (schema.LOGITS, self._classes, np.float32, logits and not scored),
            (schema.PREDICTION, None, np.int32, scored),
            (schema.CONFIDENCE, None, np.float32, scored),
            (schema.LOSS, None, np.float32, scored and labelled),
            (schema.DOCUMENTS, None, np.int64, documents),
            (schema.POSITIONS, None, np.int64, positions),
        ]
        kinds = {array: (columns, dtype) for array, columns, dtype, stored in arrays if stored}
        datasets = self._start_rows(group, samples, self._features, labelled, kinds)
        self._label(datasets[schema.FEATURES], None, schema.FEATURE_SCALE)
        if schema.LOGITS in datasets:
            self._label(datasets[schema.LOGITS], None, schema.CLASS_SCALE)

    @interrupts_delayed()
    def start_layer(
        self,
        split: str,
        layer: str,
        *,
        depth: float,
        pooling: str,
        width: int | None = None,
        labelled: bool = True,
    ) -> str:
        """Create a layer of a split.

        Args:
            split: Name of the split.
            layer: Name of the layer.
            depth: Position among the layers, 0 … 1.
            pooling: Name of the method by which activations become rows.
            width: Number of features, if rows will be appended.
            labelled: Whether labels are stored.

        Returns:
            The group's name, to be passed to `append` and `write_moments` like the name of a split.

        Raises:
            DataError: If a layer cannot have this name.
        """
        if layer in {"", "."} or "/" in layer or "\0" in layer:
            raise DataError(f"{self.path}: layer {layer!r}: not a name that a dump can hold")
        path = schema.layer_place(split, layer)
        group = self._file.create_group(path)
        group.attrs[schema.DEPTH] = float(depth)
        self._attribute(schema.POOLING, pooling, group)
        if width is not None:
            features = self._start_rows(group, None, width, labelled, {})[schema.FEATURES]
            scale = create_array(group, schema.FEATURE_SCALE, np.arange(width, dtype=np.int64))
            scale.make_scale(schema.FEATURE_SCALE)
            features.dims[1].attach_scale(scale)
        elif not labelled:
            group.attrs[schema.UNLABELLED] = True
        return path

    @interrupts_delayed()
    def write_subset(self, split: str, arrays: Mapping[str, Any], seed: int, layers: Mapping[str, Any]) -> None:
        """Write the fixed subset of rows of a split.

        Args:
            split: Name of the split.
            arrays: Features (R, D), and whole numbers of each row (R,) by name: indices, labels and others.
            seed: Seed by which the rows were drawn.
            layers: Features of the rows in each other layer by its name, shape (R, D).

        Raises:
            DataError: If a value is too large for the stored precision.
        """
        group = self._file.require_group(split).create_group(schema.SUBSET)
        features = as_stored(arrays[schema.FEATURES], self.feature_dtype, f"{self.path}: {split}")
        create_arrays(group, {**arrays, schema.FEATURES: features})
        group.attrs[schema.SEED] = seed
        for layer, values in layers.items():
            path = schema.layer_place(split, layer)
            rows = as_stored(values, self.feature_dtype, f"{self.path}: {path}")
            create_array(self._file[path], schema.SUBSET_ROWS, rows)

    @interrupts_delayed()
    def count_not_stored(self, name: str, count: int) -> None:
        """Write how many rows of a split were forwarded but not stored."""
        self._file[name].attrs[schema.NOT_STORED] = count

    @interrupts_delayed()
    def write_moments(
        self, name: str, state: Mapping[str, Any], numbers: Mapping[str, Any], *, labelled: bool = True
    ) -> None:
        """Write class moments of a split or a layer.

        Args:
            name: Name of the split, or of the group that `start_layer` returned.
            state: Arrays by name, those of a half with its name and a point before theirs; the subset is left out.
            numbers: Numbers stored as attributes.
            labelled: Whether rows have labels; otherwise the moments are those of one class.
        """
        schema.require_split_name(name.partition("/")[0])
        split = self._file.require_group(name)
        if not labelled:
            split.attrs[schema.UNLABELLED] = True
        group = split.create_group(schema.MOMENTS)
        create_arrays(group, {part: v for part, v in state.items() if not part.startswith(f"{schema.SUBSET}.")})
        group.attrs.update(numbers)

    @interrupts_delayed()
    def write_documents(self, name: str, numbers: Mapping[str, Any], oversized: int) -> None:
        """Write numbers of the documents of a split or a layer.

        Args:
            name: Name of the split, or of the group that `start_layer` returned.
            numbers: Numbers of each document by name, shape (K,) each.
            oversized: Number of documents whose rows did not fit into the memory limit.
        """
        group = self._file.require_group(name).create_group(schema.BY_DOCUMENT)
        create_arrays(group, numbers)
        group.attrs[schema.OVERSIZED] = oversized

    @interrupts_delayed()
    def append(
        self, name: str, features: Any, labels: Any, scores: Any = None, documents: Any = None, positions: Any = None
    ) -> np.ndarray:
        """Add a block of rows to a split.

        Args:
            name: Name of the split, or of the group that `start_layer` returned.
            features: Features, shape (n, D).
            labels: Class indices, shape (n,).
            scores: Logits (n, C), or `Scored`, as announced.
            documents: Index of the document of each row, shape (n,), as announced.
            positions: Position of each row in its document, shape (n,), as announced.

        Returns:
            The features as they are stored, shape (n, D).

        Raises:
            DataError: If a feature is too large for the stored precision.
        """
        start = self._written[name]
        stop = start + len(labels)
        announced = self._announced[name]
        if announced is None:
            self._resize(name, stop)
        elif stop > announced:
            raise DataError(f"{self.path}: split {name} got more rows than the {announced} announced")
        arrays = {schema.SAMPLE_SCALE: np.arange(start, stop), schema.LABELS: labels}
        arrays |= {schema.LOGITS: scores, schema.DOCUMENTS: documents, schema.POSITIONS: positions}
        if isinstance(scores, Scored):
            confidence = np.full(len(labels), np.nan) if scores.confidence is None else scores.confidence
            arrays |= {schema.PREDICTION: scores.prediction, schema.LOSS: scores.loss, schema.CONFIDENCE: confidence}
        stored = as_stored(features, self.feature_dtype, f"{self.path}: {name}")
        for array, dataset in self._rows_of[name].items():
            dataset[start:stop] = stored if array == schema.FEATURES else to_numpy(arrays[array])
        self._written[name] = stop
        self._require_written()
        return stored

    def _start(self) -> None:
        stated = {} if self._provenance is None else self._provenance.to_attributes()
        for name, value in {"format": schema.FORMAT, "format_version": schema.FORMAT_VERSION, **stated}.items():
            self._attribute(name, value)
        for name, length in ((schema.FEATURE_SCALE, self._features), (schema.CLASS_SCALE, self._classes)):
            create_array(self._file, name, np.arange(length, dtype=np.int64)).make_scale(name)

    def _attribute(self, name: str, value: Any, group: Any = None) -> None:
        # Text of variable length would be stored in a heap without a checksum.
        stored = value.encode() if isinstance(value, str) else value
        kind = h5py.string_dtype("utf-8", max(1, len(stored))) if isinstance(stored, bytes) else None
        (self._file if group is None else group).attrs.create(name, stored, dtype=kind)

    def _start_rows(
        self, group: Any, samples: int | None, width: int, labelled: bool, arrays: Mapping[str, tuple[int | None, Any]]
    ) -> dict[str, Any]:
        """Create datasets with one entry per row, with checksums and a scale of the rows, to be filled later.

        Args:
            group: Group of the datasets.
            samples: Number of rows; None if it is not known, and the datasets grow.
            width: Number of features.
            labelled: Whether labels are stored.
            arrays: Number of columns, None for a single number per row, and type of further arrays by name.

        Returns:
            The datasets by name, the scale first.
        """
        kinds = {schema.SAMPLE_SCALE: (None, np.int64), schema.FEATURES: (width, self.feature_dtype)}
        kinds |= {schema.LABELS: (None, np.int64)} if labelled else {}
        if not labelled:
            group.attrs[schema.UNLABELLED] = True
        datasets: dict[str, Any] = {}
        for name, (columns, dtype) in {**kinds, **arrays}.items():
            shape = () if columns is None else (columns,)
            rows = max(1, CHUNK_BYTES // max(1, math.prod(shape) * np.dtype(dtype).itemsize))
            datasets[name] = group.create_dataset(
                name,
                shape=(samples or 0, *shape),
                dtype=dtype,
                chunks=None if samples == 0 else (rows if samples is None else min(samples, rows), *shape),
                maxshape=(None, *shape) if samples is None else None,
                fletcher32=samples != 0,
            )
            if name == schema.SAMPLE_SCALE:
                datasets[name].make_scale(schema.SAMPLE_SCALE)
            else:
                datasets[name].dims[0].attach_scale(datasets[schema.SAMPLE_SCALE])
        path = group.name.removeprefix("/")
        self._announced[path], self._written[path], self._rows_of[path] = samples, 0, datasets
        return datasets

    def _require_written(self) -> None:
        if self._sink.failure is not None:
            raise DataError(f"{self.path}: cannot be written: {self._sink.failure.strerror}") from self._sink.failure

    def _resize(self, name: str, rows: int) -> None:
        for dataset in self._rows_of[name].values():
            dataset.resize(rows, axis=0)

    def _label(self, dataset: Any, *scales: str | None) -> None:
        for dimension, scale in enumerate(scales):
            if scale is not None:
                dataset.dims[dimension].attach_scale(self._file[scale])

    def _require_complete(self) -> None:
        for name, announced in self._announced.items():
            if announced is not None and self._written[name] != announced:
                raise DataError(
                    f"{self.path}: split {name} got {self._written[name]} rows, but {announced} were announced"
                )


def as_stored(features: Any, dtype: str, where: str) -> np.ndarray:
    """Round features to the precision in which they are stored.

    Args:
        features: Numbers of any shape, numpy or torch.
        dtype: One of `FEATURE_DTYPES`.
        where: Beginning of the error message.

    Raises:
        DataError: If a finite number becomes infinite.
    """
    values = to_numpy(features)
    if np.can_cast(values.dtype, dtype):
        return values.astype(dtype, copy=False)
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    overflowed = np.isinf(stored) & np.isfinite(values)
    if overflowed.any():
        largest, most = np.abs(values[overflowed]).max(), np.finfo(dtype).max
        wider = schema.FEATURE_DTYPES[schema.FEATURE_DTYPES.index(dtype) + 1]
        raise DataError(
            f"{where}: features as large as {largest:.6g} overflow {dtype}, whose largest number is {most:.6g}; "
            f"store them with `feature_dtype={wider!r}`"
        )
    return stored


def create_array(group: Any, name: str, values: Any) -> Any:
    """Create a dataset with its values and a checksum."""
    values = to_numpy(values)
    if values.size and values.shape:
        rows = max(1, CHUNK_BYTES // (values.nbytes // len(values)))
        chunks = (min(len(values), rows), *values.shape[1:])
        return group.create_dataset(name, data=values, chunks=chunks, fletcher32=True)
    # A single number or an empty array cannot be chunked: it is stored in the dataset's header, which has a checksum.
    space = h5py.h5s.create_simple(values.shape) if values.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    kind = h5py.h5t.py_create(values.dtype, logical=True)
    dataset = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, dcpl=properties))
    dataset[...] = values
    return dataset


def create_texts(group: Any, name: str, texts: Sequence[str]) -> Any:
    """Create a dataset of texts of one length in UTF-8 with a checksum."""
    encoded = [text.encode("utf-8", "replace") for text in texts]
    kind = h5py.string_dtype("utf-8", max([1, *map(len, encoded)]))
    return create_array(group, name, np.array(encoded, dtype=kind))


def create_arrays(group: Any, arrays: Mapping[str, Any]) -> None:
    """Create datasets with their values and checksums; a point in a name follows that of a group within."""
    for name, values in arrays.items():
        inner, _, array = name.rpartition(".")
        create_array(group.require_group(inner) if inner else group, array, values)


def to_numpy(values: Any) -> np.ndarray:
    """Convert numbers or a tensor to an array on the CPU."""
    # Neither HDF5 nor numpy has bfloat16: such tensors are stored as float32, which is exact.
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        return values.numpy()
    return np.asarray(values)
