"""List the examples of a run: when each was learned and how often it was forgotten; also by class, step and run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ckpt_probe.analysis import Records
from ckpt_probe.analysis.entries import Record, join_reasons
from ckpt_probe.analysis.series import find_dumps
from ckpt_probe.data import names_of
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.groups import Sources
from ckpt_probe.keywords import suggestion
from ckpt_probe.predictions.matrices import compare_predictions, mean_divergences
from ckpt_probe.predictions.samples import open_samples
from ckpt_probe.predictions.series import NO_LABELS, Histories, Predictions, common_splits, read_runs
from ckpt_probe.progress import NullProgress, Progress


def worst_first(numbers: Histories, loss: np.ndarray | None) -> np.ndarray:
    """Return the indices of the examples, those that were learned worst first.

    Examples that were never learned come first, then those that were forgotten most often, then those that were learned
    latest, then those of the largest loss at the last checkpoint.

    Args:
        numbers: Histories of N examples.
        loss: Loss at the last checkpoint, shape (N,), or None.
    """
    last = np.zeros(len(numbers.right)) if loss is None else np.nan_to_num(loss, nan=np.inf)
    keys = (last, numbers.first_learned, numbers.forgotten, numbers.never_learned)
    return np.lexsort([-key.astype(np.float64) for key in keys])


def counts_by_class(values: np.ndarray, labels: np.ndarray, classes: np.ndarray, bins: int) -> np.ndarray:
    """Count the examples of every class with each value.

    Args:
        values: Numbers from 0 to bins − 1, shape (N,).
        labels: Class indices, shape (N,).
        classes: Class indices in ascending order, shape (K,).
        bins: Number of values.

    Returns:
        Counts, shape (K, bins).
    """
    rows = np.searchsorted(classes, labels)
    return np.bincount(rows * bins + values, minlength=len(classes) * bins).reshape(len(classes), bins)


BY = ("example", "class", "step", "run")

MEASURES = ("function.disagreement", "function.divergence", "function.error_agreement")

ONE_CHECKPOINT = "one checkpoint has predictions, so there is no other to compare it with"
NO_LOGITS = "only predictions are stored, not logits"
NO_ERRORS = "no row is predicted wrongly by both"
LAST_WRONG = "predicted wrongly at the last checkpoint"


def examples(
    dumps: Sources,
    *,
    by: str = "example",
    splits: str | Sequence[str] | None = None,
    data: str | None = None,
    data_arguments: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Records:
    """List which examples a run learned when, and how often it forgot them, from the predictions in its dumps.

    Dumps without predictions, and those with other rows than most dumps of the run, are left out with the reason.

    Args:
        dumps: Directory of dumps, or several, or groups of runs, as for `analyze`.
        by: "example" for a record of each example, the worst first; "class" for counts and histograms by class; "step"
            for a record of each checkpoint compared with the one before; "run" for a record of each pair of runs at
            their last checkpoints.
        splits: Names of splits; all if None.
        data: Name of the data, as for `extract`, to name the examples by their files if the dumps hold no names.
        data_arguments: Arguments of the data; those in the dump if None and it names the same data.
        progress: Receives messages and bars.

    Returns:
        The records, each with `split`; if there are several runs also with `run` and `group`, and with `seed` in a
        group of several runs.

    Raises:
        UsageError: If `by` is unknown, or "run" with a single run.
        DataError: If no dump has predictions, or the runs have other rows.
    """
    if by not in BY:
        raise UsageError(f"`by={by!r}`: expected {', '.join(BY)}{suggestion(by, BY)}")
    progress, runs = progress or NullProgress(), find_dumps(dumps, progress)
    if by == "run" and len(runs) < 2:
        raise UsageError("`by='run'` compares several runs; name at least two directories of dumps")
    read = read_runs(runs, splits, progress)
    if by == "run":
        return Records(record for ends in common_splits(read) for record in pair_records(ends))
    if by in {"example", "class"}:
        read = _labelled(read, splits, progress)
    records = (
        {"run": run.name, **run.labels, **record} if len(runs) > 1 else record
        for run, of_run in zip(runs, read, strict=True)
        for predictions in of_run
        for record in _records(predictions, by, data, data_arguments, progress)
    )
    return Records(records)


def step_records(predictions: Predictions) -> list[Record]:
    """Return a record of every checkpoint of a run, compared with the one before; see `examples`."""
    count = len(predictions.members)
    pairs = [(index, index + 1) for index in range(count - 1)]
    names = (*MEASURES, "function.learned", "function.forgotten")
    compared = _compared([predictions], predictions.predicted, pairs, names)
    first = "the first checkpoint" if count > 1 else ONE_CHECKPOINT
    compared.insert(0, {**dict.fromkeys(names), "missing": f"{', '.join(names)}: {first}"})
    samples, absent = predictions.predicted.shape[1], dict.fromkeys(["samples", "accuracy", *names])
    numbers: dict[str, Record] = {name: {**absent, "missing": why} for name, why in predictions.left_out.items()}
    for index, member in enumerate(predictions.members):
        numbers[member.name] = {"samples": samples, "accuracy": predictions.accuracy(index), **compared[index]}
    return [
        {"checkpoint": member.name, "step": member.step, "split": predictions.split, **numbers[member.name]}
        for member in predictions.all_members
    ]


def class_records(predictions: Predictions) -> list[Record]:
    """Return a record of every class of a run, with histograms as texts `value:examples`; see `examples`."""
    numbers = predictions.histories
    labels, classes = numbers.labels, np.unique(numbers.labels)
    most = int(numbers.forgotten.max(initial=0))
    learned = counts_by_class(numbers.first_learned, labels, classes, len(predictions.members) + 1)
    forgotten = counts_by_class(numbers.forgotten, labels, classes, most + 1)
    never = counts_by_class(numbers.never_learned.astype(int), labels, classes, 2)[:, 1]
    several = len(predictions.members) > 1
    return [
        {
            "split": predictions.split,
            "class": int(label),
            "class_name": predictions.class_name(int(label)),
            "samples": int(learned[row].sum()),
            "learned": int(learned[row, :-1].sum()),
            "never_learned": int(never[row]),
            "forgotten": int(forgotten[row, 1:].sum()) if several else None,
            "forgetting_events": int(forgotten[row] @ np.arange(most + 1)) if several else None,
            "first_learned.histogram": _histogram(learned[row, :-1], predictions.names),
            "forgotten.histogram": _histogram(forgotten[row], [str(n) for n in range(most + 1)]) if several else None,
            "missing": None if several else f"forgotten: {ONE_CHECKPOINT}",
        }
        for row, label in enumerate(classes)
    ]


def example_records(predictions: Predictions, names: Sequence[str] | None = None) -> Iterator[Record]:
    """Yield a record of every example of a run, the worst first; see `examples`.

    Args:
        predictions: The predictions.
        names: Names of the examples; None for those in the dumps, if there are any.
    """
    for index in worst_first(predictions.histories, predictions.loss):
        yield _example(predictions, int(index), names or predictions.sample_names)


def _example(predictions: Predictions, index: int, names: Sequence[str] | None) -> Record:
    numbers = predictions.histories
    label, predicted = int(numbers.labels[index]), int(predictions.predicted[-1, index])
    learned, several = int(numbers.first_learned[index]), len(predictions.members) > 1
    position = None if learned == len(predictions.members) else predictions.positions[learned]
    loss = None if predictions.loss is None else float(predictions.loss[index])
    infinite = loss is not None and not math.isfinite(loss)
    return {
        "split": predictions.split,
        "index": index,
        "name": None if names is None else str(names[index]),
        "class": label,
        "class_name": predictions.class_name(label),
        "first_learned": position,
        "forgotten": int(numbers.forgotten[index]) if several else None,
        "never_learned": bool(numbers.never_learned[index]),
        "right": int(numbers.right[index]),
        "changed": int(numbers.changed[index]) if several else None,
        "predicted": predicted,
        "predicted_name": predictions.class_name(predicted),
        "loss": None if infinite else loss,
        "missing": join_reasons(
            None if position is not None else f"first_learned: {LAST_WRONG}",
            None if several else f"forgotten, changed: {ONE_CHECKPOINT}",
            "loss: not finite" if infinite else None,
        ),
    }


def _records(
    predictions: Predictions, by: str, data: str | None, arguments: Mapping[str, Any] | None, progress: Progress
) -> Iterator[Record]:
    if by == "step":
        yield from step_records(predictions)
    elif by == "class":
        yield from class_records(predictions)
    else:
        names = predictions.sample_names
        if data is not None and names is None:
            try:
                names = names_of(open_samples(data, arguments, predictions))
            except DataError as error:
                progress.message(f"examples have no names: {error}")
            else:
                if names is None:
                    progress.message(f"examples have no names: {data} has none; they are called by their index")
        yield from example_records(predictions, names)


def pair_records(ends: Sequence[Predictions]) -> list[Record]:
    """Return a record of every pair of runs at their last checkpoints; see `examples`.

    Args:
        ends: Predictions of runs with the same rows of one split.
    """
    predicted, pairs = np.stack([run.predicted[-1] for run in ends]), [*combinations(range(len(ends)), 2)]
    compared = _compared(ends, predicted, pairs, (*MEASURES, "churn.wins", "churn.losses"))
    return [
        {
            "run": ends[i].run,
            "other": ends[j].run,
            "split": ends[i].split,
            "step": ends[i].members[-1].step,
            "other_step": ends[j].members[-1].step,
            "samples": predicted.shape[1],
            "accuracy": ends[i].accuracy(-1),
            "other_accuracy": ends[j].accuracy(-1),
            **of_pair,
        }
        for (i, j), of_pair in zip(pairs, compared, strict=True)
    ]


def _compared(
    runs: Sequence[Predictions], predicted: np.ndarray, pairs: Sequence[tuple[int, int]], names: Sequence[str]
) -> list[Record]:
    """Return the comparison of each pair by `names`, None for an undefined number with the reason in `missing`.

    Args:
        runs: One run, whose checkpoints are compared, or several, which are compared at their last checkpoints.
        predicted: Their predicted classes, shape (T, N).
        pairs: Pairs of rows of `predicted`.
        names: Names of disagreement, divergence, agreement among errors, wins and losses.
    """
    agreement, divergence = compare_predictions(predicted, runs[0].labels, pairs), mean_divergences(runs, pairs)
    numbers = agreement.disagreement, divergence, agreement.error_agreement, agreement.wins, agreement.losses
    reasons = {
        "function.divergence": NO_LOGITS,
        "function.error_agreement": NO_LABELS if runs[0].labels is None else NO_ERRORS,
    }
    records = []
    for values in zip(*numbers, strict=True):
        known = {name: None if math.isnan(v) else float(v) for name, v in zip(names, values, strict=True)}
        missing = [f"{name}: {reasons.get(name, NO_LABELS)}" for name, value in known.items() if value is None]
        records.append({**known, "missing": join_reasons(*missing)})
    return records


def _labelled(
    read: Sequence[Sequence[Predictions]], wanted: str | Sequence[str] | None, progress: Progress
) -> list[list[Predictions]]:
    """Return the predictions without splits that have no labels, unless these are named or there is no other."""
    known = [[predictions for predictions in run if predictions.labels is not None] for run in read]
    if wanted or not any(known):
        return [list(run) for run in read]
    for predictions in (each for run in read for each in run if each.labels is None):
        progress.message(f"left out: {predictions.run}: {predictions.split}: {NO_LABELS}")
    return known


def _histogram(counts: np.ndarray, names: Sequence[str]) -> str:
    return " ".join(f"{name}:{count}" for name, count in zip(names, counts.tolist(), strict=True) if count)
