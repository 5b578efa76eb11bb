"""Positions in weight space, on a path or on the grid of a plane, each evaluated once by one model loaded in place."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from ckpt_probe.analysis import Record, in_order
from ckpt_probe.checkpoints import State
from ckpt_probe.errors import error_context
from ckpt_probe.extraction import Setup, StoreWriter, open_subject
from ckpt_probe.paths.ledger import AXES, Ledger
from ckpt_probe.paths.options import PathOptions, PlaneOptions
from ckpt_probe.paths.point import PointEvaluation, point_writer
from ckpt_probe.paths.positions import write_influences
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.scheduling import Workers, claimed_in_turn, made_once, results

Position = tuple[float, ...]
"""(alpha,) on a path, (x, y) in a plane."""

Options = TypeVar("Options", PathOptions, PlaneOptions)

TRAINED = ((0.0,), (1.0,))
"""Positions on a path of the two checkpoints, which keep their own batch-norm statistics and must have a record."""


@dataclass(frozen=True)
class Job(Generic[Options]):
    """A path or plane to evaluate.

    Attributes:
        files: The checkpoints, of which the first names model and data if `setup` does not.
        setup: Model, data and device.
        options: Settings of the path or plane.
        ledger: Directory of the results.
    """

    files: tuple[Path, ...]
    setup: Setup
    options: Options
    ledger: Ledger


@dataclass(frozen=True)
class Survey:
    """Evaluates positions between checkpoints.

    Attributes:
        job: Checkpoints and settings.
        state_at: Function of the coordinates that returns the state dict there.
        evaluation: Model and data.
    """

    job: Job
    state_at: Callable[..., State]
    evaluation: PointEvaluation

    @property
    def kind(self) -> str:
        """Return "path" or "plane", which names the coordinates of a position."""
        return self.job.ledger.kind

    def evaluate(self, position: Position, progress: Progress) -> list[Record]:
        """Compute the records of one position, one for each split; for a path also write its dump and influences.

        Raises:
            DataError: If the weights there cannot be computed, or a trained network has no record.
        """
        source, label = ", ".join(map(str, self.job.files)), label_of(self.kind, position)
        with error_context(f"{source}: "):
            state = self.state_at(*position)
        evaluation, trained = self.evaluation, self.kind == "path" and position in TRAINED
        coordinates = dict(zip(AXES[self.kind], position, strict=True))
        batchnorm = evaluation.load(state, str(self.job.files[0]), keep_batchnorm=trained)
        record_of = evaluation.record if trained else evaluation.explained_record
        records, influences = [], []
        with self._writer(position, label) as writer:
            for split in evaluation.splits:
                with error_context(f"{source}: {label}, {split}: "):
                    record = record_of(split, progress, writer=writer)
                influences.append(record.influences)
                records.append({**coordinates, "split": split, **in_order({"batchnorm": batchnorm, **record})})
        if self.kind == "path" and self.job.options.errors:
            write_influences(self.job.ledger.influences(*position), influences)
        return records

    def _writer(self, position: Position, label: str) -> AbstractContextManager[StoreWriter | None]:
        job = self.job
        if not (isinstance(job.options, PathOptions) and job.options.keep_dumps):
            return nullcontext()
        name = f"{' to '.join(file.stem for file in job.files)}, {label}"
        return point_writer(job.ledger.dump(*position), name, position[0], self.evaluation.subject)


@contextmanager
def opened(job: Job, *, overwrite: bool, resume: bool, progress: Progress) -> Iterator[PointEvaluation]:
    """Claim the directory of a path or plane within the `with` block, and open model and data.

    Args:
        job: Checkpoints and settings.
        overwrite: Whether to replace earlier results.
        resume: Whether finished results are no error.
        progress: Receives a message if another process works in the directory.

    Raises:
        UsageError: If the directory contains other results.
    """
    with claimed_in_turn(job.ledger.path, progress.message) as waited:
        job.ledger.require_free(overwrite=overwrite, resume=resume or (waited and not overwrite))
        yield PointEvaluation(open_subject(job.files[0], job.setup), job.options)


def visit(
    title: str,
    positions: Sequence[Position],
    records: list[Record],
    survey: Survey,
    reopened: Callable[[Job], Survey],
    workers: Workers,
    progress: Progress,
) -> None:
    """Evaluate the positions that have no record yet, and keep their records in the ledger, whatever stops the loop.

    Args:
        title: Title of the progress bar.
        positions: Positions to evaluate.
        records: Records so far. Those of new positions are appended; an incomplete position is evaluated again.
        survey: Evaluates positions in this process.
        reopened: Opens model and data in a worker process, and builds the path or the plane.
        workers: Processes or cluster that evaluate the positions.
        progress: Receives messages and a bar, advanced by one for each position.

    Raises:
        DataError: If a position cannot be evaluated.
    """
    job, splits = survey.job, survey.evaluation.subject.splits
    stored = {(position_of(record, survey.kind), record["split"]) for record in records}
    complete = {position for position, _ in stored if all((position, split) in stored for split in splits)}
    records[:] = [record for record in records if position_of(record, survey.kind) in complete]
    missing = [position for position in positions if position not in complete]
    in_worker = partial(_evaluate_in_worker, job, reopened)
    work = partial(survey.evaluate, progress=progress) if workers.alone else in_worker
    names = [label_of(survey.kind, position) for position in missing]
    tasks = results(work, missing, names=names, workers=workers, say=progress.message)
    try:
        with progress.task(title, len(positions), "points") as bar, closing(tasks):
            bar.advance(len(positions) - len(missing))
            for _, evaluated in tasks:
                records.extend(evaluated)
                job.ledger.keep_in_time(records)
                bar.advance()
    finally:
        if records:
            job.ledger.keep(records)


def position_of(record: Record, kind: str) -> Position:
    """Return the coordinates of a record."""
    return tuple(record[axis] for axis in AXES[kind])


def label_of(kind: str, position: Position) -> str:
    """Return the text by which messages name a position, such as "alpha 0.25" or "x 1, y 0.5"."""
    return ", ".join(f"{axis} {value:g}" for axis, value in zip(AXES[kind], position, strict=True))


def _evaluate_in_worker(job: Job, reopened: Callable[[Job], Survey], position: Position) -> list[Record]:
    return made_once(job, partial(reopened, job)).evaluate(position, NullProgress())
