"""A plane evaluated point by point: one model, loaded in place; a point without a value says why."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_probe.analysis import Record
from ckpt_probe.errors import DataError
from ckpt_probe.paths.ledger import Ledger
from ckpt_probe.paths.point import Evaluation
from ckpt_probe.planes.directions import Plane
from ckpt_probe.progress import Progress


@dataclass(frozen=True)
class Survey:
    """A plane being evaluated, and the records so far."""

    files: tuple[Path, ...]
    plane: Plane
    evaluation: Evaluation
    ledger: Ledger
    records: list[Record]

    def marks(self, progress: Progress) -> list[Record]:
        """The checkpoints' own records with their own statistics, one for each checkpoint and split."""
        found: list[Record] = []
        for file, (name, x, y) in zip(self.files, self.plane.marks, strict=True):
            with self.evaluation.subject.setup.open(file) as checkpoint:
                batchnorm = self.evaluation.load(checkpoint.state_dict(), str(file), own=True)
            where: Record = {"name": name, "checkpoint": file.name, "x": x, "y": y}
            for split in self.evaluation.subject.splits:
                try:
                    record = self.evaluation.record(split, progress)
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
                    waiting = [split for split in self.evaluation.subject.splits if (x, y, split) not in done]
                    if waiting:
                        self._evaluate(x, y, waiting, progress)
                        self.ledger.keep_in_time(self.records)
                    bar.advance()
        finally:
            if self.records:
                self.ledger.keep(self.records)

    def in_order(self) -> list[Record]:
        """The records row by row from the lowest, each from the left, splits in their order."""
        splits = self.evaluation.subject.splits
        return sorted(self.records, key=lambda r: (r["y"], r["x"], splits.index(r["split"])))

    def _evaluate(self, x: float, y: float, waiting: Sequence[str], progress: Progress) -> None:
        batchnorm = self.evaluation.load(self.plane.at(x, y), str(self.files[0]))
        for split in waiting:
            where: Record = {"x": x, "y": y, "split": split, "batchnorm": batchnorm}
            self.records.append({**where, **self.evaluation.explained_record(split, progress)})
