"""Writing a dump block by block; the mark that it is complete is written last, and its name after that."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ckpt_probe.dumps import schema
from ckpt_probe.dumps.schema import Provenance
from ckpt_probe.errors import DataError
from ckpt_probe.files import replacing

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
            raise DataError(f"features are stored as {', '.join(schema.FEATURE_DTYPES)}, not as {feature_dtype}")
        self.path = Path(path)
        self._provenance = provenance
        self._classes = classes
        self._features = features
        self._dtype = feature_dtype
        self._overwrite = overwrite
        self._announced: dict[str, int] = {}
        self._written: dict[str, int] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "DumpWriter":
        temporary = self._stack.enter_context(replacing(self.path, overwrite=self._overwrite))
        try:
            self._file = self._stack.enter_context(h5py.File(temporary, "w", libver=("earliest", "v110")))
            self._start()
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            error = self._unfinished()
            if error is None:
                self._file.attrs["complete"] = True
                self._stack.close()
                return
            self._stack.__exit__(type(error), error, None)
            raise error
        self._stack.__exit__(type(error), error, error.__traceback__)

    def write_classifier(self, weights: Any, bias: Any = None) -> None:
        """The classifier's weights (C, D) and, where the layer has one, its bias (C,)."""
        group = self._file.create_group(schema.CLASSIFIER)
        dataset = group.create_dataset(schema.WEIGHTS, data=_numpy(weights))
        if dataset.shape != (self._classes, self._features):
            raise DataError(f"{self.path}: classifier weights of shape {dataset.shape}, announced otherwise")
        self._label(dataset, schema.CLASS_SCALE, schema.FEATURE_SCALE)
        if bias is not None:
            self._label(group.create_dataset(schema.BIAS, data=_numpy(bias)), schema.CLASS_SCALE)

    def start_split(self, name: str, samples: int, *, logits: bool = True) -> None:
        """Announce a split and the number of rows that will be appended to it."""
        group = self._file.create_group(name)
        scale = group.create_dataset(schema.SAMPLE_SCALE, data=np.arange(samples, dtype=np.int64))
        scale.make_scale(schema.SAMPLE_SCALE)
        features = self._rows(group, schema.FEATURES, samples, self._features, self._dtype)
        labels = group.create_dataset(schema.LABELS, shape=(samples,), dtype=np.int64)
        features.dims[0].attach_scale(scale)
        labels.dims[0].attach_scale(scale)
        self._label(features, None, schema.FEATURE_SCALE)
        if logits:
            scores = self._rows(group, schema.LOGITS, samples, self._classes, "float32")
            scores.dims[0].attach_scale(scale)
            self._label(scores, None, schema.CLASS_SCALE)
        self._announced[name], self._written[name] = samples, 0

    def append(self, name: str, features: Any, labels: Any, logits: Any = None) -> None:
        """Add a block of rows to a split: features (n, D), labels (n,), logits (n, C) where they were announced."""
        start = self._written[name]
        stop = start + len(labels)
        if stop > self._announced[name]:
            raise DataError(f"{self.path}: split {name} holds more rows than the {self._announced[name]} announced")
        group: Any = self._file[name]
        group[schema.FEATURES][start:stop] = _numpy(features)
        group[schema.LABELS][start:stop] = _numpy(labels)
        if schema.LOGITS in group:
            group[schema.LOGITS][start:stop] = _numpy(logits)
        self._written[name] = stop

    def _start(self) -> None:
        self._file.attrs["format"] = schema.FORMAT
        self._file.attrs["format_version"] = schema.FORMAT_VERSION
        if self._provenance is not None:
            self._file.attrs.update(self._provenance.to_attributes())
        for name, length in ((schema.FEATURE_SCALE, self._features), (schema.CLASS_SCALE, self._classes)):
            self._file.create_dataset(name, data=np.arange(length, dtype=np.int64)).make_scale(name)

    def _rows(self, group: Any, name: str, samples: int, width: int, dtype: str) -> Any:
        row_bytes = max(1, width * np.dtype(dtype).itemsize)
        rows = min(samples, max(1, CHUNK_BYTES // row_bytes))
        chunks = (rows, width) if rows else None
        return group.create_dataset(name, shape=(samples, width), dtype=dtype, chunks=chunks)

    def _label(self, dataset: Any, *scales: str | None) -> None:
        for dimension, scale in enumerate(scales):
            if scale is not None:
                dataset.dims[dimension].attach_scale(self._file[scale])

    def _unfinished(self) -> DataError | None:
        for name, announced in self._announced.items():
            if self._written[name] != announced:
                return DataError(
                    f"{self.path}: split {name} got {self._written[name]} rows, {announced} were announced"
                )
        return None


def _numpy(values: Any) -> np.ndarray:
    # HDF5 has no bfloat16, and numpy neither: such tensors are stored as float32, which holds them exactly.
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        return values.numpy()
    return np.asarray(values)
