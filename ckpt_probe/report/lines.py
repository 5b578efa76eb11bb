"""Records as lines that other programs read."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def to_json_line(record: Record) -> str:
    """One record as one line of JSON; a missing value is null. Raises ValueError for NaN, which JSON does not have."""
    return json.dumps(record, allow_nan=False, ensure_ascii=False)


def to_csv(records: Sequence[Record]) -> str:
    """All records as CSV with one header; columns in the order of the first record, others after it; missing: empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=_columns(records), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _columns(records: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record))
