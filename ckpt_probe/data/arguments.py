"""Check, parse and suggest arguments of data sources."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from ckpt_probe.errors import UsageError, listed


def require_known(kind: str, arguments: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise UsageError for the first argument that this kind of data does not take."""
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise UsageError(f"unknown argument {unknown[0]}; {kind} takes {listed(sorted(known), len(known))}")


def suggestion(**arguments: Any) -> str:
    """Return data arguments as a keyword for a message; the command line shows it as its option."""
    return f"`data_arguments={arguments!r}`"


def as_list(value: Any) -> list[Any]:
    """Return a value as a list.

    Args:
        value: None (an empty list), a list or tuple, text such as "a,b" or "1,2", which is split, or a single value.
    """
    if value is None:
        return []
    if not isinstance(value, str):
        return list(value) if isinstance(value, list | tuple) else [value]
    try:
        return list(json.loads(f"[{value}]"))
    except ValueError:
        return [part.strip() for part in value.split(",")]
