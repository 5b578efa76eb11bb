"""The order of a run's files: by training step, the same for checkpoints and dumps."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

STEP = re.compile(r"(?:step|iter(?:ation)?s?|ckpt|checkpoint)[-_=.]?(\d+)", re.IGNORECASE)
"""What frameworks write before a step: step, global_step, iter, ckpt, checkpoint."""
EPOCH = re.compile(r"(?:epoch|(?<![a-z])ep)[-_=.]?(\d+)", re.IGNORECASE)
NUMBER = re.compile(r"(?<![a-z0-9])(?<!\d\.)(\d+)(?![a-z0-9]|\.\d)", re.IGNORECASE)
"""A number by itself: not that of `resnet50`, nor one with a fraction."""


@dataclass(frozen=True)
class Member:
    """One checkpoint or dump of a series: where it is, what it is called, and its training step where one is known.

    step_source: where the step was found ("metadata", "trainer_state.json", "name", "epoch in the name", …).
    also: other files of the series that hold the same weights, and are not counted again.
    """

    path: Path
    name: str
    step: int | None
    step_source: str | None = None
    also: tuple[str, ...] = ()


def step_from_name(name: str) -> int | None:
    """The training step that a name spells, its epoch where it spells no step, else its last number.

    `step-000500` → 500, `checkpoint-1500` → 1500, `epoch=3-step=1000` → 1000, `epoch_12` → 12, `final` → None.
    """
    found = named_step(name)
    return None if found is None else found[0]


def named_step(name: str) -> tuple[int, str] | None:
    """The step that a name spells and by what: "name", "epoch in the name" or "number in the name"."""
    for pattern, source in ((STEP, "name"), (EPOCH, "epoch in the name"), (NUMBER, "number in the name")):
        numbers = pattern.findall(name)
        if numbers:
            return int(numbers[-1]), source
    return None


def in_order(members: Iterable[Member]) -> list[Member]:
    """Members by step, those without one last; equal steps by name, numbers in names compared as numbers."""
    return sorted(members, key=lambda m: (m.step is None, m.step or 0, natural(m.name), str(m.path)))


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key by which names are ordered, numbers in them as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]
