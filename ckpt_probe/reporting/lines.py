"""Records as JSON Lines and CSV."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ckpt_probe.errors import in_cell, in_json

Record = Mapping[str, Any]


def to_json_line(record: Record) -> str:
    """Return a record as a line of JSON, a missing value as null; raise ValueError for NaN, which JSON lacks."""
    return in_json(json.dumps(record, allow_nan=False, ensure_ascii=False))


def to_csv(records: Sequence[Record]) -> str:
    """Return records as CSV with a header; columns are in order of appearance, missing values are empty."""
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
