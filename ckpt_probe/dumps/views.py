"""One split of an open dump, and one layer of a split: arrays that stay on disk until they are sliced."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ckpt_probe.dumps import schema
from ckpt_probe.dumps.stored import StoredArray
from ckpt_probe.errors import DataError
from ckpt_probe.hdf5 import native, own_reads
from ckpt_probe.moments.quality import Scored

Block = tuple[np.ndarray, np.ndarray, np.ndarray | Scored | None]


class SplitView:
    """One split of an open dump; its arrays stay on disk until they are sliced. None where they were not stored."""

    def __init__(self, path: Path, name: str, group: Any) -> None:
        self.name = name
        self._path = path
        self._group = group
        stored = {array: group.get(array) for array in schema.OF_ROWS}
        found = {array: StoredArray(path, dataset) for array, dataset in stored.items() if dataset is not None}
        # Features and labels are None where only moments were stored.
        self.features: Any = found.get(schema.FEATURES)
        self.labels: Any = found.get(schema.LABELS)
        self.logits = found.get(schema.LOGITS)
        self.prediction = found.get(schema.PREDICTION)
        self.loss = found.get(schema.LOSS)
        self.labelled = not bool(group.attrs.get(schema.UNLABELLED, False))
        self.not_stored = int(group.attrs.get(schema.NOT_STORED, 0))
        self._moments = group.get(schema.MOMENTS)

    @property
    def layers(self) -> "list[LayerView]":
        """The layers that are stored beside the penultimate one, and that one, in execution order; often none."""
        with own_reads(self._path, self.name):
            groups = dict(self._group.get(schema.LAYERS, {}))
            return sorted((LayerView(self._path, name, group) for name, group in groups.items()), key=_by_depth)

    def similarity_indices(self) -> tuple[np.ndarray, int] | None:
        """Which rows are kept of every layer to be compared, (R,), and their seed; None where none are."""
        kept = self._group.get(schema.SIMILARITY)
        if kept is None:
            return None
        with own_reads(self._path, f"{self.name}/{schema.SIMILARITY}"):
            return native(np.asarray(kept[schema.INDICES])), int(kept.attrs[schema.SEED])

    @property
    def samples(self) -> int:
        """N, the number of rows."""
        if self.features is not None:
            return self.features.shape[0]
        with own_reads(self._path):
            return int(self._moments["counts"][()].sum())

    @property
    def dimension(self) -> int:
        """D, the number of features."""
        return (self.features if self.features is not None else self._moments["means"]).shape[1]

    def blocks(self, rows: int, start: int = 0, stop: int | None = None, *, scores: bool = True) -> Iterator[Block]:
        """Features (n, D), labels (n,) and scores, at most `rows` rows at a time, in order, from `start` up to `stop`.

        scores: logits (n, C), or prediction and loss of each row, or None, as where they are not asked for; labels: −1
        where there are none. In the byte order of this machine, whatever that of the file is. Raises DataError where
        they cannot be read.
        """
        stored = self._rows() if scores else {k: v for k, v in self._rows().items() if k not in schema.SCORES}
        end = self.samples if stop is None else min(stop, self.samples)
        for first in range(start, end, rows):
            part = slice(first, min(first + rows, end))
            with own_reads(self._path, f"{self.name}, rows {first} to {part.stop - 1}"):
                found = {name: native(array.dataset[part]) for name, array in stored.items()}
            features = found[schema.FEATURES]
            labels = found.get(schema.LABELS, np.full(len(features), -1))
            known: np.ndarray | Scored | None = found.get(schema.LOGITS)
            if schema.PREDICTION in found and schema.LOSS in found:
                known = Scored(found[schema.PREDICTION], found[schema.LOSS])
            yield features, labels, known

    def read(self, array: Any, part: Any) -> np.ndarray:
        """Part of one of the `arrays`, in the byte order of this machine. Raises DataError where it cannot be read."""
        with own_reads(self._path, self.name):
            return native(np.asarray(array[part]))

    def arrays(self) -> dict[str, Any]:
        """Every stored array by its name below the split, unread."""
        found: dict[str, Any] = {**self._rows()}
        found |= {f"{schema.MOMENTS}/{name}": array for name, array in (self._moments or {}).items()}
        for layer in self.layers:
            held = {schema.SIMILARITY_ROWS: layer.rows} if layer.rows is not None else {}
            held |= layer.arrays() if layer.stored else {}
            found |= {f"{schema.LAYERS}/{layer.name}/{name}": array for name, array in held.items()}
        if schema.SIMILARITY in self._group:
            found[f"{schema.SIMILARITY}/{schema.INDICES}"] = self._group[schema.SIMILARITY][schema.INDICES]
        return found

    def _rows(self) -> dict[str, StoredArray]:
        arrays = (self.features, self.labels, self.logits, self.prediction, self.loss)
        return {name: array for name, array in zip(schema.OF_ROWS, arrays, strict=True) if array is not None}

    def verify(self, rows: int = 4096) -> Iterator[tuple[bool, str | None]]:
        """Read every stored array: whether it is under a checksum, and what is wrong with it, None where it is read."""
        for name, array in self.arrays().items():
            dataset: Any = getattr(array, "dataset", array)
            # What has no chunks is kept in its header, which has a checksum from version 2 on.
            checked = dataset.fletcher32 or dataset.id.get_create_plist().get_layout() == h5py.h5d.COMPACT
            try:
                for start in range(0, len(dataset) if dataset.shape else 1, rows):
                    with own_reads(self._path, f"{self.name}/{name}"):
                        dataset[start : start + rows] if dataset.shape else dataset[()]
            except DataError as error:
                yield checked, str(error)
            else:
                yield checked, None

    def read_moments(self) -> tuple[dict[str, np.ndarray], dict[str, float]] | None:
        """Class moments as arrays by name, and the numbers beside them; None where none were stored.

        Raises DataError where they cannot be read.
        """
        if self._moments is None:
            return None
        with own_reads(self._path, f"{self.name}/{schema.MOMENTS}"):
            arrays = {name: native(np.asarray(dataset)) for name, dataset in self._moments.items()}
            return arrays, {name: _number(value) for name, value in self._moments.attrs.items()}


@dataclass(frozen=True)
class Pass:
    """A pass over a split's rows from `start` up to `stop`, made anew whenever it is called; arguments as `blocks`."""

    view: SplitView
    rows: int
    start: int = 0
    stop: int | None = None
    scores: bool = True

    def __call__(self) -> Iterator[Block]:
        return self.view.blocks(self.rows, self.start, self.stop, scores=self.scores)

    def without_scores(self) -> "Pass":
        """The same pass, in which logits, which may be far larger than the features, are not read."""
        return replace(self, scores=False)


class LayerView(SplitView):
    """A layer of a split: features and labels, or moments, as for the split itself, or neither.

    depth: its place among the layers, 0 … 1. rows: those kept to be compared with other layers, (R, D), or None.
    """

    def __init__(self, path: Path, name: str, group: Any) -> None:
        super().__init__(path, name, group)
        self.depth = float(group.attrs[schema.DEPTH])
        self.pooling = str(schema.text(group.attrs[schema.POOLING]))
        kept = group.get(schema.SIMILARITY_ROWS)
        self.rows = None if kept is None else StoredArray(path, kept)

    @property
    def stored(self) -> bool:
        """Whether there is more of it than the rows to be compared."""
        return self.features is not None or self._moments is not None

    @property
    def layers(self) -> "list[LayerView]":
        """None: layers have none of their own."""
        return []


def _by_depth(layer: LayerView) -> tuple[float, str]:
    return layer.depth, layer.name


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
