"""Describe plots of checkpoints with one frame each: cosine matrices, spectra, and the table of classes."""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter

import numpy as np

from ckpt_probe.analysis.entries import STDERR
from ckpt_probe.analysis.records import finite, grouped_by
from ckpt_probe.errors import listed
from ckpt_probe.metrics.collapse import simplex_exists
from ckpt_probe.moments.record import DetailedRecord
from ckpt_probe.moments.selection import CLASS_METRICS
from ckpt_probe.reporting.plots.description import (
    ClassTable,
    Column,
    Frames,
    MatrixPlot,
    SpectrumPlot,
    evenly,
)
from ckpt_probe.reporting.plots.runs import Run

MOST_NUMBERS = {"cosines": 300_000, "spectra": 300_000, "classes": 250_000}
"""Largest number of values of each kind in a page; if there are more, only evenly spaced checkpoints are drawn."""

MOST_NEAREST = 4
"""Largest number of class means that are listed as the nearest to the samples of a class."""

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
"""Gram matrices whose C − 1 eigenvalues are equal at collapse, if C classes can form a simplex."""

NEAREST = "nearest.confusion"

Values = tuple[str, str, int, np.ndarray]
"""Run, split, index of the checkpoint, and its array."""


def matrix_plots(runs: Sequence[Run]) -> tuple[list[MatrixPlot], list[str]]:
    """Describe cosine matrices of class means and of classifier rows; return the plots, and notes on omitted parts."""
    plots, notes = [], []
    blocks = {run.name: _blocks(run) for run in runs}
    for run in runs:
        if blocks[run.name] and (most := max(map(len, blocks[run.name]))) > 1:
            classes = sum(map(len, blocks[run.name]))
            notes.append(
                f"{run.name}: cosines of {classes} classes, averaged in {len(blocks[run.name])} blocks of up to {most}"
            )
    all_frames = _frames(runs, {name: _cosines(runs, name, blocks) for name in MATRICES}, "cosines", notes)
    for name, (title, meaning) in MATRICES.items():
        if frames := all_frames[name]:
            present = [run for run in runs if run.name in {frame.run for frame in frames}]
            labels = {run.name: _block_labels(run, blocks[run.name]) for run in present}
            levels = {run.name: -1 / (count - 1) for run in present if (count := _simplex(run))}
            plots.append(MatrixPlot(f"cosines-{name}", title, meaning, frames, labels, levels))
    return plots, notes


def spectrum_plots(runs: Sequence[Run]) -> tuple[list[SpectrumPlot], list[str]]:
    """Describe the spectrum of every Gram matrix; return the plots, and notes on omitted parts."""
    spectra = [each.portrait.spectra for run in runs for each in run.details if each.portrait is not None]
    names = [name for name in SPECTRA if any(name in of_checkpoint for of_checkpoint in spectra)]
    ranks = {name: max((each[name][0] for each in spectra if name in each), key=len) for name in names}
    notes: list[str] = []
    frames = _frames(runs, {name: _eigenvalues(runs, name, len(ranks[name])) for name in names}, "spectra", notes)
    if any(each[-1] > len(each) for each in ranks.values() if each):
        notes.append("spectra are drawn at the first 20 eigenvalues and at ever fewer of those after them")
    plots = []
    for name in names:
        title, meaning = SPECTRA[name]
        at_collapse = {run.name: count - 1 for run in runs if name in AT_COLLAPSE and (count := _simplex(run))}
        plots.append(SpectrumPlot(f"spectrum-{name}", title, meaning, tuple(ranks[name]), frames[name], at_collapse))
    return plots, notes


def class_table(runs: Sequence[Run]) -> tuple[list[ClassTable], list[str]]:
    """Describe the table of classes; return it, none without records of classes, and notes on omitted parts."""
    rows = [row for run in runs for each in run.details for row in each.per_class]
    metrics = [m for m in CLASS_METRICS if m.name != NEAREST and any(m.name in row for row in rows)]
    if not metrics:
        return [], []
    classes = {run.name: sorted({int(row["class"] or 0) for d in run.details for row in d.per_class}) for run in runs}

    names = [metric.name for metric in metrics]
    with_errors = [name for name in names if any(f"{name}{STDERR}" in row for row in rows)]
    all_names = [*names, *(f"{name}{STDERR}" for name in with_errors)]

    def numbers(run: Run, details: DetailedRecord) -> np.ndarray | None:
        by_class = {row["class"]: row for row in details.per_class}
        if not by_class:
            return None
        return np.array(
            [[finite(by_class.get(c, {}).get(name)) for name in all_names] for c in classes[run.name]], dtype=float
        )

    notes: list[str] = []
    frames = _frames(runs, {"": _values(runs, numbers)}, "classes", notes)[""]
    labels = {run.name: tuple(map(run.label, classes[run.name])) for run in runs if classes[run.name]}
    places = {name: len(names) + index for index, name in enumerate(with_errors)}
    columns = tuple(Column(m.name, m.label, m.meaning, places.get(m.name, -1)) for m in metrics)
    nearest = tuple(_nearest(runs, frame, classes[frame.run]) for frame in frames)
    meaning = "one row a class, of the checkpoint that the slider stands at"
    return [ClassTable("classes", "Classes", meaning, columns, frames, labels, nearest)], notes


def _values(runs: Sequence[Run], array_of: Callable[[Run, DetailedRecord], np.ndarray | None]) -> list[Values]:
    """Return the arrays of all checkpoints and splits that have one."""
    return [
        (run.name, str(each.record["split"]), run.number_of(each.record), array)
        for run in runs
        for each in run.details
        if (array := array_of(run, each)) is not None
    ]


def _cosines(runs: Sequence[Run], name: str, blocks: Mapping[str, list[list[int]]]) -> list[Values]:
    def matrix(run: Run, details: DetailedRecord) -> np.ndarray | None:
        if details.portrait is None or name not in details.portrait.cosines:
            return None
        cosines, all_blocks = np.array(details.portrait.cosines[name], dtype=float), blocks[run.name]
        if details.portrait.blocks == all_blocks:
            return cosines
        # A class without samples here has no row.
        padded = np.full((len(all_blocks), len(all_blocks)), np.nan)
        if all(block in all_blocks for block in details.portrait.blocks):
            indices = [all_blocks.index(block) for block in details.portrait.blocks]
            padded[np.ix_(indices, indices)] = cosines
        return padded

    values = _values(runs, matrix)
    if name != "weights":
        return values
    # The classifier is the same for every split; the split with the most classes represents it.
    of_splits = grouped_by(values, itemgetter(0, 2))
    best = {key: min(of_key, key=lambda each: np.isnan(each[3]).sum())[3] for key, of_key in of_splits.items()}
    return [(run, "", checkpoint, cosines) for (run, checkpoint), cosines in best.items()]


def _eigenvalues(runs: Sequence[Run], name: str, length: int) -> list[Values]:
    def padded(_: Run, details: DetailedRecord) -> np.ndarray | None:
        if details.portrait is None or name not in details.portrait.spectra:
            return None
        eigenvalues = details.portrait.spectra[name][1]
        return np.array([*eigenvalues, *[np.nan] * (length - len(eigenvalues))])

    return _values(runs, padded)


def _frames(
    runs: Sequence[Run], values: Mapping[str, Sequence[Values]], kind: str, notes: list[str]
) -> dict[str, tuple[Frames, ...]]:
    """Return the arrays of each name by run and split, of as many checkpoints as fit into the page; note the others."""
    numbers = sum(array.size for of_name in values.values() for _, _, _, array in of_name)
    share = min(1.0, MOST_NUMBERS[kind] / max(1, numbers))
    drawn = {}
    for run in runs:
        checkpoints = sorted({run.number_of(each.record) for each in run.details})
        count = max(min(len(checkpoints), 2), int(len(checkpoints) * share))
        drawn[run.name] = {checkpoints[index] for index in evenly(len(checkpoints), count)}
        if count < len(checkpoints):
            notes.append(
                f"{run.name}: {kind} of {count} of {len(checkpoints)} checkpoints, evenly spaced, to stay small"
            )
    frames = {}
    for name, of_name in values.items():
        chosen = (each for each in of_name if each[2] in drawn[each[0]])
        arrays = {
            key: {each[2]: each[3] for each in group} for key, group in grouped_by(chosen, itemgetter(0, 1)).items()
        }
        frames[name] = tuple(
            Frames(run, split, tuple(each), np.stack([*each.values()])) for (run, split), each in arrays.items()
        )
    return frames


def _blocks(run: Run) -> list[list[int]]:
    """Return the blocks of classes of a run's cosine matrices: single classes, or ranges of many."""
    all_blocks = [each.portrait.blocks for each in run.details if each.portrait is not None]
    if all(len(block) == 1 for blocks in all_blocks for block in blocks):
        return [[label] for label in sorted({block[0] for blocks in all_blocks for block in blocks})]
    return max(all_blocks, key=lambda blocks: sum(map(len, blocks)), default=[])


def _block_labels(run: Run, blocks: Sequence[Sequence[int]]) -> tuple[str, ...]:
    return tuple(
        run.label(block[0]) if len(block) == 1 else f"{run.label(block[0])} … {run.label(block[-1])}"
        for block in blocks
    )


def _simplex(run: Run) -> int:
    """Return the number of classes that form a simplex at collapse, 0 if none exists."""
    classes = sum(map(len, _blocks(run)))
    dimensions = {record.get("features") for record in run.records} - {None}
    return classes if classes > 1 and all(simplex_exists(classes, features) for features in dimensions) else 0


def _nearest(runs: Sequence[Run], frame: Frames, classes: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    run = next(run for run in runs if run.name == frame.run)
    of_split = [each for each in run.details if str(each.record["split"]) == frame.split]
    rows = {run.number_of(each.record): {row["class"]: row for row in each.per_class} for each in of_split}
    return tuple(
        tuple(_named_confusion(run, str(rows[checkpoint].get(c, {}).get(NEAREST) or "")) for c in classes)
        for checkpoint in frame.checkpoints
    )


def _named_confusion(run: Run, confusion: str) -> str:
    """Return a confusion such as `3:41 5:2` with the names of the first few classes."""
    parts = [part.partition(":") for part in confusion.split()]
    named = [(run.label(int(label)) if label.isdecimal() else label, count) for label, _, count in parts]
    return listed([f"{label}: {count}" for label, count in named], MOST_NEAREST)
