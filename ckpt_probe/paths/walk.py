"""A path evaluated point by point: one model, loaded in place; nothing written but the records."""

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ckpt_probe.analysis import Record, in_order
from ckpt_probe.checkpoints import State
from ckpt_probe.errors import DataError
from ckpt_probe.paths.place import PathPlace
from ckpt_probe.paths.point import Evaluation
from ckpt_probe.paths.point_dumps import point_writer
from ckpt_probe.paths.positions import barrier
from ckpt_probe.progress import Progress, Task
from ckpt_probe.scheduling import ALONE, Workers, results


@dataclass(frozen=True)
class Walk:
    """A path being evaluated, and the records so far.

    state_at: α → the state dict there. dumps: whether each point's features are kept. staff: who evaluates the points;
    elsewhere: what a worker does for one position, as `evaluated` does here.
    """

    ends: tuple[Path, Path]
    state_at: Callable[[float], State]
    evaluation: Evaluation
    place: PathPlace
    records: list[Record]
    dumps: bool = False
    staff: Workers = ALONE
    elsewhere: Callable[[float], list[Record]] | None = None

    def visit(self, alphas: Sequence[float], bar: Task, progress: Progress) -> None:
        """Evaluate the positions that have no record yet; what is evaluated is kept whatever stops it."""
        there = {(record["alpha"], record["split"]) for record in self.records}
        splits = self.evaluation.subject.splits
        known = {alpha for alpha, _ in there if all((alpha, split) in there for split in splits)}
        # A position is kept with all its splits: one without some is of a damaged file, and is evaluated again.
        self.records[:] = [record for record in self.records if record["alpha"] in known]
        missing = [alpha for alpha in alphas if alpha not in known]
        bar.advance(len(alphas) - len(missing))
        work = self.elsewhere or partial(self.evaluated, progress=progress)
        names = [f"alpha {alpha:g}" for alpha in missing]
        tasks = results(work, missing, names=names, workers=self.staff, say=progress.message)
        try:
            with closing(tasks):
                for _, found in tasks:
                    self.records.extend(found)
                    self.place.ledger.keep_in_time(self.records)
                    bar.advance()
        finally:
            if self.records:
                self.place.ledger.keep(self.records)

    def curves(self) -> tuple[list[float], list[list[float]]]:
        """Positions from 0 to 1, and loss and error of every split at each, where they are known."""
        inside = [record for record in self.in_order() if 0 <= record["alpha"] <= 1]
        alphas = sorted({record["alpha"] for record in inside})
        found = []
        for split in self.evaluation.subject.splits:
            mine = [record for record in inside if record["split"] == split]
            losses, rights = [r["loss"] for r in mine], [r["accuracy"] for r in mine]
            found += [losses] if None not in losses else []
            found += [[1 - right for right in rights]] if None not in rights else []
        return alphas, found

    def in_order(self) -> list[Record]:
        """The records by position."""
        return sorted(self.records, key=lambda record: record["alpha"])

    def evaluated(self, alpha: float, progress: Progress) -> list[Record]:
        """The records of one position, one for each split."""
        try:
            state = self.state_at(alpha)
        except DataError as error:
            raise DataError(f"{self.ends[0]}, {self.ends[1]}: {error}") from error
        # The ends are trained networks, with statistics of their own.
        subject, trained = self.evaluation.subject, alpha in (0, 1)
        batchnorm = self.evaluation.load(state, str(self.ends[0]), own=trained)
        place, records = {"alpha": alpha, "batchnorm": batchnorm}, []
        path, name = self.place.dump(alpha), f"{self.ends[0].stem} to {self.ends[1].stem}, alpha {alpha:g}"
        with point_writer(path, name, alpha, subject) if self.dumps else nullcontext() as writer:
            for split in subject.splits:
                # The ends are trained networks: where one of them is dead, there is no path to speak of.
                evaluate = self.evaluation.record if trained else self.evaluation.explained_record
                try:
                    record = evaluate(split, progress, writer=writer)
                except DataError as error:
                    raise DataError(f"{self.ends[0]}, {self.ends[1]}: alpha {alpha:g}, {split}: {error}") from error
                records.append(in_order({**place, "split": split, **record}))
        return records


def barriers(records: Sequence[Record], split: str, batchnorm: str) -> Record:
    """The barriers of loss and error of a split between 0 and 1, with the α of each and the mean excess."""
    of_split = [r for r in records if r["split"] == split and 0 <= r["alpha"] <= 1]
    alphas = [record["alpha"] for record in of_split]
    summary: Record = {"split": split, "points": len(alphas), "batchnorm": batchnorm}
    errors = [None if r["accuracy"] is None else 1 - r["accuracy"] for r in of_split]
    quantities = {"loss": [r["loss"] for r in of_split], "error": errors}
    for quantity, values in quantities.items():
        found = None if any(value is None for value in values) else barrier(alphas, values)
        summary[f"barrier.{quantity}"] = found.value if found else None
        summary[f"barrier.{quantity}_alpha"] = found.alpha if found else None
        summary[f"barrier.{quantity}_mean"] = found.mean if found else None
    return summary
