"""Names of averaged or delayed copies of a network in a checkpoint, such as `ema` and `teacher`."""

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

COPY = re.compile(r"(^|[._])(ema|swa|k|key|slow|shadow|teacher|momentum|target|avg|averaged?|moving)(?=[._\d]|$)", re.I)
Entry = TypeVar("Entry")


def trained_first(entries: Iterable[Entry], name: Callable[[Entry], str] = str) -> list[Entry]:
    """Return entries in their order, with those last whose names are names of copies."""
    return sorted(entries, key=lambda entry: COPY.search(name(entry)) is not None)
