"""How alike layers are: those of one checkpoint, one layer over the checkpoints of a series, those of two models."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.dumps import PENULTIMATE, Dump, SplitView, open_dump, open_dump_series
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.files import distinct_names
from ckpt_probe.keywords import as_sequence, checked_keywords, suggestion
from ckpt_probe.metrics.similarity import cka_between, mir_between
from ckpt_probe.moments.grouping import SUBSET_ROWS, subset_indices
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.remote import resolve

MEASURES = {"cka": cka_between, "mir": mir_between}


@dataclass(frozen=True)
class Similarity:
    """A measure between some representations of the same rows and others: `values[i][j]`, None where it is undefined.

    kind: "layers" of one checkpoint, "steps" of one layer, or "models", the layers of one dump and of another. samples:
    how many rows were compared.
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
        """As one record, without what does not apply."""
        told = {
            name: getattr(self, name) for name in ("kind", "measure", "split", "checkpoint", "step", "layer", "other")
        }
        values = [list(row) for row in self.values]
        held = {"samples": self.samples, "rows": list(self.rows), "columns": list(self.columns), "values": values}
        return {**{name: value for name, value in told.items() if value is not None}, **held}


@dataclass(frozen=True)
class Kept:
    """The rows that a dump keeps of the layers of a split, (R, D) by layer, which ones they are, and their labels."""

    source: str
    layers: dict[str, np.ndarray]
    indices: np.ndarray
    samples: int
    labels: np.ndarray | None

    def thinned(self, most: int) -> "Kept":
        """At most so many of the rows, evenly from all of them."""
        if len(self.indices) <= most:
            return self
        places = np.linspace(0, len(self.indices) - 1, most).round().astype(int)
        layers = {name: rows[places] for name, rows in self.layers.items()}
        labels = None if self.labels is None else self.labels[places]
        return Kept(self.source, layers, self.indices[places], self.samples, labels)

    def require_same(self, other: "Kept") -> None:
        """Raise DataError where another's rows are those of other samples."""
        both = f"{self.source} and {other.source}"
        if self.samples != other.samples or not np.array_equal(self.indices, other.indices):
            raise DataError(
                f"{both}: different rows were kept to be compared ({len(self.indices)} of {self.samples}, "
                f"{len(other.indices)} of {other.samples}); extract both from the same data, with the same "
                "`similarity_rows` and `similarity_seed`"
            )
        if self.labels is not None and other.labels is not None and not np.array_equal(self.labels, other.labels):
            raise DataError(f"{both}: the rows that were kept have other labels; extract both from the same data")


@checked_keywords
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
    members = open_dump_series(resolve(path))
    asked = tuple(measures or (("cka",) if len(members) > 1 and other is None else ("cka", "mir")))
    unknown = [name for name in asked if name not in MEASURES]
    if unknown:
        raise UsageError(f"`measures={unknown[0]}`: expected {' or '.join(MEASURES)}{suggestion(unknown[0], MEASURES)}")
    progress = progress or NullProgress()
    if other is None and len(members) > 1:
        return _of_series([member.path for member in members], splits, asked, layers, progress)
    others = [] if other is None else open_dump_series(resolve(other))
    several = path if len(members) > 1 else other
    if len(members) > 1 or len(others) > 1:
        raise UsageError(f"{several}: several dumps; name one of them, to be compared with the other")
    if not others:
        return _of_layers(members[0].path, splits, asked, layers, progress)
    return _of_two(members[0].path, others[0].path, splits, asked, layers, progress)


def layer_similarities(kept: Kept, split: str, measure: str, **place: Any) -> Similarity:
    """The layers of one dump among themselves; place: its `checkpoint` and `step`. Errors as `similarity`."""
    rows = {layer: _tensor(values) for layer, values in kept.layers.items()}
    return _similarity("layers", kept, split, measure, rows, None, **place)


def step_similarities(kept: Sequence[Kept], names: Sequence[str], split: str, measure: str, layer: str) -> Similarity:
    """One layer over the checkpoints of a series, which have these names. Errors as `similarity`."""
    rows = {name: _tensor(one.layers[layer]) for name, one in zip(names, kept, strict=True)}
    return _similarity("steps", kept[0], split, measure, rows, None, layer=layer)


def kept_of(dump: Dump, split: str) -> Kept:
    """What an open dump keeps of a split to be compared, as it is stored. Errors as `similarity`."""
    view, source = dump[split], f"{dump.path}: {split}"
    stored = view.similarity_indices()
    if stored is not None:
        indices = stored[0]
        layers = {layer.name: layer.rows[()] for layer in view.layers if layer.rows is not None}
    elif view.features is not None:
        # Without layers nothing was set apart: the rows that would have been are read.
        indices = subset_indices(view.samples, SUBSET_ROWS).numpy()
        layers = {PENULTIMATE: view.features[indices]}
    else:
        raise DataError(
            f"{source}: no rows to compare are stored; extract again with `layers='all'` and `overwrite=True`"
        )
    if not layers or (len(indices) and (indices.min() < 0 or indices.max() >= view.samples)):
        raise DataError(f"{source}: the rows kept to be compared are missing or damaged; extract again")
    return Kept(source, layers, indices, view.samples, _labels(view, indices))


def kept_of_series(paths: Sequence[Path], split: str) -> tuple[list[Kept], list[str]]:
    """What each dump of a series keeps of a split, and the names of its checkpoints: their steps where they differ.

    Arrays stay as they are stored. Errors as `similarity`.
    """
    kept, steps, names = [], [], []
    for path in paths:
        with open_dump(path) as dump:
            kept.append(kept_of(dump, split))
            steps.append(dump.step)
            names.append(dump.name)
    for one in kept[1:]:
        kept[0].require_same(one)
        missing = sorted(set(kept[0].layers) ^ set(one.layers))
        if missing:
            raise DataError(f"{kept[0].source} and {one.source}: layers {listed(missing)} are in only one of them")
    return kept, [str(step) for step in steps] if None not in steps and len(set(steps)) == len(steps) else names


def _of_layers(
    path: Path, splits: Sequence[str] | None, measures: Sequence[str], layers: Sequence[str] | None, progress: Progress
) -> Iterator[Similarity]:
    with open_dump(path) as dump:
        for split in splits or dump.splits:
            kept = _chosen(kept_of(dump, split), layers)
            with progress.task(f"{dump.name} {split}", len(measures), "matrices") as bar:
                for measure in measures:
                    yield layer_similarities(kept, split, measure, checkpoint=dump.name, step=dump.step)
                    bar.advance()


def _of_two(
    path: Path,
    other: Path,
    splits: Sequence[str] | None,
    measures: Sequence[str],
    layers: Sequence[str] | None,
    progress: Progress,
) -> Iterator[Similarity]:
    with open_dump(path) as one, open_dump(other) as two:
        names = dict(
            zip(("checkpoint", "other"), distinct_names([path.with_suffix(""), other.with_suffix("")]), strict=True)
        )
        shared = splits or [split for split in one.splits if split in two.splits]
        if not shared:
            raise DataError(f"{path} and {other}: no split in common ({listed(one.splits)}; {listed(two.splits)})")
        for split in shared:
            first, second = kept_of(one, split), kept_of(two, split)
            first.require_same(second)
            sides = [
                {layer: _tensor(rows) for layer, rows in _chosen(kept, layers).layers.items()}
                for kept in (first, second)
            ]
            with progress.task(f"{split}", len(measures), "matrices") as bar:
                for measure in measures:
                    yield _similarity("models", first, split, measure, sides[0], sides[1], **names)
                    bar.advance()


def _of_series(
    paths: Sequence[Path],
    splits: Sequence[str] | None,
    measures: Sequence[str],
    layers: Sequence[str] | None,
    progress: Progress,
) -> Iterator[Similarity]:
    with open_dump(paths[0]) as dump:
        found = list(splits or dump.splits)
    for split in found:
        kept, names = kept_of_series(paths, split)
        chosen = list(_chosen(kept[0], layers).layers)
        with progress.task(split, len(chosen), "layers") as bar:
            for layer in chosen:
                for measure in measures:
                    yield step_similarities(kept, names, split, measure, layer)
                bar.advance()


def _similarity(
    kind: str,
    kept: Kept,
    split: str,
    measure: str,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor] | None,
    **place: Any,
) -> Similarity:
    others = None if second is None else list(second.values())
    try:
        found = MEASURES[measure](list(first.values()), others).tolist()
    except DataError as error:
        raise DataError(f"{kept.source}: {error}") from error
    values = tuple(tuple(None if math.isnan(value) else value for value in row) for row in found)
    columns = tuple(first if second is None else second)
    return Similarity(kind, measure, split, tuple(first), columns, values, len(kept.indices), **place)


def _labels(view: SplitView, indices: np.ndarray) -> np.ndarray | None:
    return None if view.labels is None else view.labels[()][indices]


def _chosen(kept: Kept, layers: Sequence[str] | None) -> Kept:
    """Only some of the layers. Raises DataError for one that there is not."""
    if layers is None:
        return kept
    absent = [layer for layer in layers if layer not in kept.layers]
    if absent:
        raise DataError(f"{kept.source}: no layer {absent[0]!r}; there are: {listed(list(kept.layers), 40)}")
    chosen = {name: rows for name, rows in kept.layers.items() if name in layers}
    return Kept(kept.source, chosen, kept.indices, kept.samples, kept.labels)


def _tensor(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows)).to(torch.float64)
