"""Arguments of data as a person writes them: which are known, and lists that came as text."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from ckpt_probe.errors import UsageError, listed


def require_known(kind: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise UsageError where an argument is none that this kind of data takes."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UsageError(f"unknown argument {unknown[0]}; {kind} takes {listed(sorted(known), len(known))}")


def as_list(value: Any) -> list[Any]:
    """A value as a list: its parts where it is a text such as "a,b" or "1,2", none of None, else the value itself."""
    if value is None:
        return []
    if not isinstance(value, str):
        return list(value) if isinstance(value, list | tuple) else [value]
    try:
        return list(json.loads(f"[{value}]"))
    except ValueError:
        return [part.strip() for part in value.split(",")]
