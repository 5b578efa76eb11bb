"""Names of averaged or delayed copies of a network, which files hold beside the network that is trained."""

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

COPY = re.compile(r"(^|[._])(ema|swa|k|key|slow|shadow|teacher|momentum|target|avg|averaged?|moving)(?=[._\d]|$)", re.I)
Entry = TypeVar("Entry")


def trained_first(entries: Iterable[Entry], name: Callable[[Entry], str] = str) -> list[Entry]:
    """Return entries in their order, but those after the others whose names say that they are copies."""
    return sorted(entries, key=lambda entry: COPY.search(name(entry)) is not None)
