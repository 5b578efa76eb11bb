"""The directory of a path: its ledger, and what else is kept of it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ckpt_probe.analysis import Record
from ckpt_probe.errors import UsageError
from ckpt_probe.paths.ledger import Ledger

ALIGNED_FILE = "aligned.safetensors"
MIDPOINT_FILE = "midpoint.safetensors"
TRAINING = "curve"
DUMPS = "dumps"


@dataclass(frozen=True)
class PathPlace:
    """The directory of a path: its ledger, and what else is kept of it."""

    path: Path

    @cached_property
    def ledger(self) -> Ledger:
        """Its plan, its points, and the summary once it is finished."""
        return Ledger(self.path, "path")

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

    def dump(self, alpha: float) -> Path:
        """The dump of one point."""
        return self.path / DUMPS / f"alpha-{alpha:.6f}.h5"

    def prepare(
        self,
        plan: Record,
        *,
        request: Record,
        overwrite: bool,
        resume: bool = False,
        inputs: Sequence[Path] = (),
    ) -> None:
        """Make it ready for this plan, which reads `inputs`; a finished path is left as it is where `resume` is set.

        Raises UsageError where it holds a finished path and neither is set, or points of another path, or a plane.
        """
        self.ledger.require_free(overwrite=overwrite, resume=resume)
        if overwrite:
            self._clear(inputs)
        begun = self.ledger.begun or any(found.exists() for found in (self.aligned, self.midpoint, self.training))
        self.ledger.follow(plan, begun=begun, request=request)

    def _clear(self, inputs: Sequence[Path]) -> None:
        # Only what a path or its training writes: anything else in the directory is its owner's.
        run, dumps = self.training, self.path / DUMPS
        checkpoints = run / "checkpoints"
        ours = [self.aligned, self.midpoint, *dumps.glob("alpha-*.h5"), run / "state.safetensors"]
        ours += [*checkpoints.glob("step-*.safetensors"), run / "metrics.jsonl", run / "config.json"]
        ours += self.ledger.files
        for file in ours:
            if file.exists() and any(path.exists() and file.samefile(path) for path in inputs):
                raise UsageError(f"{file}: this path reads the file and would overwrite it; choose another directory")
        for file in ours:
            file.unlink(missing_ok=True)
        for folder in (dumps, checkpoints, run):
            with suppress(OSError):  # it is not there, or holds what is not ours
                folder.rmdir()
