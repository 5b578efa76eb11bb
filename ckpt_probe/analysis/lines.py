"""Records back from the JSON Lines that keep them: those of `analyze`, of paths, and of a run's metrics."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ckpt_probe.analysis.entries import COUNTS, COUNTS_IF_ANY, POSITION, REFERENCES
from ckpt_probe.dumps import PENULTIMATE
from ckpt_probe.errors import DataError
from ckpt_probe.files import require_regular

_NO_METRIC = frozenset({*POSITION, *COUNTS, *COUNTS_IF_ANY, *REFERENCES, "epoch", "seconds", "to_step"})


def read_lines(path: Path | str) -> list[dict[str, Any]]:
    """The records of a file of JSON Lines, in its order; blank lines are none.

    Raises DataError, naming file and line, where it cannot be read or a line is no JSON object.
    """
    path = Path(path)
    require_regular(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file; expected JSON Lines (one record per line)") from error
    return [_record(line, f"{path}: line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def of_penultimate(records: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The records without those of layers before the penultimate one, which belong to no curve of a run."""
    return [record for record in records if record.get("layer") in (None, PENULTIMATE)]


def metric_names(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names under which at least one of the records has a number that was measured, in their order."""
    names = dict.fromkeys(name for record in records for name, value in record.items() if _is_number(value))
    return [name for name in names if name not in _NO_METRIC]


def number(record: Mapping[str, Any], name: str, where: str) -> float | None:
    """The number that a record has under a name, None where it is null or absent.

    Raises DataError, opening with `where`, for anything else: text, true and false, NaN, infinity.
    """
    value = record.get(name)
    if value is None:
        return None
    if not _is_number(value) or not _is_finite(value):
        raise DataError(f"{where}: {name} is {value!r}, expected a number")
    return float(value)


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}); expected JSON Lines, one record per line") from error
    if not isinstance(record, dict):
        raise DataError(f'{where} is not a record: expected a JSON object such as {{"step": 880, "split": "test"}}')
    return record


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        # A whole number beyond what a float holds.
        return False


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
