"""A plane evaluated point by point: one model, loaded in place; a point without a value says why."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_probe.analysis import Record
from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.errors import DataError
from ckpt_probe.extraction import Subject
from ckpt_probe.paths.ledger import Ledger
from ckpt_probe.paths.point import evaluate_point, explained_point, load_point
from ckpt_probe.planes.directions import Plane
from ckpt_probe.progress import Progress


@dataclass(frozen=True)
class Survey:
    """A plane being evaluated, and the records so far; batchnorm: "recompute", "interpolate" or "none"."""

    files: tuple[Path, ...]
    plane: Plane
    subject: Subject
    splits: tuple[str, ...]
    batchnorm: str
    batchnorm_samples: int
    batch_size: int
    ledger: Ledger
    records: list[Record]

    def marks(self, progress: Progress) -> list[Record]:
        """The checkpoints' own records with their own statistics, one for each checkpoint and split."""
        found: list[Record] = []
        batchnorm = "none" if self.batchnorm == "none" else "own"
        for file, (name, x, y) in zip(self.files, self.plane.marks, strict=True):
            with open_checkpoint(file) as checkpoint:
                self.subject.load(checkpoint.state_dict(), str(file))
            where: Record = {"name": name, "checkpoint": file.name, "x": x, "y": y}
            for split in self.splits:
                try:
                    record = evaluate_point(self.subject, split, self.batch_size, progress)
                except DataError as error:
                    raise DataError(f"{file}: {split}: {error}") from error
                found.append({**where, "split": split, "batchnorm": batchnorm, **record})
        return found

    def visit(self, positions: Sequence[tuple[float, float]], progress: Progress) -> None:
        """Evaluate the positions (x, y) that have no record yet; what is evaluated is kept whatever stops it."""
        done = {(record["x"], record["y"], record["split"]) for record in self.records}
        try:
            with progress.task("points", len(positions), "points") as bar:
                for x, y in positions:
                    waiting = [split for split in self.splits if (x, y, split) not in done]
                    if waiting:
                        self._evaluate(x, y, waiting, progress)
                        self.ledger.keep_in_time(self.records)
                    bar.advance()
        finally:
            if self.records:
                self.ledger.keep(self.records)

    def in_order(self) -> list[Record]:
        """The records row by row from the lowest, each from the left, splits in their order."""
        return sorted(self.records, key=lambda r: (r["y"], r["x"], self.splits.index(r["split"])))

    def _evaluate(self, x: float, y: float, waiting: Sequence[str], progress: Progress) -> None:
        samples = self.batchnorm_samples if self.batchnorm == "recompute" else None
        load_point(self.subject, self.plane.at(x, y), str(self.files[0]), self.splits, samples=samples)
        for split in waiting:
            where: Record = {"x": x, "y": y, "split": split, "batchnorm": self.batchnorm}
            self.records.append({**where, **explained_point(self.subject, split, self.batch_size, progress)})
