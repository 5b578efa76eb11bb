"""Write a dump block by block; the file is marked as complete at the end, and then renamed to its name."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ckpt_probe.dumps import schema
from ckpt_probe.dumps.integrity import structure_hash
from ckpt_probe.dumps.schema import Provenance
from ckpt_probe.dumps.sink import Sink
from ckpt_probe.errors import DataError
from ckpt_probe.files import replacing
from ckpt_probe.hdf5 import CLASS_NAMES
from ckpt_probe.moments.quality import Scored

CHUNK_BYTES = 2**20


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
        self._dtype = feature_dtype
        self._overwrite = overwrite
        self._announced: dict[str, int | None] = {}
        self._written: dict[str, int] = {}
        self._rows_of: dict[str, dict[str, Any]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "DumpWriter":
        temporary = self._stack.enter_context(replacing(self.path, overwrite=self._overwrite))
        try:
            self._sink = self._stack.enter_context(Sink(temporary))
            self._file = self._stack.enter_context(h5py.File(self._sink, "w", libver=("v110", "v110")))
            self._start()
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._stack.__exit__(type(error), error, error.__traceback__)
            return
        try:
            self._require_complete()
            self._attribute("structure_sha256", structure_hash(self._file))
            self._file.attrs["complete"] = True
            self._file.close()
            self._sink.require_written(self.path)
        except BaseException as failure:
            self._stack.__exit__(type(failure), failure, None)
            raise
        self._stack.close()

    def write_classifier(self, weights: Any, bias: Any = None) -> None:
        """Write the classifier's weights (C, D) and its bias (C,), if it has one."""
        group = self._file.create_group(schema.CLASSIFIER)
        dataset = _create(group, schema.WEIGHTS, _numpy(weights))
        if dataset.shape != (self._classes, self._features):
            raise DataError(
                f"{self.path}: classifier weights have shape {dataset.shape}, not the (classes, features) given"
            )
        self._label(dataset, schema.CLASS_SCALE, schema.FEATURE_SCALE)
        if bias is not None:
            self._label(_create(group, schema.BIAS, _numpy(bias)), schema.CLASS_SCALE)

    def write_class_names(self, names: Sequence[str]) -> None:
        """Write names of the first classes into the group of the classifier."""
        texts = [name.encode() for name in names]
        kind = h5py.string_dtype("utf-8", max(1, *map(len, texts)))
        dataset = _create(self._file.require_group(schema.CLASSIFIER), CLASS_NAMES, np.array(texts, dtype=kind))
        if len(texts) == self._classes:
            self._label(dataset, schema.CLASS_SCALE)

    def leave_out(self, name: str, count: int) -> None:
        """Reduce the number of rows announced for a split by `count`, whose samples could not be read."""
        if not count:
            return
        self._file[name].attrs["unreadable"] = count
        announced = self._announced.get(name)
        if announced is not None:
            self._announced[name] = announced - count
            self._resize(name, announced - count)

    def start_split(
        self,
        name: str,
        samples: int | None = None,
        *,
        logits: bool = True,
        scored: bool = False,
        labelled: bool = True,
    ) -> None:
        """Create a split.

        Args:
            name: Name of the split.
            samples: Number of rows that will be appended; None if it is not known yet.
            logits: Whether logits are stored, unless `scored`.
            scored: Whether prediction and loss of each row are stored in place of logits.
            labelled: Whether labels are stored.

        Raises:
            DataError: If a split cannot have this name (`require_split_name`).
        """
        schema.require_split_name(name)
        group = self._file.require_group(name)
        features = self._start_rows(group, samples, self._features, labelled=labelled)
        self._label(features, None, schema.FEATURE_SCALE)
        if logits and not scored:
            scores = self._rows(group, schema.LOGITS, samples, self._classes, "float32")
            scores.dims[0].attach_scale(group[schema.SAMPLE_SCALE])
            self._label(scores, None, schema.CLASS_SCALE)
        if scored:
            for array, kind in ((schema.PREDICTION, np.int32), *(((schema.LOSS, np.float32),) if labelled else ())):
                self._single(group, array, samples, kind)
        if not labelled:
            group.attrs[schema.UNLABELLED] = True

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
        if not labelled:
            group.attrs[schema.UNLABELLED] = True
        if width is not None:
            features = self._start_rows(group, None, width, labelled=labelled)
            scale = _create(group, schema.FEATURE_SCALE, np.arange(width, dtype=np.int64))
            scale.make_scale(schema.FEATURE_SCALE)
            features.dims[1].attach_scale(scale)
        return path

    def write_similarity(self, split: str, indices: Any, seed: int, rows: Mapping[str, Any]) -> None:
        """Write the rows that are stored of every layer for comparisons.

        Args:
            split: Name of the split.
            indices: Indices of the rows, shape (R,).
            seed: Seed by which they were drawn.
            rows: Rows of each layer by its name, shape (R, D).

        Raises:
            DataError: If a value is too large for the stored precision.
        """
        group = self._file.create_group(f"{split}/{schema.SIMILARITY}")
        _create(group, schema.INDICES, _numpy(indices))
        group.attrs[schema.SEED] = seed
        for layer, values in rows.items():
            path = schema.layer_place(split, layer)
            _create(self._file[path], schema.SIMILARITY_ROWS, as_stored(values, self._dtype, f"{self.path}: {path}"))

    def count_not_stored(self, name: str, count: int) -> None:
        """Write how many rows of a split were forwarded but not stored."""
        self._file[name].attrs[schema.NOT_STORED] = count

    def write_moments(
        self, name: str, state: Mapping[str, Any], numbers: Mapping[str, float], *, labelled: bool = True
    ) -> None:
        """Write class moments of a split or a layer.

        Args:
            name: Name of the split, or of the group that `start_layer` returned.
            state: Arrays by name.
            numbers: Numbers stored as attributes.
            labelled: Whether rows have labels; otherwise the moments are those of one class.
        """
        schema.require_split_name(name.partition("/")[0])
        split = self._file.require_group(name)
        if not labelled:
            split.attrs[schema.UNLABELLED] = True
        group = split.create_group(schema.MOMENTS)
        for part, values in state.items():
            _create(group, part, _numpy(values))
        group.attrs.update(numbers)

    def append(self, name: str, features: Any, labels: Any, scores: Any = None) -> None:
        """Add a block of rows to a split.

        Args:
            name: Name of the split, or of the group that `start_layer` returned.
            features: Features, shape (n, D).
            labels: Class indices, shape (n,).
            scores: Logits (n, C), or prediction and loss of each row, as announced.

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
        arrays = {schema.LABELS: labels, schema.LOGITS: scores}
        if isinstance(scores, Scored):
            arrays |= {schema.PREDICTION: scores.prediction, schema.LOSS: scores.loss}
        for array, dataset in self._rows_of[name].items():
            if array == schema.FEATURES:
                dataset[start:stop] = as_stored(features, self._dtype, f"{self.path}: {name}")
            elif array != schema.SAMPLE_SCALE:
                dataset[start:stop] = _numpy(arrays[array])
            elif announced is None:
                dataset[start:stop] = np.arange(start, stop)
        self._written[name] = stop
        self._sink.require_written(self.path)

    def _start(self) -> None:
        stated = {} if self._provenance is None else self._provenance.to_attributes()
        for name, value in {"format": schema.FORMAT, "format_version": schema.FORMAT_VERSION, **stated}.items():
            self._attribute(name, value)
        for name, length in ((schema.FEATURE_SCALE, self._features), (schema.CLASS_SCALE, self._classes)):
            _create(self._file, name, np.arange(length, dtype=np.int64)).make_scale(name)

    def _attribute(self, name: str, value: Any, group: Any = None) -> None:
        # Text of variable length would be stored in a heap without a checksum.
        stored = value.encode() if isinstance(value, str) else value
        kind = h5py.string_dtype("utf-8", max(1, len(stored))) if isinstance(stored, bytes) else None
        (self._file if group is None else group).attrs.create(name, stored, dtype=kind)

    def _start_rows(self, group: Any, samples: int | None, width: int, *, labelled: bool = True) -> Any:
        """Create datasets for features (N, D) and labels (N,), with their scale; return that of the features."""
        scale = group.create_dataset(
            schema.SAMPLE_SCALE,
            data=np.arange(samples or 0, dtype=np.int64),
            chunks=_chunks(samples, 8),
            maxshape=_most(samples),
            fletcher32=samples != 0,
        )
        scale.make_scale(schema.SAMPLE_SCALE)
        path = group.name.removeprefix("/")
        self._announced[path], self._written[path] = samples, 0
        self._rows_of[path] = {schema.SAMPLE_SCALE: scale}
        features = self._rows(group, schema.FEATURES, samples, width, self._dtype)
        features.dims[0].attach_scale(scale)
        if labelled:
            self._single(group, schema.LABELS, samples, np.int64)
        return features

    def _single(self, group: Any, name: str, samples: int | None, kind: Any) -> None:
        """Create a dataset with one number per row, shape (N,)."""
        rows = {"chunks": _chunks(samples, np.dtype(kind).itemsize), "maxshape": _most(samples)}
        dataset = group.create_dataset(name, shape=(samples or 0,), dtype=kind, fletcher32=samples != 0, **rows)
        dataset.dims[0].attach_scale(group[schema.SAMPLE_SCALE])
        self._rows_of[group.name.removeprefix("/")][name] = dataset

    def _rows(self, group: Any, name: str, samples: int | None, width: int, dtype: str) -> Any:
        rows = _chunks(samples, width * np.dtype(dtype).itemsize)
        dataset = group.create_dataset(
            name,
            shape=(samples or 0, width),
            dtype=dtype,
            chunks=None if rows is None else (rows[0], width),
            maxshape=None if samples is not None else (None, width),
            fletcher32=samples != 0,
        )
        self._rows_of[group.name.removeprefix("/")][name] = dataset
        return dataset

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
    values = _numpy(features)
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
            f"store them with --feature-dtype {wider}"
        )
    return stored


def _create(group: Any, name: str, values: np.ndarray) -> Any:
    """Create a dataset with its values and a checksum."""
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


def _chunks(samples: int | None, row_bytes: int) -> tuple[int] | None:
    rows = max(1, CHUNK_BYTES // max(1, row_bytes))
    if samples is None:
        return (rows,)
    return (min(samples, rows),) if samples else None


def _most(samples: int | None) -> tuple[int | None] | None:
    return (None,) if samples is None else None


def _numpy(values: Any) -> np.ndarray:
    # Neither HDF5 nor numpy has bfloat16: such tensors are stored as float32, which is exact.
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        return values.numpy()
    return np.asarray(values)
