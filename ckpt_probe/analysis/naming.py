"""Rows of classes with the names of their classes, where a dump has them."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

CONFUSION, NAMED_CONFUSION = "nearest.confusion", "nearest.named"
PLAIN = re.compile(r"[\w.'-]+")
"""Names that need no quotes beside a colon and a count."""


def named_rows(rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None) -> list[dict[str, Any]]:
    """Rows with a `class_name` after the `class`, and the confusion by names in `nearest.named` beside that by numbers.

    Without names the rows are as they were; a class beyond the names keeps its number for one.
    """
    if not names:
        return [dict(row) for row in rows]
    return [_named(row, names) for row in rows]


def _named(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in row.items():
        found[key] = value
        if key == "class":
            found["class_name"] = _name(value, names)
        elif key == CONFUSION and value is not None:
            pairs = (part.split(":") for part in value.split())
            found[NAMED_CONFUSION] = " ".join(f"{_quoted(_name(int(c), names))}:{count}" for c, count in pairs)
    return found


def _name(label: int, names: Sequence[str]) -> str:
    return names[label] if label < len(names) else str(label)


def _quoted(name: str) -> str:
    return name if PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)
