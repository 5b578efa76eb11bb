"""The directory of a path: its plan, the points so far, and the summary once it is finished."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ckpt_probe.analysis import Record
from ckpt_probe.errors import UsageError
from ckpt_probe.files import write_text
from ckpt_probe.paths.ledger import PLAN_FILE, POINTS_FILE, Ledger

PATH_FILE = "path.json"
ALIGNED_FILE = "aligned.safetensors"
MIDPOINT_FILE = "midpoint.safetensors"
TRAINING = "curve"
DUMPS = "dumps"


@dataclass(frozen=True)
class PathPlace:
    """The directory of a path: its plan, the points so far, and the summary once it is finished."""

    path: Path

    @cached_property
    def ledger(self) -> Ledger:
        """Its plan and points."""
        return Ledger(self.path)

    @property
    def aligned(self) -> Path:
        """B in A's order."""
        return self.path / ALIGNED_FILE

    @property
    def midpoint(self) -> Path:
        """The point over which a curve bends."""
        return self.path / MIDPOINT_FILE

    @property
    def training(self) -> Path:
        """The run that found it."""
        return self.path / TRAINING

    @property
    def finished(self) -> bool:
        """Whether it holds a whole path."""
        return (self.path / PATH_FILE).exists()

    def dump(self, alpha: float) -> Path:
        """The dump of one point."""
        return self.path / DUMPS / f"alpha-{alpha:.6f}.h5"

    def prepare(self, plan: Record, *, overwrite: bool, resume: bool = False, inputs: Sequence[Path] = ()) -> None:
        """Make it ready for this plan, which reads `inputs`; a finished path is left as it is where `resume` is set.

        Raises UsageError where it holds a finished path and neither is set, or points of another path.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path}: a file, where the path's directory is to be")
        if self.finished and not overwrite and not resume:
            told = "--overwrite replaces it, --resume shows it, or choose another name"
            raise UsageError(f"{self.path}: holds a finished path; {told}")
        if overwrite:
            self._clear(inputs)
        begun = (POINTS_FILE, ALIGNED_FILE, MIDPOINT_FILE, TRAINING)
        if self.ledger.planned and any((self.path / name).exists() for name in begun):
            self.ledger.require_same(plan, "another path")
            return
        if self.ledger.begun:
            raise UsageError(f"{self.path}: holds points of an unknown path; --overwrite replaces them")
        self.ledger.open(plan)

    def finish(self, ends: tuple[Path, Path], found: Record) -> None:
        """Write what the whole path gave."""
        told = {"from": ends[0].name, "to": ends[1].name, "plan": self.ledger.plan(), **found}
        write_text(self.path / PATH_FILE, json.dumps(told, indent=2, allow_nan=False) + "\n", overwrite=True)

    def found(self) -> Record:
        """What `finish` has kept."""
        return json.loads((self.path / PATH_FILE).read_text())

    def _clear(self, inputs: Sequence[Path]) -> None:
        ours = [self.path / name for name in (PATH_FILE, POINTS_FILE, PLAN_FILE, ALIGNED_FILE, MIDPOINT_FILE)]
        ours += (self.path / DUMPS).glob("alpha-*.h5")
        for file in ours:
            if file.exists() and any(path.exists() and file.samefile(path) for path in inputs):
                raise UsageError(f"{file}: is read by this path, and would be overwritten; choose another directory")
        for file in ours:
            file.unlink(missing_ok=True)
