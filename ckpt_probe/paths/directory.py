"""The directory of a path: its ledger, B in A's order, the midpoint of a curve and its training, and dumps."""

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
class PathDirectory:
    """Names the files of a path."""

    path: Path

    @cached_property
    def ledger(self) -> Ledger:
        """Plan, records, and the summary of a finished path."""
        return Ledger(self.path, "path")

    @property
    def aligned(self) -> Path:
        """B in A's order."""
        return self.path / ALIGNED_FILE

    @property
    def midpoint(self) -> Path:
        """The midpoint of a curve."""
        return self.path / MIDPOINT_FILE

    @property
    def training(self) -> Path:
        """The run that trains the midpoint."""
        return self.path / TRAINING

    def dump(self, alpha: float) -> Path:
        """Return the name of the dump of one point."""
        return self.path / DUMPS / f"alpha-{alpha:.6f}.h5"

    def prepare(self, plan: Record, *, request: Record, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
        """Make the directory ready for a plan, after `Ledger.require_free`.

        Args:
            plan: Settings of the path.
            request: The call, for the command that makes the path again.
            overwrite: Whether to remove the files of an earlier path.
            inputs: Files that the path reads.

        Raises:
            UsageError: If the directory contains points of another plan, or an input would be removed.
        """
        if overwrite:
            self._clear(inputs)
        begun = self.ledger.begun or any(file.exists() for file in (self.aligned, self.midpoint, self.training))
        self.ledger.follow(plan, begun=begun, request=request)

    def _clear(self, inputs: Sequence[Path]) -> None:
        # Only files that a path or its training writes; the user may keep others in the directory.
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
            with suppress(OSError):  # absent, or it contains the user's files
                folder.rmdir()
