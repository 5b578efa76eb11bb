"""Numbers with their errors as text, and sentences about splits of a run, about paths and about planes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_probe.analysis.entries import STDERR, corrected_value
from ckpt_probe.analysis.records import finite
from ckpt_probe.moments import difference

SMALLEST, LARGEST = 1e-3, 1e5
"""Numbers outside are written in powers of ten."""


INTERVAL = 1.96
"""Standard errors from a value to the ends of its 95 % interval, up to which a difference is within its error."""

WITHIN_ERROR, MISSING = "within its error", "–"

Record = Mapping[str, Any]


def is_within_error(value: float, stderr: float | None) -> bool:
    """Return whether the 95 % interval of a difference contains zero; false if its standard error is not known."""
    return stderr is not None and abs(value) <= INTERVAL * stderr


def short_number(value: float | None) -> str:
    """Format a number with four significant digits and at most four decimals, or in powers of ten; None as a dash."""
    if value is None:
        return MISSING
    if value != 0 and (abs(value) < SMALLEST or abs(value) >= LARGEST):
        return f"{value:.3e}"
    before = len(str(int(abs(value))))
    return f"{value:.{max(0, 4 - before) if abs(value) >= 1 else 4}f}"


def number_with_error(value: float | None, stderr: float | None) -> str:
    """Format a number with its standard error in units of its last digits: 0.5991(24) is 0.5991 ± 0.0024.

    The error has two significant digits, and the number as many decimals.

    Args:
        value: The number; None returns a dash.
        stderr: Its standard error; None or zero returns the number alone.
    """
    if value is None or not stderr or not math.isfinite(stderr) or not math.isfinite(value):
        return short_number(value)
    size = max(abs(value), stderr)
    if size < SMALLEST or size >= LARGEST:
        exponent = math.floor(math.log10(size))
        return f"{_in_digits(value / 10.0**exponent, stderr / 10.0**exponent)}e{exponent:+03d}"
    return _in_digits(value, stderr)


def number_in(form: str, value: float, stderr: float | None) -> str:
    """Format a number with its standard error, or in a format such as ".4g" if it has none."""
    return f"{value:{form}}" if stderr is None else number_with_error(value, stderr)


def _in_digits(value: float, stderr: float) -> str:
    # Two digits of the error after it is rounded: 0.0996 is 0.10.
    decimals = 1 - math.floor(math.log10(float(f"{stderr:.1e}")))
    if decimals < 0:
        return f"{round(value, decimals):.0f}({round(stderr, decimals):.0f})"
    return f"{value:.{decimals}f}({round(stderr * 10**decimals)})"


def error_of(record: Record, name: str) -> float | None:
    """Return the standard error of a metric in a record, or None."""
    return finite(record.get(f"{name}{STDERR}"))


ONE_BASIN = 0.02
"""Error barrier under which two networks count as linearly connected (Frankle et al. 2020, section 3).

There it is the rise above the mean of both ends, which is that above the chord where both ends have the same error.
"""


def read_supported(records: Sequence[Record]) -> list[str]:
    """Return sentences on MIR and NC1 of the training against the test split at the last step of one run.

    Values are compared less their bias; ± is half of the 95 % interval, from paired errors for records of the same
    rows. Without standard errors, or without one of the splits, there is no sentence.
    """
    train, test = (_last_of_split(records, split) for split in ("train", "test"))
    if train is None or test is None:
        return []
    nc1, mir = _change(train, test, "nc1.pinv"), _change(train, test, "class.mir")
    sentences = []
    if nc1 is not None and train["nc1.pinv"] and test["nc1.pinv"] and abs(nc1[0]) <= nc1[1]:
        sentences.append(f"At the end training and test NC1 {_differ(*nc1)}.")
    if mir is not None:
        sentences.append(f"Training and test MIR {_differ(*mir)}.")
    return sentences


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


def _last_of_split(records: Sequence[Record], split: str) -> Record | None:
    chosen = [record for record in records if record.get("split") == split]
    return max(reversed(chosen), key=lambda each: (each.get("step") is None, each.get("step") or 0), default=None)


def _change(last: Record, first: Record, name: str) -> tuple[float, float] | None:
    """Return the difference of two values less their biases, and half of its 95 % interval; None if it is unknown."""
    if corrected_value(last, name) is None or corrected_value(first, name) is None:
        return None
    change = difference(last, first, metrics=[name])
    value, error = change[f"{name}_corrected"], change[f"{name}{STDERR}"]
    return None if value is None or error is None else (value, INTERVAL * error)


def _differ(change: float, error: float) -> str:
    decimals = max(0, 1 - math.floor(math.log10(error)))
    verdict = "within their error" if abs(change) <= error else "more than their error"
    return f"differ by {abs(change):.{decimals}f} ± {error:.{decimals}f}: {verdict}"


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
    return number_in(".4f", value, stderr) + (f" ({WITHIN_ERROR})" if is_within_error(value, stderr) else "")
