"""What a directory of evaluated points holds: the plan that they follow, and their records so far."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from ckpt_probe.analysis import Record
from ckpt_probe.errors import UsageError
from ckpt_probe.files import write_text

PLAN_FILE = "plan.json"
POINTS_FILE = "points.jsonl"
PAUSE = 20
"""Records are written again after so many times as long as the last writing took, which so never costs much."""


class Ledger:
    """plan.json and points.jsonl of a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._due = 0.0

    @property
    def planned(self) -> bool:
        """Whether there is a plan."""
        return (self.path / PLAN_FILE).exists()

    @property
    def begun(self) -> bool:
        """Whether there are points."""
        return (self.path / POINTS_FILE).exists()

    def plan(self) -> Record:
        """The plan that the points follow."""
        return json.loads((self.path / PLAN_FILE).read_text(encoding="utf-8"))

    def open(self, plan: Record) -> None:
        """Write the plan."""
        write_text(self.path / PLAN_FILE, json.dumps(plan, indent=2) + "\n", overwrite=True)

    def require_same(self, plan: Record, other: str) -> None:
        """Raise UsageError naming what differs where the points are those of `other`, such as "another path"."""
        # As it would be read back: a tuple is a list there.
        earlier, plan = self.plan(), json.loads(json.dumps(plan))
        changed = [f"{key} {earlier.get(key)!r} / {plan[key]!r}" for key in plan if earlier.get(key) != plan[key]]
        if changed:
            told = f"(there / now): {'; '.join(changed)}; --overwrite replaces them"
            raise UsageError(f"{self.path}: holds points of {other} {told}")

    def points(self) -> list[Record]:
        """The records that an earlier call has left."""
        if not self.begun:
            return []
        return [json.loads(line) for line in (self.path / POINTS_FILE).read_text(encoding="utf-8").splitlines()]

    def keep(self, records: Sequence[Record]) -> None:
        """Write the records so far."""
        started = time.monotonic()
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        write_text(self.path / POINTS_FILE, text, overwrite=True)
        now = time.monotonic()
        self._due = now + PAUSE * (now - started)

    def keep_in_time(self, records: Sequence[Record]) -> None:
        """Write the records so far, unless that was done a moment ago."""
        if time.monotonic() >= self._due:
            self.keep(records)
