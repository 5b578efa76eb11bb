"""Describe plots of examples: learned when, forgotten how often, the worst ones, and matrices of disagreement."""

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from ckpt_probe.analysis.records import grouped_by
from ckpt_probe.data import names_of
from ckpt_probe.errors import DataError
from ckpt_probe.predictions import Predictions
from ckpt_probe.predictions.examples import counts_by_class, example_records, pair_records, step_records
from ckpt_probe.predictions.matrices import compare_functions
from ckpt_probe.predictions.samples import open_samples, pictures
from ckpt_probe.predictions.series import Histories, common_splits
from ckpt_probe.reporting.plots.description import LayerMap, LinePlot, RowTable, TableRows, evenly
from ckpt_probe.reporting.plots.layers import frames_of
from ckpt_probe.reporting.plots.runs import metric_plots, run_of_records, spread_out

MOST_CHECKPOINTS, MOST_CLASSES, MOST_EXAMPLES = 40, 40, 30
"""Checkpoints of a matrix, classes of a histogram, and examples of a table of one run and split."""

EXAMPLES_OF_PAGE = 300
"""Examples of all tables of a page, whose pictures take up to 1.2 MB."""

LOGARITHMS = 2**27
"""Logarithms of the divergences of all pairs of checkpoints of a run; with more, only evenly spaced rows are used."""

MATRICES = {
    "disagreement": ("Disagreement of checkpoints", "share of rows that the two checkpoints predict differently"),
    "divergence": ("Divergence of checkpoints", "mean Jensen–Shannon divergence of the predictions, in nats"),
    "error_agreement": (
        "Agreement among errors",
        "share of the rows that both checkpoints predict wrongly in which both predict one wrong class",
    ),
}
CHECKPOINTS = ("checkpoints", "checkpoint")
"""Nouns for the rows and the columns of a matrix."""

LEARNED = "examples of each class by the first step from which on they are always predicted correctly"
FORGOTTEN = "examples of each class by the number of times that they were correct at a checkpoint and wrong at the next"

COLUMNS = {
    "index": "index",
    "name": "name",
    "class": "class",
    "predicted": "predicted at the end",
    "first_learned": "first learned",
    "forgotten": "times forgotten",
    "right": "checkpoints right",
    "loss": "loss at the end",
}
PAIRS = {
    "run": "run",
    "other": "other run",
    "split": "split",
    "accuracy": "accuracy",
    "other_accuracy": "other accuracy",
    "function.disagreement": "disagreement",
    "function.divergence": "divergence",
    "function.error_agreement": "error agreement",
    "churn.wins": "only the other is right",
    "churn.losses": "only the first is right",
}


def step_plots(read: Sequence[Predictions], axis: str) -> tuple[list[LinePlot], list[str]]:
    """Describe plots of every number that compares a checkpoint with the one before; return them and notes."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for predictions in read:
        records = [record for record in step_records(predictions) if record["checkpoint"] not in predictions.left_out]
        without = ("accuracy", "samples", "missing")
        runs.setdefault(predictions.run, []).extend(
            {name: value for name, value in record.items() if name not in without} for record in records[1:]
        )
    positioned = [run_of_records(name, records, ()) for name, records in runs.items() if records]
    groups, notes = metric_plots(positioned, axis)
    return [plot for _, plots in groups for plot in plots], notes


def history_maps(read: Sequence[Predictions]) -> tuple[list[LayerMap], list[str]]:
    """Describe histograms by class: when examples are learned for good, and how often they are forgotten."""
    notes: list[str] = []
    learned, forgotten = {}, {}
    classes, steps, times = {}, {}, {}
    labelled = [each for each in read if each.labels is not None]
    for run, of_run in grouped_by(labelled, lambda each: each.run).items():
        numbers = [each.histories for each in of_run]
        labels = np.unique(np.concatenate([each.labels for each in numbers]))
        chosen = _most_forgotten(numbers, labels)
        if len(chosen) < len(labels):
            notes.append(f"{run}: {len(chosen)} of {len(labels)} classes, those that were forgotten most often")
        names = list(dict.fromkeys(name for each in of_run for name in each.names))
        most = max(int(each.forgotten.max(initial=0)) for each in numbers)
        classes[run] = tuple(of_run[0].class_name(int(label)) or str(label) for label in labels[chosen])
        steps[run], times[run] = (*names, "not learned"), tuple(map(str, range(most + 1)))
        for each, history in zip(of_run, numbers, strict=True):
            by_step = np.full((len(chosen), len(names) + 1), math.nan)
            positions = [*(names.index(name) for name in each.names), len(names)]
            counts = counts_by_class(history.first_learned, history.labels, labels, len(positions))
            by_step[:, positions] = counts[chosen]
            learned[run, each.split] = by_step
            counts = counts_by_class(history.forgotten, history.labels, labels, most + 1)
            forgotten[run, each.split] = counts[chosen].astype(float)
    if not learned:
        return [], notes
    plots = [
        LayerMap(f"examples-{key}", title, meaning, frames_of(cells), classes, columns, False, "classes", across)
        for key, title, meaning, cells, columns, across in (
            ("learned", "Learned when", LEARNED, learned, steps, "first learned"),
            ("forgotten", "Forgotten how often", FORGOTTEN, forgotten, times, "times forgotten"),
        )
    ]
    return plots, notes


def disagreement_maps(read: Sequence[Predictions]) -> tuple[list[LayerMap], list[str]]:
    """Describe matrices, checkpoint by checkpoint, of disagreement, divergence and agreement among errors."""
    cells: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    names: dict[str, tuple[str, ...]] = {}
    counts: set[int] = set()
    notes = []
    for each in read:
        thin = each.at(evenly(len(each.members), MOST_CHECKPOINTS))
        if names.setdefault(each.run, tuple(thin.names)) != tuple(thin.names):
            notes.append(f"{each.run}: {each.split}: no matrices, since its checkpoints are not those of other splits")
            continue
        for matrix in compare_functions([thin], rows=_rows_of(thin)):
            values = np.array(matrix.values, dtype=float)
            # The diagonal has no information, and would set the scale.
            np.fill_diagonal(values, math.nan)
            if np.isfinite(values).any():
                cells.setdefault(matrix.measure, {})[each.run, each.split] = values
                counts |= {matrix.samples} if matrix.measure == "divergence" else set()
    on_rows = f", on {' or '.join(f'{count:,}' for count in sorted(counts))} rows"
    plots = []
    for measure, (title, meaning) in MATRICES.items():
        if measure in cells:
            meaning += on_rows if measure == "divergence" else ""
            frames, log = frames_of(cells[measure]), spread_out(*cells[measure].values())
            plots.append(LayerMap(f"examples-{measure}", title, meaning, frames, names, names, log, *CHECKPOINTS))
    return plots, notes


def worst_table(
    read: Sequence[Predictions], data: str | None, arguments: Mapping[str, Any] | None
) -> tuple[list[RowTable], list[str]]:
    """Describe the table of the worst examples of every run and split, with pictures if the data are images.

    Args:
        read: Predictions of every run and split.
        data: Name of the data to read names and pictures from, as for `extract`; None for none.
        arguments: Arguments of the data; None for those in the dump if it names the same data.

    Returns:
        The table, none without labels, and notes on missing pictures.
    """
    notes: list[str] = []
    tables = []
    labelled = [each for each in read if each.labels is not None]
    most = min(MOST_EXAMPLES, max(3, EXAMPLES_OF_PAGE // max(1, len(labelled))))
    for predictions in labelled:
        names = images = samples = None
        if data is not None:
            try:
                samples = open_samples(data, arguments, predictions)
                names = names_of(samples)
            except DataError as error:
                notes.append(f"{predictions.run}: no pictures of examples: {error}")
        records = list(islice(example_records(predictions, names), most))
        if samples is not None:
            try:
                images = pictures(samples, [record["index"] for record in records])
            except DataError as error:
                notes.append(f"{predictions.run}: {predictions.split}: {error}")
        rows = tuple(tuple(_cell(record, name) for name in COLUMNS) for record in records)
        tables.append(TableRows(predictions.run, predictions.split, _summary(predictions), rows, images))
    if not tables:
        return [], notes
    meaning = (
        "never learned first, then those that were forgotten most often, then those that were learned latest; "
        "the command examples lists all"
    )
    return [RowTable("examples-worst", "The worst examples", meaning, tuple(COLUMNS.values()), tuple(tables))], notes


def run_table(runs: Sequence[Sequence[Predictions]]) -> tuple[list[RowTable], list[str]]:
    """Describe the table of pairs of runs at their last checkpoints; none with a note if their rows differ."""
    if len(runs) < 2:
        return [], []
    try:
        records = [record for ends in common_splits(runs) for record in pair_records(ends)]
    except DataError as error:
        return [], [f"runs are not compared: {error}"]
    rows = tuple(tuple(_cell(record, name) for name in PAIRS) for record in records)
    meaning = (
        "each pair of runs at their last checkpoints, on the same rows: equal accuracies may hide different errors"
    )
    table = RowTable("examples-runs", "Pairs of runs", meaning, tuple(PAIRS.values()), (TableRows("", "", "", rows),))
    return [table], []


def _cell(record: Mapping[str, Any], name: str) -> str | float:
    value = record.get(f"{name}_name") or record[name]
    if value is None:
        return "not learned" if name == "first_learned" else "–" if name != "name" else ""
    return value if isinstance(value, int | float) else str(value)


def _summary(predictions: Predictions) -> str:
    numbers = predictions.histories
    learned = np.count_nonzero(numbers.first_learned < len(predictions.members))
    never, forgotten = np.count_nonzero(numbers.never_learned), np.count_nonzero(numbers.forgotten)
    return (
        f"{len(numbers.right):,} examples: {learned:,} learned for good, {never:,} never learned, "
        f"{forgotten:,} forgotten at least once"
    )


def _most_forgotten(numbers: Sequence[Histories], labels: np.ndarray) -> np.ndarray:
    """Return the indices of at most `MOST_CLASSES` classes, in order."""
    events = np.zeros(len(labels))
    for each in numbers:
        events += np.bincount(np.searchsorted(labels, each.labels), each.forgotten, len(labels))
    return np.sort(np.argsort(-events, kind="stable")[:MOST_CLASSES])


def _rows_of(predictions: Predictions) -> np.ndarray | None:
    """Return evenly spaced rows for the divergences of all pairs, or None for all rows."""
    steps, samples = predictions.predicted.shape
    most = max(100, LOGARITHMS // max(1, steps * (steps - 1) // 2 * max(1, predictions.classes)))
    return None if samples <= most else np.array(evenly(samples, most))
