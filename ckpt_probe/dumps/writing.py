"""Writing a dump block by block; the mark that it is complete is written last, and its name after that."""

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
    """Writes one HDF5 dump; the file has its name only once everything announced is in it.

        with DumpWriter(path, provenance, classes=10, features=128) as writer:
            writer.write_classifier(weights, bias)
            writer.start_split("test", samples=450)
            writer.append("test", features, labels, logits)     # blocks of rows, numpy or CPU tensors

    Raises UsageError where the file exists and `overwrite` is false; DataError where it cannot be written, or holds
    fewer or more rows than announced.
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
            self._require_whole()
            self._attribute("structure_sha256", structure_hash(self._file))
            self._file.attrs["complete"] = True
            self._file.close()
            self._sink.require_written(self.path)
        except BaseException as failure:
            self._stack.__exit__(type(failure), failure, None)
            raise
        self._stack.close()

    def write_classifier(self, weights: Any, bias: Any = None) -> None:
        """The classifier's weights (C, D) and, where the layer has one, its bias (C,)."""
        group = self._file.create_group(schema.CLASSIFIER)
        dataset = _kept(group, schema.WEIGHTS, _numpy(weights))
        if dataset.shape != (self._classes, self._features):
            raise DataError(
                f"{self.path}: classifier weights have shape {dataset.shape}, not the (classes, features) given"
            )
        self._label(dataset, schema.CLASS_SCALE, schema.FEATURE_SCALE)
        if bias is not None:
            self._label(_kept(group, schema.BIAS, _numpy(bias)), schema.CLASS_SCALE)

    def write_class_names(self, names: Sequence[str]) -> None:
        """Names of the first classes, beside the classifier."""
        texts = [name.encode() for name in names]
        kind = h5py.string_dtype("utf-8", max(1, *map(len, texts)))
        dataset = _kept(self._file.require_group(schema.CLASSIFIER), CLASS_NAMES, np.array(texts, dtype=kind))
        if len(texts) == self._classes:
            self._label(dataset, schema.CLASS_SCALE)

    def leave_out(self, name: str, count: int) -> None:
        """Take back so many of the rows that were announced for a split: their samples could not be read."""
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
        """Announce a split and the number of rows that will be appended to it; None where that is not known yet.

        What comes with each row: logits, or prediction and loss in their place (`scored`), or neither; a label unless
        not `labelled`. Raises DataError where a split cannot be called so (`require_split_name`).
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
        """Announce a layer of a split, of `width` features where its rows are to be appended; the place to do so.

        The place takes what a split's name takes, in `append`, and in `write_moments`. Raises DataError where a layer
        cannot be called so.
        """
        if layer in {"", "."} or "/" in layer or "\0" in layer:
            raise DataError(f"{self.path}: layer {layer!r}: not a name that a dump can hold")
        place = schema.layer_place(split, layer)
        group = self._file.create_group(place)
        group.attrs[schema.DEPTH] = float(depth)
        self._attribute(schema.POOLING, pooling, group)
        if not labelled:
            group.attrs[schema.UNLABELLED] = True
        if width is not None:
            features = self._start_rows(group, None, width, labelled=labelled)
            scale = _kept(group, schema.FEATURE_SCALE, np.arange(width, dtype=np.int64))
            scale.make_scale(schema.FEATURE_SCALE)
            features.dims[1].attach_scale(scale)
        return place

    def write_similarity(self, split: str, indices: Any, seed: int, rows: Mapping[str, Any]) -> None:
        """Which rows of a split are kept of every layer, indices (R,), and these rows by layer, (R, D) each.

        Raises DataError where they are too large for the precision in which features are stored.
        """
        group = self._file.create_group(f"{split}/{schema.SIMILARITY}")
        _kept(group, schema.INDICES, _numpy(indices))
        group.attrs[schema.SEED] = seed
        for layer, values in rows.items():
            place = schema.layer_place(split, layer)
            _kept(self._file[place], schema.SIMILARITY_ROWS, as_stored(values, self._dtype, f"{self.path}: {place}"))

    def count_not_stored(self, name: str, count: int) -> None:
        """Put down how many rows of a split were seen and are not in it."""
        self._file[name].attrs[schema.NOT_STORED] = count

    def write_moments(
        self, name: str, state: Mapping[str, Any], numbers: Mapping[str, float], *, labelled: bool = True
    ) -> None:
        """Class moments of a split, or of a layer, arrays by name, and single numbers beside them as attributes.

        Without labels they are those of one class.
        """
        schema.require_split_name(name.partition("/")[0])
        split = self._file.require_group(name)
        if not labelled:
            split.attrs[schema.UNLABELLED] = True
        group = split.create_group(schema.MOMENTS)
        for part, values in state.items():
            _kept(group, part, _numpy(values))
        group.attrs.update(numbers)

    def append(self, name: str, features: Any, labels: Any, scores: Any = None) -> None:
        """Add a block of rows to a split: features (n, D), labels (n,), and the scores that were announced.

        Raises DataError where features are too large for the precision in which they are stored.
        """
        start = self._written[name]
        stop = start + len(labels)
        announced = self._announced[name]
        if announced is None:
            self._resize(name, stop)
        elif stop > announced:
            raise DataError(f"{self.path}: split {name} got more rows than the {announced} announced")
        found = {schema.LABELS: labels, schema.LOGITS: scores}
        if isinstance(scores, Scored):
            found |= {schema.PREDICTION: scores.prediction, schema.LOSS: scores.loss}
        for array, dataset in self._rows_of[name].items():
            if array == schema.FEATURES:
                dataset[start:stop] = as_stored(features, self._dtype, f"{self.path}: {name}")
            elif array != schema.SAMPLE_SCALE:
                dataset[start:stop] = _numpy(found[array])
            elif announced is None:
                dataset[start:stop] = np.arange(start, stop)
        self._written[name] = stop
        self._sink.require_written(self.path)

    def _start(self) -> None:
        stated = {} if self._provenance is None else self._provenance.to_attributes()
        for name, value in {"format": schema.FORMAT, "format_version": schema.FORMAT_VERSION, **stated}.items():
            self._attribute(name, value)
        for name, length in ((schema.FEATURE_SCALE, self._features), (schema.CLASS_SCALE, self._classes)):
            _kept(self._file, name, np.arange(length, dtype=np.int64)).make_scale(name)

    def _attribute(self, name: str, value: Any, group: Any = None) -> None:
        # Text of variable length would lie in a heap that has no checksum.
        stored = value.encode() if isinstance(value, str) else value
        kind = h5py.string_dtype("utf-8", max(1, len(stored))) if isinstance(stored, bytes) else None
        (self._file if group is None else group).attrs.create(name, stored, dtype=kind)

    def _start_rows(self, group: Any, samples: int | None, width: int, *, labelled: bool = True) -> Any:
        """Features (N, D) and, where there are some, labels (N,) to come, with their scale; the features."""
        scale = group.create_dataset(
            schema.SAMPLE_SCALE,
            data=np.arange(samples or 0, dtype=np.int64),
            chunks=_chunks(samples, 8),
            maxshape=_most(samples),
            fletcher32=samples != 0,
        )
        scale.make_scale(schema.SAMPLE_SCALE)
        place = group.name.removeprefix("/")
        self._announced[place], self._written[place] = samples, 0
        self._rows_of[place] = {schema.SAMPLE_SCALE: scale}
        features = self._rows(group, schema.FEATURES, samples, width, self._dtype)
        features.dims[0].attach_scale(scale)
        if labelled:
            self._single(group, schema.LABELS, samples, np.int64)
        return features

    def _single(self, group: Any, name: str, samples: int | None, kind: Any) -> None:
        """One number of each row to come, (N,)."""
        rows = {"chunks": _chunks(samples, np.dtype(kind).itemsize), "maxshape": _most(samples)}
        held = group.create_dataset(name, shape=(samples or 0,), dtype=kind, fletcher32=samples != 0, **rows)
        held.dims[0].attach_scale(group[schema.SAMPLE_SCALE])
        self._rows_of[group.name.removeprefix("/")][name] = held

    def _rows(self, group: Any, name: str, samples: int | None, width: int, dtype: str) -> Any:
        rows = _chunks(samples, width * np.dtype(dtype).itemsize)
        held = group.create_dataset(
            name,
            shape=(samples or 0, width),
            dtype=dtype,
            chunks=None if rows is None else (rows[0], width),
            maxshape=None if samples is not None else (None, width),
            fletcher32=samples != 0,
        )
        self._rows_of[group.name.removeprefix("/")][name] = held
        return held

    def _resize(self, place: str, rows: int) -> None:
        for dataset in self._rows_of[place].values():
            dataset.resize(rows, axis=0)

    def _label(self, dataset: Any, *scales: str | None) -> None:
        for dimension, scale in enumerate(scales):
            if scale is not None:
                dataset.dims[dimension].attach_scale(self._file[scale])

    def _require_whole(self) -> None:
        for name, announced in self._announced.items():
            if announced is not None and self._written[name] != announced:
                raise DataError(
                    f"{self.path}: split {name} got {self._written[name]} rows, but {announced} were announced"
                )


def as_stored(features: Any, dtype: str, where: str) -> np.ndarray:
    """Features in the precision in which a dump keeps them.

    Raises DataError, opening with `where`, where finite ones become infinite in it.
    """
    given = _numpy(features)
    if np.can_cast(given.dtype, dtype):
        return given.astype(dtype, copy=False)
    with np.errstate(over="ignore"):
        stored = given.astype(dtype)
    lost = np.isinf(stored) & np.isfinite(given)
    if lost.any():
        largest, most = np.abs(given[lost]).max(), np.finfo(dtype).max
        wider = schema.FEATURE_DTYPES[schema.FEATURE_DTYPES.index(dtype) + 1]
        raise DataError(
            f"{where}: features as large as {largest:.6g} overflow {dtype}, whose largest number is {most:.6g}; "
            f"store them with --feature-dtype {wider}"
        )
    return stored


def _kept(group: Any, name: str, values: np.ndarray) -> Any:
    """A dataset of values that are all there, under a checksum."""
    if values.size and values.shape:
        rows = max(1, CHUNK_BYTES // (values.nbytes // len(values)))
        chunks = (min(len(values), rows), *values.shape[1:])
        return group.create_dataset(name, data=values, chunks=chunks, fletcher32=True)
    # One number, or none, has no chunks: it is kept in the dataset's header, which has a checksum of its own.
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
    # HDF5 has no bfloat16, and numpy neither: such tensors are stored as float32, which holds them exactly.
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        return values.numpy()
    return np.asarray(values)
