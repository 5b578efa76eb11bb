"""Numbers in tables and on the page: four digits, or with a standard error as `0.5991(24)`."""

import math
from collections.abc import Mapping
from typing import Any

from ckpt_probe.analysis.entries import STDERR

SMALLEST, LARGEST = 1e-3, 1e5
"""Numbers outside are written in powers of ten."""


INTERVAL = 1.96
"""Standard errors from a value to the ends of its 95 % interval, up to which a difference is within its error."""

WITHIN_ERROR, MISSING = "within its error", "–"


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


def error_of(record: Mapping[str, Any], name: str) -> float | None:
    """Return the standard error of a metric in a record, or None."""
    error = record.get(f"{name}{STDERR}")
    return error if isinstance(error, int | float) and not isinstance(error, bool) else None
