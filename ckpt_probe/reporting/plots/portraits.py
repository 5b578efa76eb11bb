"""Pictures of checkpoints → cosine matrices, spectra and the table of classes, one frame a checkpoint."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ckpt_probe.metrics.theory import simplex_exists
from ckpt_probe.moments.registry import CLASS_METRICS
from ckpt_probe.reporting.plots.description import ClassTable, Column, Frames, MatrixPlot, SpectrumPlot
from ckpt_probe.reporting.runs import Picture, Run

MOST_NUMBERS = {"cosines": 300_000, "spectra": 300_000, "classes": 250_000}
"""Numbers of each kind that a page holds; where more would be, evenly spaced checkpoints are kept, and that is said."""

MOST_NEAREST = 4
"""Class means that are named as the nearest to a class's samples."""

MATRICES = {
    "means": (
        "Class means",
        "cosines between class means, less their common centre; at collapse all of a simplex are equal",
    ),
    "weights": (
        "Classifier rows",
        "cosines between the rows of the classifier's weights; at collapse all of a simplex are equal",
    ),
}
SPECTRA = {
    "class.means": ("Class means", "eigenvalues of the Gram matrix of class means"),
    "class.weights": ("Classifier rows", "eigenvalues of the Gram matrix of classifier rows"),
    "class.joint": ("Class means with classifier rows", "eigenvalues of the elementwise product of both Grams"),
    "sample.features": ("Features", "eigenvalues of the Gram matrix of all samples' features"),
    "sample.label_rows": ("Label rows", "eigenvalues of the Gram matrix of the classifier rows of all labels"),
    "sample.joint": ("Features with label rows", "eigenvalues of the elementwise product of both Grams"),
    "within": ("Within a class", "eigenvalues of the Gram matrix of a class's own features, mean over classes"),
}
AT_COLLAPSE = {"class.means", "class.weights"}
"""Grams whose C − 1 eigenvalues are equal at collapse, if C classes can form a simplex."""

NEAREST = "nearest.confusion"


def matrix_plots(runs: Sequence[Run]) -> tuple[list[MatrixPlot], list[str]]:
    """Cosine matrices of class means and of classifier rows, and what was left out, in words."""
    plots, notes = [], []
    sizes = {run.name: _blocks(run) for run in runs}
    for run in runs:
        if sizes[run.name] and (most := max(map(len, sizes[run.name]))) > 1:
            classes = sum(map(len, sizes[run.name]))
            notes.append(
                f"{run.name}: cosines of {classes} classes, averaged in {len(sizes[run.name])} blocks of up to {most}"
            )
    entries = {name: _matrices(runs, name, sizes) for name in MATRICES}
    kept = _kept(runs, sum(values.size for one in entries.values() for _, _, _, values in one), "cosines", notes)
    for name, (title, meaning) in MATRICES.items():
        frames = _frames(entries[name], kept)
        if frames:
            present = {frame.run for frame in frames}
            labels = {run.name: _block_labels(run, sizes[run.name]) for run in runs if run.name in present}
            counts = {run.name: _simplex(run) for run in runs if run.name in present}
            level = {name: -1 / (count - 1) for name, count in counts.items() if count}
            plots.append(MatrixPlot(f"cosines-{name}", title, meaning, frames, labels, level))
    return plots, notes


def spectrum_plots(runs: Sequence[Run]) -> tuple[list[SpectrumPlot], list[str]]:
    """The spectrum of every Gram, and what was left out, in words."""
    names = [name for name in SPECTRA if any(name in spectra for run in runs for spectra in _spectra(run))]
    ranks = {name: max((s[name][0] for run in runs for s in _spectra(run) if name in s), key=len) for name in names}
    entries = {name: _eigenvalues(runs, name, len(ranks[name])) for name in names}
    notes: list[str] = []
    kept = _kept(runs, sum(values.size for one in entries.values() for _, _, _, values in one), "spectra", notes)
    if any(own[-1] > len(own) for own in ranks.values() if own):
        notes.append("spectra are drawn at the first 20 eigenvalues and at ever fewer of those after them")
    plots = []
    for name in names:
        title, meaning = SPECTRA[name]
        frames = _frames(entries[name], kept)
        collapse = {run.name: count - 1 for run in runs if name in AT_COLLAPSE and (count := _simplex(run))}
        plots.append(SpectrumPlot(f"spectrum-{name}", title, meaning, tuple(ranks[name]), frames, collapse))
    return plots, notes


def class_table(runs: Sequence[Run]) -> tuple[ClassTable | None, list[str]]:
    """The numbers of each class, and what was left out, in words."""
    rows = [row for run in runs for picture in run.pictures for row in picture.per_class]
    columns = [m for m in CLASS_METRICS if m.name != NEAREST and any(m.name in row for row in rows)]
    if not columns:
        return None, []
    names = [metric.name for metric in columns]
    labels = {run.name: sorted({row["class"] for p in run.pictures for row in p.per_class}) for run in runs}

    def numbers(run: Run, picture: Picture) -> np.ndarray | None:
        held = {row["class"]: row for row in picture.per_class}
        if not held:
            return None
        return np.array([[_float(held.get(c, {}).get(name)) for name in names] for c in labels[run.name]])

    notes: list[str] = []
    entries = list(_entries(runs, numbers))
    kept = _kept(runs, sum(values.size for _, _, _, values in entries), "classes", notes)
    frames = _frames(entries, kept)
    told = {run.name: tuple(run.label(c) for c in labels[run.name]) for run in runs if labels[run.name]}
    shown = tuple(Column(metric.name, metric.label, metric.meaning) for metric in columns)
    nearest = tuple(_nearest(runs, frame, labels[frame.run]) for frame in frames)
    meaning = "one row a class, of the checkpoint that the slider stands at"
    return ClassTable("classes", "Classes", meaning, shown, frames, told, nearest), notes


Entry = tuple[str, str, int, np.ndarray]
"""Run, split, checkpoint, values."""


def _entries(runs: Sequence[Run], of: Callable[[Run, Picture], np.ndarray | None]) -> Iterable[Entry]:
    for run in runs:
        for picture in run.pictures:
            values = of(run, picture)
            if values is not None:
                yield run.name, picture.split, picture.checkpoint, values


def _matrices(runs: Sequence[Run], name: str, sizes: Mapping[str, list[list[int]]]) -> list[Entry]:
    def cosines(run: Run, picture: Picture) -> np.ndarray | None:
        if picture.portrait is None or name not in picture.portrait.cosines:
            return None
        found = np.array(picture.portrait.cosines[name], dtype=float)
        blocks = sizes[run.name]
        if picture.portrait.blocks == blocks:
            return found
        whole = np.full((len(blocks), len(blocks)), np.nan)
        if all(block in blocks for block in picture.portrait.blocks):
            # A class without samples here has no row; the others keep their places.
            places = [blocks.index(block) for block in picture.portrait.blocks]
            whole[np.ix_(places, places)] = found
        return whole

    entries = list(_entries(runs, cosines))
    if name != "weights":
        return entries
    # The classifier is the same for every split: one of them, the one that knows most classes, stands for it.
    best: dict[tuple[str, int], Entry] = {}
    for run, _, checkpoint, values in entries:
        before = best.get((run, checkpoint))
        if before is None or np.isnan(values).sum() < np.isnan(before[3]).sum():
            best[run, checkpoint] = run, "", checkpoint, values
    return list(best.values())


def _eigenvalues(runs: Sequence[Run], name: str, length: int) -> list[Entry]:
    def values(_: Run, picture: Picture) -> np.ndarray | None:
        if picture.portrait is None or name not in picture.portrait.spectra:
            return None
        found = picture.portrait.spectra[name][1]
        return np.array([*found, *[np.nan] * (length - len(found))])

    return list(_entries(runs, values))


def _kept(runs: Sequence[Run], numbers: int, kind: str, notes: list[str]) -> dict[str, set[int]]:
    """The checkpoints of each run whose pictures fit; adds to `notes` where they are not all."""
    share = min(1.0, MOST_NUMBERS[kind] / max(1, numbers))
    kept = {}
    for run in runs:
        drawn = sorted({picture.checkpoint for picture in run.pictures})
        count = max(min(len(drawn), 2), int(len(drawn) * share))
        places = np.linspace(0, len(drawn) - 1, count).round().astype(int) if drawn else []
        kept[run.name] = {drawn[place] for place in places}
        if count < len(drawn):
            notes.append(f"{run.name}: {kind} of {count} of {len(drawn)} checkpoints, evenly spaced, to stay small")
    return kept


def _frames(entries: Iterable[Entry], kept: Mapping[str, set[int]]) -> tuple[Frames, ...]:
    groups: dict[tuple[str, str], list[tuple[int, np.ndarray]]] = {}
    for run, split, checkpoint, values in entries:
        if checkpoint in kept[run]:
            groups.setdefault((run, split), []).append((checkpoint, values))
    return tuple(
        Frames(run, split, tuple(number for number, _ in held), np.stack([values for _, values in held]))
        for (run, split), held in groups.items()
    )


def _blocks(run: Run) -> list[list[int]]:
    found = [picture.portrait.blocks for picture in run.pictures if picture.portrait is not None]
    if all(len(block) == 1 for blocks in found for block in blocks):
        return [[label] for label in sorted({block[0] for blocks in found for block in blocks})]
    return max(found, key=lambda blocks: sum(map(len, blocks)), default=[])


def _block_labels(run: Run, blocks: Sequence[Sequence[int]]) -> tuple[str, ...]:
    return tuple(
        run.label(block[0]) if len(block) == 1 else f"{run.label(block[0])} … {run.label(block[-1])}"
        for block in blocks
    )


def _simplex(run: Run) -> int:
    """Return the number of classes that form a simplex at collapse, 0 where none exists."""
    classes = sum(map(len, _blocks(run)))
    dimensions = {record.get("features") for record in run.records} - {None}
    return classes if classes > 1 and all(simplex_exists(classes, features) for features in dimensions) else 0


def _spectra(run: Run) -> Iterable[Mapping[str, Any]]:
    return (picture.portrait.spectra for picture in run.pictures if picture.portrait is not None)


def _nearest(runs: Sequence[Run], frame: Frames, labels: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    run = next(run for run in runs if run.name == frame.run)
    held = {p.checkpoint: {row["class"]: row for row in p.per_class} for p in run.pictures if p.split == frame.split}
    return tuple(
        tuple(_told(run, str(held[checkpoint].get(label, {}).get(NEAREST) or "")) for label in labels)
        for checkpoint in frame.checkpoints
    )


def _told(run: Run, confusion: str) -> str:
    """`3:41 5:2` with names in place of numbers, the first few of them."""
    parts = [part.partition(":") for part in confusion.split()]
    named = [(run.label(int(label)) if label.isdecimal() else label, count) for label, _, count in parts]
    more = f" and {len(named) - MOST_NEAREST} more" if len(named) > MOST_NEAREST else ""
    return ", ".join(f"{label}: {count}" for label, count in named[:MOST_NEAREST]) + more


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else np.nan
