"""Records as lines that other programs read."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ckpt_probe.errors import in_cell, in_json

Record = Mapping[str, Any]


def to_json_line(record: Record) -> str:
    """One record as one line of JSON; a missing value is null. Raises ValueError for NaN, which JSON does not have."""
    return in_json(json.dumps(record, allow_nan=False, ensure_ascii=False))


def to_csv(records: Sequence[Record]) -> str:
    """All records as CSV with one header; columns in the order of the first record, others after it; missing: empty."""
    text = io.StringIO()
    columns = _columns(records)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([in_cell(name) for name in columns])
    writer.writerows([_cell(record.get(name)) for name in columns] for record in records)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return in_cell(value) if isinstance(value, str) else value


def _columns(records: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record))
