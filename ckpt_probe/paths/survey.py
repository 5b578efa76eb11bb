"""Positions in weight space, on a path or on the grid of a plane, each evaluated once by one model loaded in place."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from ckpt_probe.analysis import Record, in_order
from ckpt_probe.checkpoints import State
from ckpt_probe.errors import error_context
from ckpt_probe.extraction import StoreWriter
from ckpt_probe.paths.barrier_errors import write_influences
from ckpt_probe.paths.ledger import AXES, Ledger
from ckpt_probe.paths.point import PointEvaluation, point_writer
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.scheduling import Workers, made_once, results

Position = tuple[float, ...]
"""(alpha,) on a path, (x, y) in a plane."""


@dataclass(frozen=True)
class Survey:
    """Evaluates positions between checkpoints.

    Attributes:
        kind: "path" or "plane", which names the coordinates of a position.
        files: The checkpoints, which messages name.
        state_at: Function of the coordinates that returns the state dict there.
        evaluation: Model and data.
        trained: Positions of trained networks. They keep their own batch-norm statistics, and must have a record.
        dump_at: Function of the coordinates that returns the dump to write there; None to write no dumps.
        influences_at: Function of the coordinates that returns the file to write influences of rows on loss and
            accuracy into, one entry for each split; None to write none.
    """

    kind: str
    files: tuple[Path, ...]
    state_at: Callable[..., State]
    evaluation: PointEvaluation
    trained: Collection[Position] = ()
    dump_at: Callable[..., Path] | None = None
    influences_at: Callable[..., Path] | None = None

    def evaluate(self, position: Position, progress: Progress) -> list[Record]:
        """Compute the records of one position, one for each split.

        Raises:
            DataError: If the weights there cannot be computed, or a trained network has no record.
        """
        source, label = ", ".join(str(file) for file in self.files), label_of(self.kind, position)
        with error_context(f"{source}: "):
            state = self.state_at(*position)
        evaluation, trained = self.evaluation, position in self.trained
        coordinates = dict(zip(AXES[self.kind], position, strict=True))
        batchnorm = evaluation.load(state, str(self.files[0]), keep_batchnorm=trained)
        record_of = evaluation.record if trained else evaluation.explained_record
        records, influences = [], []
        with self._writer(position, label) as writer:
            for split in evaluation.splits:
                with error_context(f"{source}: {label}, {split}: "):
                    record = record_of(split, progress, writer=writer)
                influences.append(record.influences)
                records.append({**coordinates, "split": split, **in_order({"batchnorm": batchnorm, **record})})
        if self.influences_at is not None:
            write_influences(self.influences_at(*position), influences)
        return records

    def _writer(self, position: Position, label: str) -> AbstractContextManager[StoreWriter | None]:
        if self.dump_at is None:
            return nullcontext()
        name = f"{' to '.join(file.stem for file in self.files)}, {label}"
        return point_writer(self.dump_at(*position), name, position[0], self.evaluation.subject)


class SurveyJob(Protocol):
    """Settings of a survey; a worker process opens the survey from them."""

    def survey(self) -> Survey:
        """Open model and data, and build the path or the plane."""
        ...


def visit(
    title: str,
    positions: Sequence[Position],
    records: list[Record],
    survey: Survey,
    ledger: Ledger,
    job: SurveyJob,
    workers: Workers,
    progress: Progress,
) -> None:
    """Evaluate the positions that have no record yet, and keep their records in the ledger, whatever stops the loop.

    Args:
        title: Title of the progress bar.
        positions: Positions to evaluate.
        records: Records so far. Those of new positions are appended; an incomplete position is evaluated again.
        survey: Evaluates positions in this process.
        ledger: Directory of the records.
        job: Settings from which each worker process opens the survey.
        workers: Processes or cluster that evaluate the positions.
        progress: Receives messages and a bar, advanced by one for each position.

    Raises:
        DataError: If a position cannot be evaluated.
    """
    splits = survey.evaluation.subject.splits
    stored = {(position_of(record, survey.kind), record["split"]) for record in records}
    complete = {position for position, _ in stored if all((position, split) in stored for split in splits)}
    records[:] = [record for record in records if position_of(record, survey.kind) in complete]
    missing = [position for position in positions if position not in complete]
    work = partial(survey.evaluate, progress=progress) if workers.alone else partial(_evaluate_in_worker, job)
    names = [label_of(survey.kind, position) for position in missing]
    tasks = results(work, missing, names=names, workers=workers, say=progress.message)
    try:
        with progress.task(title, len(positions), "points") as bar, closing(tasks):
            bar.advance(len(positions) - len(missing))
            for _, evaluated in tasks:
                records.extend(evaluated)
                ledger.keep_in_time(records)
                bar.advance()
    finally:
        if records:
            ledger.keep(records)


def position_of(record: Record, kind: str) -> Position:
    """Return the coordinates of a record."""
    return tuple(record[axis] for axis in AXES[kind])


def label_of(kind: str, position: Position) -> str:
    """Return the text by which messages name a position, such as "alpha 0.25" or "x 1, y 0.5"."""
    return ", ".join(f"{axis} {value:g}" for axis, value in zip(AXES[kind], position, strict=True))


def _evaluate_in_worker(job: SurveyJob, position: Position) -> list[Record]:
    return made_once(job, job.survey).evaluate(position, NullProgress())
