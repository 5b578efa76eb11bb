"""The order of a run's files: by training step, the same for checkpoints and dumps."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Member:
    """One file of a series: where it is, what it is called, and its training step where one is known."""

    path: Path
    name: str
    step: int | None


def step_from_name(name: str) -> int | None:
    """The training step that a name spells: the number after "step" where there is one, else the last number.

    `step-000500` → 500, `checkpoint-1500` → 1500, `epoch=3-step=1000` → 1000, `final` → None.
    """
    after_step = re.findall(r"step[-_=.]?(\d+)", name, flags=re.IGNORECASE)
    numbers = after_step or re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


def in_order(members: Iterable[Member]) -> list[Member]:
    """Members by step, those without one last; equal steps by name, numbers in names compared as numbers."""
    return sorted(members, key=lambda m: (m.step is None, m.step or 0, _natural(m.name), str(m.path)))


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]
