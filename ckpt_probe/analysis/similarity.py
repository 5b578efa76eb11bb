"""Compare layers by CKA or MIR: those of one checkpoint, of two models, or one layer between checkpoints."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ckpt_probe.dumps import PENULTIMATE, Dump, SplitView, open_dump, ordered_dumps
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.files import distinct_names
from ckpt_probe.keywords import as_sequence, suggestion
from ckpt_probe.metrics.rows import require_finite
from ckpt_probe.metrics.similarity import CKA, cka, cka_between, cka_matrix, hsic, mir_between
from ckpt_probe.moments.errors.subset import SUBSET_ROWS, RowSubset
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.remote import resolve

MEASURES = {"cka": cka_between, "mir": mir_between}


@dataclass(frozen=True)
class Similarity:
    """Matrix of a measure between representations of the same samples.

    Attributes:
        kind: "layers" of one checkpoint, "steps" of one layer or of predictions, "models" for the layers of two dumps,
            or "runs" for the predictions of several runs.
        measure: "cka" or "mir"; of predictions "disagreement", "divergence" or "error_agreement".
        split: Name of the split.
        rows: Names of the representations in the rows.
        columns: Names of the representations in the columns.
        values: The matrix, None for an undefined value.
        samples: Number of samples that were compared.
        checkpoint: Name of the checkpoint; None for "steps".
        step: Training step of the checkpoint.
        layer: Name of the layer, for "steps".
        other: Name of the second dump, for "models".
    """

    kind: str
    measure: str
    split: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    samples: int
    checkpoint: str | None = None
    step: int | None = None
    layer: str | None = None
    other: str | None = None

    def to_record(self) -> dict[str, Any]:
        """Return the matrix as a record, without the names that are None."""
        names = ("kind", "measure", "split", "checkpoint", "step", "layer", "other")
        identity = {name: value for name in names if (value := getattr(self, name)) is not None}
        values = [list(row) for row in self.values]
        return {**identity, "samples": self.samples, "rows": [*self.rows], "columns": [*self.columns], "values": values}


@dataclass(frozen=True)
class StoredRows:
    """Rows of every layer of a split that a dump stores for comparisons.

    Attributes:
        source: File and split, for messages.
        layers: Rows (R, D) by layer, as they are stored.
        indices: Indices (R,) of the rows in the split.
        samples: Number of samples of the split.
        labels: Labels (R,) of the rows, or None.
    """

    source: str
    layers: dict[str, np.ndarray]
    indices: np.ndarray
    samples: int
    labels: np.ndarray | None

    def thinned(self, most: int) -> "StoredRows":
        """Return at most `most` evenly spaced rows."""
        if len(self.indices) <= most:
            return self
        chosen = np.linspace(0, len(self.indices) - 1, most).round().astype(int)
        layers = {name: rows[chosen] for name, rows in self.layers.items()}
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, layers=layers, indices=self.indices[chosen], labels=labels)

    def of_layers(self, layers: Sequence[str] | None) -> "StoredRows":
        """Return the rows of some layers, all if None; raise DataError for an unknown layer."""
        if layers is None:
            return self
        unknown = [layer for layer in layers if layer not in self.layers]
        if unknown:
            raise DataError(f"{self.source}: no layer {unknown[0]!r}; there are: {listed(list(self.layers), 40)}")
        return replace(self, layers={name: rows for name, rows in self.layers.items() if name in layers})

    def matrices(self) -> dict[str, torch.Tensor]:
        """Return the rows of every layer as float64 tensors."""
        return {layer: _double(rows) for layer, rows in self.layers.items()}

    def require_same(self, other: "StoredRows") -> None:
        """Raise DataError if the rows of another dump belong to other samples."""
        both = f"{self.source} and {other.source}"
        if self.samples != other.samples or not np.array_equal(self.indices, other.indices):
            raise DataError(
                f"{both}: different rows are stored for comparisons ({len(self.indices)} of {self.samples}, "
                f"{len(other.indices)} of {other.samples}); extract both from the same data, with the same "
                "`subset_rows` and `subset_seed`"
            )
        if self.labels is not None and other.labels is not None and not np.array_equal(self.labels, other.labels):
            raise DataError(f"{both}: the stored rows have other labels; extract both from the same data")


def similarity(
    path: Path | str,
    other: Path | str | None = None,
    *,
    splits: str | Sequence[str] | None = None,
    measures: str | Sequence[str] | None = None,
    layers: str | Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Iterator[Similarity]:
    """Compare layers by CKA and MIR on the rows that dumps store for this, split by split.

    The layers of one dump are compared with each other (L × L). For a directory of several dumps, each layer is
    compared between the checkpoints (T × T).

    Args:
        path: A dump, or a directory of dumps.
        other: A second dump of the same data, whose layers are compared with those of the first.
        splits: Names of splits; all if None.
        measures: "cka" and "mir"; both if None, or only "cka" for a directory of several dumps.
        layers: Names of layers; all if None.
        progress: Receives messages and bars.

    Returns:
        The matrices, each computed when the iterator reaches it.

    Raises:
        UsageError: If a measure is unknown, or `other` is used with several dumps.
        DataError: If rows are not stored, or differ between the dumps, or a layer is missing.
    """
    splits, layers, measures = as_sequence(splits), as_sequence(layers), as_sequence(measures)
    dumps = ordered_dumps(resolve(path))
    measures = tuple(measures or (("cka",) if len(dumps) > 1 and other is None else ("cka", "mir")))
    unknown = [name for name in measures if name not in MEASURES]
    if unknown:
        raise UsageError(f"`measures={unknown[0]}`: expected {' or '.join(MEASURES)}{suggestion(unknown[0], MEASURES)}")
    progress = progress or NullProgress()
    if other is None and len(dumps) > 1:
        return _of_series(dumps, splits, measures, layers, progress)
    others = [] if other is None else ordered_dumps(resolve(other))
    several = path if len(dumps) > 1 else other
    if len(dumps) > 1 or len(others) > 1:
        raise UsageError(f"{several}: several dumps; name one of them, to be compared with the other")
    return _of_layers(dumps[0], others[0] if others else None, splits, measures, layers, progress)


# `cp.similarity` was the module of these functions: `cp.similarity.cka(X, Y)` stays valid.
for _function in (CKA, cka, cka_between, cka_matrix, hsic, mir_between):
    setattr(similarity, _function.__name__, _function)


def layer_similarities(
    stored: StoredRows, split: str, measure: str, checkpoint: str | None = None, step: int | None = None
) -> Similarity:
    """Compare the layers of one dump with each other; raise DataError as `similarity`."""
    return _similarity("layers", stored, split, measure, stored.matrices(), checkpoint=checkpoint, step=step)


def step_similarities(
    stored: Sequence[StoredRows], names: Sequence[str], split: str, measure: str, layer: str
) -> Similarity:
    """Compare one layer between the checkpoints of a series.

    Args:
        stored: Stored rows of each checkpoint.
        names: Names of the checkpoints.
        split: Name of the split.
        measure: "cka" or "mir".
        layer: Name of the layer.

    Raises:
        DataError: As `similarity`.
    """
    rows = {name: _double(each.layers[layer]) for name, each in zip(names, stored, strict=True)}
    return _similarity("steps", stored[0], split, measure, rows, layer=layer)


def stored_rows(dump: Dump, split: str) -> StoredRows:
    """Return the rows that an open dump stores for comparisons; raise DataError if they are missing or damaged."""
    view, source = dump[split], f"{dump.path}: {split}"
    subset: dict[str, np.ndarray] = {}
    stored = view.subset_indices()
    if stored is not None:
        indices, subset = stored[0], view.read_subset() or {}
        layers = {layer.name: layer.rows[()] for layer in view.layers if layer.rows is not None}
        layers = layers or ({PENULTIMATE: subset["features"]} if subset else {})
    elif view.features is not None:
        # Dumps of other programs and of earlier versions have no subset; its rows are read from the features.
        indices = _subset_of(view)
        layers = {PENULTIMATE: view.features[indices]}
    else:
        raise DataError(
            f"{source}: no rows to compare are stored; extract again with `layers='all'` and `overwrite=True`"
        )
    samples = view.samples + view.not_stored
    if not layers or (len(indices) and (indices.min() < 0 or indices.max() >= samples)):
        raise DataError(f"{source}: the rows stored for comparisons are missing or damaged; extract again")
    for name, rows in layers.items():
        require_finite(_double(rows), f"{source}: layer {name}")
    labels = subset.get("labels")
    if labels is None and view.labels is not None:
        labels = view.labels[()][indices]
    return StoredRows(source, layers, indices, samples, labels)


def _subset_of(view: SplitView) -> np.ndarray:
    """Return the indices (R,) of the rows that a new dump would keep."""
    labels = torch.zeros(view.samples, dtype=torch.int64)
    if view.labels is not None:
        labels = torch.from_numpy(view.read(view.labels, slice(None)).astype(np.int64))
    subset = RowSubset(SUBSET_ROWS)
    subset.update(torch.empty(len(labels), 0), labels, torch.arange(len(labels)), torch.zeros_like(labels), None)
    return subset.indices.numpy()


def stored_rows_of_series(
    paths: Sequence[Path], split: str, progress: Progress | None = None
) -> tuple[list[StoredRows], list[str]]:
    """Read the rows that the dumps of a series store for comparisons.

    Args:
        paths: Files of the dumps.
        split: Name of the split.
        progress: Receives a message on dumps whose rows cannot be read, which are left out; None for an error.

    Returns:
        The rows of each dump, and the names of the checkpoints: their steps if these are known and distinct.

    Raises:
        DataError: As `similarity`.
    """
    stored, steps, names, failed = [], [], [], list[DataError]()
    for path in paths:
        with open_dump(path) as dump:
            try:
                stored.append(stored_rows(dump, split))
            except DataError as error:
                failed.append(error)
                continue
            steps.append(dump.step)
            names.append(dump.name)
    for error in failed:
        if progress is None or not stored:
            raise error
        progress.message(f"left out: {error}")
    first, *others = stored
    for other in others:
        first.require_same(other)
        if missing := sorted(set(first.layers) ^ set(other.layers)):
            raise DataError(f"{first.source} and {other.source}: layers {listed(missing)} are in only one of them")
    return stored, [str(step) for step in steps] if None not in steps and len(set(steps)) == len(steps) else names


def _of_layers(
    path: Path,
    other: Path | None,
    splits: Sequence[str] | None,
    measures: Sequence[str],
    layers: Sequence[str] | None,
    progress: Progress,
) -> Iterator[Similarity]:
    """Compare the layers of a dump with each other, or with those of another dump."""
    with open_dump(path) as a, nullcontext() if other is None else open_dump(other) as b:
        identity: dict[str, Any] = {"checkpoint": a.name, "step": a.step}
        if other is not None:
            names = distinct_names([path.with_suffix(""), other.with_suffix("")])
            identity = dict(zip(("checkpoint", "other"), names, strict=True))
        common = splits or [split for split in a.splits if b is None or split in b.splits]
        if b is not None and not common:
            raise DataError(f"{path} and {other}: no split in common ({listed(a.splits)}; {listed(b.splits)})")
        for split in common:
            first, columns = stored_rows(a, split), None
            if b is not None:
                second = stored_rows(b, split)
                first.require_same(second)
                columns = second.of_layers(layers).matrices()
            rows, kind = first.of_layers(layers).matrices(), "layers" if columns is None else "models"
            with progress.task(f"{a.name} {split}", len(measures), "matrices") as bar:
                for measure in measures:
                    yield _similarity(kind, first, split, measure, rows, columns, **identity)
                    bar.advance()


def _of_series(
    paths: Sequence[Path],
    splits: Sequence[str] | None,
    measures: Sequence[str],
    layers: Sequence[str] | None,
    progress: Progress,
) -> Iterator[Similarity]:
    with open_dump(paths[0]) as dump:
        all_splits = list(splits or dump.splits)
    for split in all_splits:
        stored, names = stored_rows_of_series(paths, split, progress)
        chosen = list(stored[0].of_layers(layers).layers)
        with progress.task(split, len(chosen), "layers") as bar:
            for layer in chosen:
                for measure in measures:
                    yield step_similarities(stored, names, split, measure, layer)
                bar.advance()


def _similarity(
    kind: str,
    stored: StoredRows,
    split: str,
    measure: str,
    rows: Mapping[str, torch.Tensor],
    columns: Mapping[str, torch.Tensor] | None = None,
    **identity: Any,
) -> Similarity:
    others = None if columns is None else list(columns.values())
    try:
        matrix = MEASURES[measure](list(rows.values()), others).tolist()
    except DataError as error:
        raise DataError(f"{stored.source}: {error}") from error
    values = tuple(tuple(None if math.isnan(value) else value for value in row) for row in matrix)
    names = tuple(rows if columns is None else columns)
    return Similarity(kind, measure, split, tuple(rows), names, values, len(stored.indices), **identity)


def _double(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows)).to(torch.float64)
