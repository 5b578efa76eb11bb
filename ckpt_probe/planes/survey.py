"""A plane evaluated point by point: one model, loaded in place; a point without a value says why."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ckpt_probe.analysis import Record
from ckpt_probe.errors import DataError
from ckpt_probe.files import distinct_names
from ckpt_probe.paths.ledger import Ledger
from ckpt_probe.paths.point import Evaluation
from ckpt_probe.planes.directions import Plane
from ckpt_probe.progress import Progress
from ckpt_probe.scheduling import ALONE, Workers, results

Point = tuple[float, float, tuple[str, ...]]
"""x, y and the splits to evaluate there."""


@dataclass(frozen=True)
class Survey:
    """A plane being evaluated, and the records so far."""

    files: tuple[Path, ...]
    plane: Plane
    evaluation: Evaluation
    ledger: Ledger
    records: list[Record]
    staff: Workers = ALONE
    elsewhere: Callable[[Point], list[Record]] | None = None
    """What a worker does for one point, as `evaluated` tells it."""

    def marks(self, progress: Progress) -> list[Record]:
        """The checkpoints' own records with their own statistics, one for each checkpoint and split."""
        found: list[Record] = []
        labels = distinct_names(self.files)
        for file, label, (name, x, y) in zip(self.files, labels, self.plane.marks, strict=True):
            with self.evaluation.subject.setup.open(file) as checkpoint:
                batchnorm = self.evaluation.load(checkpoint.state_dict(), str(file), own=True)
            where: Record = {"name": name, "checkpoint": label, "x": x, "y": y}
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
        splits = self.evaluation.subject.splits
        waiting = [((x, y), [split for split in splits if (x, y, split) not in done]) for x, y in positions]
        missing = [(x, y, tuple(left)) for (x, y), left in waiting if left]
        work = self.elsewhere or partial(self._kept, progress=progress)
        names = [f"({x:g}, {y:g})" for x, y, _ in missing]
        tasks = results(work, missing, names=names, workers=self.staff, say=progress.message)
        try:
            with progress.task("points", len(positions), "points") as bar, closing(tasks):
                bar.advance(len(positions) - len(missing))
                for _, found in tasks:
                    self.records.extend(found)
                    self.ledger.keep_in_time(self.records)
                    bar.advance()
        finally:
            if self.records:
                self.ledger.keep(self.records)

    def in_order(self) -> list[Record]:
        """The records row by row from the lowest, each from the left, splits in their order."""
        splits = self.evaluation.subject.splits
        return sorted(self.records, key=lambda r: (r["y"], r["x"], splits.index(r["split"])))

    def evaluated(self, point: Point, progress: Progress) -> list[Record]:
        """The records of one point of the grid, one for each of its splits."""
        return list(self._evaluated(point, progress))

    def _kept(self, point: Point, progress: Progress) -> list[Record]:
        # Each record is kept at once, so that an interruption between two splits costs neither.
        for record in self._evaluated(point, progress):
            self.records.append(record)
        return []

    def _evaluated(self, point: Point, progress: Progress) -> Iterator[Record]:
        x, y, splits = point
        batchnorm = self.evaluation.load(self.plane.at(x, y), str(self.files[0]))
        for split in splits:
            where: Record = {"x": x, "y": y, "split": split, "batchnorm": batchnorm}
            yield {**where, **self.evaluation.explained_record(split, progress)}
