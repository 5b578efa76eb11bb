"""The directory of a plane: its plan, the points so far, and what the whole gave once it is finished."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ckpt_probe.analysis import Record
from ckpt_probe.errors import UsageError
from ckpt_probe.files import write_text
from ckpt_probe.paths.ledger import PLAN_FILE, POINTS_FILE, Ledger
from ckpt_probe.paths.place import PATH_FILE

PLANE_FILE = "plane.json"


@dataclass(frozen=True)
class PlanePlace:
    """The directory of a plane: its plan, the points so far, and what the whole gave once it is finished."""

    path: Path

    @cached_property
    def ledger(self) -> Ledger:
        """Its plan and points."""
        return Ledger(self.path)

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
        if self.ledger.planned and self.ledger.begun:
            self.ledger.require_same(plan, "something else")
        else:
            self.ledger.open(plan)

    def require_free(self, *, overwrite: bool, resume: bool) -> None:
        """Raise UsageError where what it holds may be neither replaced nor gone on with."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path}: a file, where the plane's directory is to be")
        if (self.path / PATH_FILE).exists():
            raise UsageError(f"{self.path}: holds a path between two checkpoints; choose another name")
        if self.finished and not overwrite and not resume:
            raise UsageError(f"{self.path}: holds a finished plane; --overwrite replaces it, --resume shows it")
        if self.ledger.begun and not self.ledger.planned and not overwrite:
            raise UsageError(f"{self.path}: holds points of unknown origin; --overwrite replaces them")

    def finish(self, found: Record) -> None:
        """Write what the whole plane gave."""
        text = json.dumps({"plan": self.ledger.plan(), **found}, indent=2, allow_nan=False) + "\n"
        write_text(self.path / PLANE_FILE, text, overwrite=True)

    def found(self) -> Record:
        """What `finish` has kept."""
        return json.loads((self.path / PLANE_FILE).read_text(encoding="utf-8"))
