"""Summaries of runs, paths and planes in sentences, computed from their records."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_probe.analysis.entries import STDERR, corrected_value
from ckpt_probe.moments import difference
from ckpt_probe.reporting.uncertain import INTERVAL, WITHIN_ERROR, is_within_error, number_with_error

Record = Mapping[str, Any]

ONE_BASIN = 0.02
"""Error barrier under which two networks count as linearly connected (Frankle et al. 2020, section 3).

There it is the rise above the mean of both ends, which is that above the chord where both ends have the same error.
"""

UNCHANGED = 0.02
"""Relative change below which a number without an error counts as unchanged."""


def read_run(records: Sequence[Record]) -> list[str]:
    """Return sentences about one run from its records of `analyze`, with any splits and steps.

    The sentences are about the splits "train" and "test"; those about a missing split are left out. Splits and steps
    are compared by values less their bias; ± is half of the 95 % interval, from paired errors for records of the same
    rows.
    """
    sentences: list[str] = []
    train = _of_split(records, "train")
    test = _of_split(records, "test")
    if train:
        sentences += [_fit(train, test), _collapse(train), _alignment(train), _head(train)]
    if train and test:
        last, unseen = train[-1], test[-1]
        sentences += [_generalisation(last, unseen), _splits(last, unseen, "class.mir", "MIR"), _nearest(unseen)]
    return [sentence for sentence in sentences if sentence]


def read_supported(records: Sequence[Record]) -> list[str]:
    """Return those sentences of `read_run` that state an interval, which records with standard errors support."""
    return [sentence for sentence in read_run(records) if "±" in sentence]


ON_A = {
    "linear": "On the straight line",
    "slerp": "On the arc",
    "bezier": "On the Bézier curve",
    "polychain": "On the bent line",
}
"""First words of a sentence about a path, by the shape of the path."""


def read_path(barriers: Sequence[Record], shape: str | None = None) -> list[str]:
    """Return one sentence per split about the path between two checkpoints.

    Args:
        barriers: Summary of the path, one record per split.
        shape: Shape of the path as `interpolate --path` names it; None if unknown.
    """
    return [_barrier(barrier, shape) for barrier in barriers if barrier.get("barrier.error") is not None]


def read_plane(summary: Sequence[Record], marks: Sequence[Record]) -> list[str]:
    """Return one sentence per split about a plane, from its summary and the records of its checkpoints."""
    return [_lowest(record, [mark for mark in marks if mark.get("split") == record["split"]]) for record in summary]


def _lowest(summary: Record, marks: Sequence[Record]) -> str:
    lowest = summary.get("lowest.loss")
    if lowest is None:
        return f"On the plane ({summary['split']}) no point has a loss."
    known = [(str(mark.get("name")), mark["loss"]) for mark in marks if mark.get("loss") is not None]
    losses = ", ".join(f"{name} {loss:.3g}" for name, loss in (known if len(known) < 4 else [known[0], known[-1]]))
    of_checkpoints = f"; the checkpoints have {losses}" if known else ""
    deeper = bool(known) and lowest < min(loss for _, loss in known)
    verdict = ": the plane goes deeper than any of them" if deeper else ""
    return f"On the plane ({summary['split']}) the lowest loss of the grid is {lowest:.3g}{of_checkpoints}{verdict}."


def _of_split(records: Sequence[Record], split: str) -> list[Record]:
    chosen = [record for record in records if record.get("split") == split]
    return sorted(chosen, key=lambda record: (record.get("step") is None, record.get("step") or 0))


def _fit(train: list[Record], test: list[Record]) -> str:
    first, last = train[0], train[-1]
    if first.get("accuracy") is None or last.get("accuracy") is None:
        return ""
    text = f"Training accuracy is {last['accuracy']:.3f}{_at(last)}"
    if len(train) > 1:
        text = f"Training accuracy went from {first['accuracy']:.3f}{_at(first)} to {last['accuracy']:.3f}{_at(last)}"
        reached = next((record for record in train if (record.get("accuracy") or 0) >= 0.99), None)
        text += f" (0.99 or more first seen{_at(reached)})" if reached is not None and _at(reached) else ""
    if test and test[-1].get("accuracy") is not None:
        text += f"; test accuracy {'ended at' if len(train) > 1 else 'is'} {test[-1]['accuracy']:.3f}"
    return text + "."


def _at(record: Record) -> str:
    if record.get("step") is not None:
        return f" at step {record['step']}"
    return f" at {record['checkpoint']}" if record.get("checkpoint") else ""


def _collapse(train: list[Record]) -> str:
    parts = [
        _moved(train, "nc1.pinv", "the spread within classes against that between them (NC1) {verb} {first} → {last}"),
        _moved(train, "within.entropy_mean", "the entropy within a class {verb} {first} → {last} nats"),
    ]
    known = [part for part in parts if part]
    they = "both are" if len(known) > 1 else "it is"
    single, classes = train[-1].get("classes_of_one_sample"), train[-1].get("classes_present")
    caution = f"; {single} of {classes} classes have one sample, and so no spread" if single else ""
    return f"On the training split {', and '.join(known)} ({they} 0 at full collapse{caution})." if known else ""


def _alignment(train: list[Record]) -> str:
    parts = [_against_reference(train, "mir", "MIR"), _against_reference(train, "hdr", "HDR")]
    text = "; ".join(part for part in parts if part)
    return f"Class means and classifier rows: {text}." if text else ""


def _head(train: list[Record]) -> str:
    template = "The distance between class means and classifier rows (NC3) {verb} {first} → {last}"
    text = _moved(train, "nc3.duality", template)
    return f"{text}." if text else ""


def _change(last: Record, first: Record, name: str) -> tuple[float, float] | None:
    """Return the difference of two values less their biases, and half of its 95 % interval; None if it is unknown."""
    if corrected_value(last, name) is None or corrected_value(first, name) is None:
        return None
    change = difference(last, first, metrics=[name])
    value, error = change[f"{name}_corrected"], change[f"{name}{STDERR}"]
    return None if value is None or error is None else (value, INTERVAL * error)


def _splits(train: Record, test: Record, name: str, label: str) -> str:
    """Return a sentence on the difference of a number between the training and the test split."""
    if train.get(name) is None or test.get(name) is None:
        return ""
    change = _change(train, test, name)
    if change is None:
        return (
            f"Training and test {label} cannot be compared: it depends on the number of samples, and its bias or error "
            "is not known."
        )
    return f"Training and test {label} {_differ(*change)}."


def _differ(change: float, error: float) -> str:
    decimals = max(0, 1 - math.floor(math.log10(error)))
    verdict = "within their error" if abs(change) <= error else "more than their error"
    return f"differ by {abs(change):.{decimals}f} ± {error:.{decimals}f}: {verdict}"


def _nearest(test: Record) -> str:
    accuracy, disagreement = (test.get(f"{name}_train_means") for name in ("nearest_mean_accuracy", "nc4.disagreement"))
    if accuracy is None:
        return ""
    of_classifier = (
        "" if disagreement is None else f"; the classifier disagrees with that mean for {disagreement:.3f} (NC4)"
    )
    return f"Of the test samples {accuracy:.3f} are nearest to the training mean of their class{of_classifier}."


def _generalisation(train: Record, test: Record) -> str:
    inside, outside = train.get("nc1.pinv"), test.get("nc1.pinv")
    if not inside or not outside:
        return ""
    change = _change(train, test, "nc1.pinv")
    if change is not None and abs(change[0]) <= change[1]:
        return f"At the end training and test NC1 {_differ(*change)}."
    values = corrected_value(train, "nc1.pinv"), corrected_value(test, "nc1.pinv")
    if change is not None and values[0] is not None and values[1] is not None and values[0][0] > 0:
        inside, outside = values[0][0], values[1][0]
    ratio = outside / inside
    if ratio > 1 + UNCHANGED:
        return f"At the end NC1 on test data is {ratio:.3g} times that on training data: unseen samples collapse less."
    if ratio < 1 - UNCHANGED:
        return f"At the end NC1 on test data is only {ratio:.3g} times that on training data."
    return "At the end NC1 is the same on test and training data."


def _barrier(path: Record, shape: str | None) -> str:
    error, loss = path["barrier.error"], path.get("barrier.loss")
    connected = "linearly connected" if shape == "linear" else "connected by this path"
    verdict = (
        f"within the {ONE_BASIN:.0%} under which two networks count as {connected}"
        if error <= ONE_BASIN
        else f"above the {ONE_BASIN:.0%} under which two networks count as {connected}: a barrier parts them"
    )
    of_loss = f" and the loss {_with_error(path, 'barrier.loss')}" if loss is not None else ""
    return (
        f"{ON_A.get(shape or '', 'On the path')} between the two ends ({path['split']}) the error rises at most "
        f"{_with_error(path, 'barrier.error')} above the chord{of_loss}: {verdict}."
    )


def _with_error(path: Record, name: str) -> str:
    """Return a barrier with four decimals, or with its error and whether it is within this error."""
    value, stderr = path[name], path.get(f"{name}{STDERR}")
    if stderr is None:
        return f"{value:.4f}"
    return f"{number_with_error(value, stderr)}{f' ({WITHIN_ERROR})' if is_within_error(value, stderr) else ''}"


def _moved(records: list[Record], name: str, text: str) -> str:
    first, last = records[0].get(name), records[-1].get(name)
    if first is None or last is None:
        return ""
    if len(records) == 1:
        return text.replace("{first} → {last}", "{last}").format(verb="is", last=f"{last:.3g}")
    change = _change(records[-1], records[0], name)
    if change is None:
        return text.format(verb=_verb(first, last), first=f"{first:.3g}", last=f"{last:.3g}")
    within_error = abs(change[0]) <= change[1]
    verb = "held within its error," if within_error else "fell" if change[0] < 0 else "rose"
    return text.format(verb=verb, first=f"{first:.3g}", last=f"{last:.3g}")


def _verb(first: float, last: float) -> str:
    if abs(last - first) <= UNCHANGED * abs(first):
        return "held"
    return "fell" if last < first else "rose"


def _against_reference(records: list[Record], metric: str, label: str) -> str:
    name = f"class.{metric}"
    first, last = records[0].get(name), records[-1].get(name)
    if first is None or last is None or f"reference.{metric}" not in records[-1]:
        return ""
    reference = records[-1][f"reference.{metric}"]
    values = f"{label} {last:.3f}" if len(records) == 1 else f"{label} {first:.3f} → {last:.3f}"
    if reference is None:
        return f"{values}, without a value at collapse to compare with"
    if len(records) == 1:
        return f"{values}; its value at collapse is {reference:.3f}"
    return f"{values}, {_course([record for record in records if record.get(name) is not None], name, reference)}"


def _course(records: list[Record], name: str, reference: float) -> str:
    """Return how a number moved relative to its value at collapse: nearer, past it, or away from it again."""
    distances = [record[name] - reference for record in records]
    sizes = [abs(distance) for distance in distances]
    nearest, slack = min(sizes), UNCHANGED * max(sizes)
    target = f"its value at collapse, {reference:.3f}"
    ended_nearest = sizes[-1] <= nearest + slack
    if distances[0] * distances[-1] < 0 and sizes[-1] > slack:
        return f"passed {target}, and {'ended beyond it' if ended_nearest else 'moved away from it'}"
    if sizes[-1] >= sizes[0]:
        return f"no nearer to {target}"
    if ended_nearest:
        return f"nearer to {target}"
    closest = records[sizes.index(nearest)]
    return f"nearest to {target},{_at(closest)} ({closest[name]:.3f}), and away from it since"
