"""What a trainer keeps beside the weights, as plain values that can be shown and written as JSON."""

import math
from collections.abc import Mapping
from typing import Any

from ckpt_probe.checkpoints.formats.inert import Inert
from ckpt_probe.checkpoints.formats.outlines import Named, NotOutlined, Opaque, Storage

MONITORED = "monitored"
"""The entry of scores by which a trainer chooses checkpoints."""

DEEPEST = 12
MOST_ENTRIES = 64
"""Entries of one mapping or list that are kept."""
MOST_VALUES = 1_000
LONGEST = 200
"""Characters of a text that are kept."""


def plain(values: Mapping[Any, Any]) -> dict[str, Any]:
    """A mapping of anything as one of texts, numbers, lists and mappings, shortened where it is long or deep.

    Raises NotOutlined where an outline does not tell a value that would be kept.
    """
    left = [MOST_VALUES]
    found = _plain(dict(values), left, 0)
    return found if isinstance(found, dict) else {}


def _plain(value: Any, left: list[int], depth: int) -> Any:
    left[0] -= 1
    if isinstance(value, Inert):
        return _plain(value.plain(), left, depth + 1) if depth < DEEPEST else type(value).__name__
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, Opaque | Named | Storage):
        raise NotOutlined
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else "a number of more than 63 bits"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return value if len(value) <= LONGEST else f"{value[:LONGEST]}…"
    if isinstance(value, Mapping | list | tuple | set):
        return _container(value, left, depth)
    return _other(value)


def _container(value: Any, left: list[int], depth: int) -> Any:
    if depth >= DEEPEST or left[0] <= 0:
        return f"{len(value)} entries"
    if isinstance(value, Mapping):
        kept = {str(name): _plain(part, left, depth + 1) for name, part in list(value.items())[:MOST_ENTRIES]}
        return {**kept, "…": f"{len(value) - MOST_ENTRIES} more"} if len(value) > MOST_ENTRIES else kept
    kept = [_plain(part, left, depth + 1) for part in list(value)[:MOST_ENTRIES]]
    return [*kept, f"… {len(value) - MOST_ENTRIES} more"] if len(value) > MOST_ENTRIES else kept


def _other(value: Any) -> Any:
    shape = getattr(value, "shape", None)
    if shape is None:
        # dtypes, devices and the like are known by what they are called.
        return str(value)[:LONGEST] if type(value).__module__ == "torch" else type(value).__name__
    # A tensor: a single number is a loss or a score.
    if len(shape) == 0:
        number = value.item()
        exact = isinstance(number, int) or (isinstance(number, float) and math.isfinite(number))
        return number if exact else str(number)
    return f"tensor of shape {tuple(shape)}"
