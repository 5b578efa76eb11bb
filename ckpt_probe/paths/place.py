"""The directory of a path: its plan, the points so far, and the summary once it is finished."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_probe.analysis import Record
from ckpt_probe.errors import UsageError
from ckpt_probe.files import write_text

POINTS_FILE = "points.jsonl"
PATH_FILE = "path.json"
PLAN_FILE = "plan.json"
ALIGNED_FILE = "aligned.safetensors"


@dataclass(frozen=True)
class PathPlace:
    """The directory of a path: its plan, the points so far, and the summary once it is finished."""

    path: Path

    def prepare(self, plan: Record, *, overwrite: bool) -> None:
        """Make it ready for this plan. Raises UsageError where it holds a finished path or points of another one."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path}: a file, where the path's directory is to be")
        if (self.path / PATH_FILE).exists() and not overwrite:
            raise UsageError(f"{self.path}: holds a finished path; --overwrite replaces it, or choose another name")
        if overwrite:
            for name in (PATH_FILE, POINTS_FILE, PLAN_FILE, ALIGNED_FILE):
                (self.path / name).unlink(missing_ok=True)
        if (self.path / PLAN_FILE).exists():
            self._require_same(plan)
            return
        if (self.path / POINTS_FILE).exists():
            raise UsageError(f"{self.path}: holds points of an unknown path; --overwrite replaces them")
        write_text(self.path / PLAN_FILE, json.dumps(plan, indent=2) + "\n")

    def points(self) -> list[Record]:
        """The records that an earlier call has left."""
        file = self.path / POINTS_FILE
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def keep(self, records: Sequence[Record]) -> None:
        """Write the records so far."""
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        write_text(self.path / POINTS_FILE, text, overwrite=True)

    def finish(self, ends: tuple[Path, Path], found: Record) -> None:
        """Write what the whole path gave."""
        plan = json.loads((self.path / PLAN_FILE).read_text())
        told = {"from": ends[0].name, "to": ends[1].name, "plan": plan, **found}
        write_text(self.path / PATH_FILE, json.dumps(told, indent=2, allow_nan=False) + "\n", overwrite=True)

    def _require_same(self, plan: Record) -> None:
        earlier = json.loads((self.path / PLAN_FILE).read_text())
        changed = [f"{key} {earlier.get(key)!r} / {plan[key]!r}" for key in plan if earlier.get(key) != plan[key]]
        if changed:
            told = "; ".join(changed)
            raise UsageError(
                f"{self.path}: holds points of another path (there / now): {told}; --overwrite replaces them"
            )
