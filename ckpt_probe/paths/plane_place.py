"""The directory of a plane: its plan, the points so far, and what the whole gave once it is finished."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_probe.analysis import Record
from ckpt_probe.errors import UsageError
from ckpt_probe.files import write_text
from ckpt_probe.paths.place import PATH_FILE, PLAN_FILE, POINTS_FILE

PLANE_FILE = "plane.json"


@dataclass(frozen=True)
class PlanePlace:
    """The directory of a plane: its plan, the points so far, and what the whole gave once it is finished."""

    path: Path

    @property
    def finished(self) -> bool:
        """Whether it holds a whole plane."""
        return (self.path / PLANE_FILE).exists()

    def prepare(self, plan: Record, *, overwrite: bool, resume: bool) -> None:
        """Make it ready for this plan; a finished plane is left as it is where `resume` is set.

        Raises UsageError where it holds a path, a finished plane and neither is set, or points of another plane.
        """
        self.require_free(overwrite=overwrite, resume=resume)
        if overwrite:
            for name in (PLANE_FILE, POINTS_FILE, PLAN_FILE):
                (self.path / name).unlink(missing_ok=True)
        if not (self.path / PLAN_FILE).exists():
            write_text(self.path / PLAN_FILE, json.dumps(plan, indent=2) + "\n")
            return
        earlier = self.plan()
        changed = [f"{key} {earlier.get(key)!r} / {plan[key]!r}" for key in plan if earlier.get(key) != plan[key]]
        if changed:
            told = "; ".join(changed)
            raise UsageError(
                f"{self.path}: holds points of something else (there / now): {told}; --overwrite replaces them"
            )

    def require_free(self, *, overwrite: bool, resume: bool) -> None:
        """Raise UsageError where what it holds may be neither replaced nor gone on with."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path}: a file, where the plane's directory is to be")
        if (self.path / PATH_FILE).exists():
            raise UsageError(f"{self.path}: holds a path between two checkpoints; choose another name")
        if self.finished and not overwrite and not resume:
            raise UsageError(f"{self.path}: holds a finished plane; --overwrite replaces it, --resume shows it")
        if (self.path / POINTS_FILE).exists() and not (self.path / PLAN_FILE).exists() and not overwrite:
            raise UsageError(f"{self.path}: holds points of unknown origin; --overwrite replaces them")

    def plan(self) -> Record:
        """The plan that it was made ready for."""
        return json.loads((self.path / PLAN_FILE).read_text(encoding="utf-8"))

    def points(self) -> list[Record]:
        """The records that an earlier call has left."""
        file = self.path / POINTS_FILE
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []

    def keep(self, records: Sequence[Record]) -> None:
        """Write the records so far."""
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        write_text(self.path / POINTS_FILE, text, overwrite=True)

    def finish(self, found: Record) -> None:
        """Write what the whole plane gave."""
        text = json.dumps({"plan": self.plan(), **found}, indent=2, allow_nan=False) + "\n"
        write_text(self.path / PLANE_FILE, text, overwrite=True)

    def found(self) -> Record:
        """What `finish` has kept."""
        return json.loads((self.path / PLANE_FILE).read_text(encoding="utf-8"))
