"""Positions in weight space, on a path or on the grid of a plane, each evaluated once by one model loaded in place."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ckpt_probe.analysis import Record, Settings, empty_record, in_order, settled
from ckpt_probe.analysis.context import TRAIN, Context
from ckpt_probe.analysis.entries import BIAS, STDERR
from ckpt_probe.analysis.record import accumulate, compute_from_moments
from ckpt_probe.checkpoints import State
from ckpt_probe.errors import DataError, UsageError, error_context
from ckpt_probe.extraction import Block, Setup, Storage, StoreWriter, open_subject, store_writer
from ckpt_probe.models import unwrapped
from ckpt_probe.moments.errors.design import RecordWithErrors
from ckpt_probe.moments.quality import Quality, Scored
from ckpt_probe.moments.registry import INFINITE_LOGITS
from ckpt_probe.paths.batchnorm import has_batchnorm, recompute
from ckpt_probe.paths.ledger import AXES, Ledger
from ckpt_probe.paths.options import PathOptions, PlaneOptions
from ckpt_probe.paths.positions import write_influences
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.scheduling import Workers, claimed_in_turn, made_once, results

Position = tuple[float, ...]
"""(alpha,) on a path, (x, y) in a plane."""

StateAt = Callable[..., State]
"""Function of the coordinates of a position that returns the state dict there."""

Options = TypeVar("Options", PathOptions, PlaneOptions)

TRAINED = ((0.0,), (1.0,))
"""Positions on a path of the two checkpoints, which keep their own batch-norm statistics and must have a record."""

CACHE_BYTES = 2**30
OF_LOGITS = ("accuracy", "nc4.disagreement", "nc4.disagreement_train_means")
"""Metrics without a value if logits overflow."""


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

    def states(self, names: set[str]) -> list[dict[str, Tensor]]:
        """Read the state dicts of all checkpoints; of several dtypes of a tensor all get one that holds each of them.

        Args:
            names: Names of the model's tensors, which those of the results are.
        """
        states = []
        for file in self.files:
            with self.setup.open(file) as checkpoint:
                states.append(dict(unwrapped(checkpoint.state_dict(), names)))
        for name in states[0]:
            kind = reduce(torch.promote_types, (state[name].dtype for state in states))
            for state in states:
                state[name] = state[name].to(kind)
        return states


class Survey:
    """Evaluates positions between checkpoints, one set of weights after another with the same model and data.

    Args:
        job: Checkpoints and settings; the first checkpoint names the model and the data, which are opened.

    Attributes:
        job: Checkpoints and settings.
        subject: Model and data.
        train_means: Class means (C, D) of the training split under the present weights, or None.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.subject = job, open_subject(job.files[0], job.setup)
        self.train_means: Tensor | None = None

    @property
    def splits(self) -> list[str]:
        """Splits in the order of their evaluation: the training split first, whose class means the others need."""
        return sorted(self.subject.splits, key=lambda split: split != TRAIN)

    @property
    def batchnorm(self) -> str:
        """ "recompute", "interpolate", or "none" for a model without running statistics."""
        return self.job.options.batchnorm if has_batchnorm(self.subject.model) else "none"

    def plan(self) -> Record:
        """Return the settings that all positions share."""
        subject = self.subject
        return {
            "splits": list(subject.splits),
            "model": subject.model_name,
            "model_arguments": subject.model_arguments,
            "data": subject.data.name,
            "data_arguments": subject.data.arguments,
            "classifier": subject.classifier,
            "batchnorm": self.batchnorm,
            "batchnorm_samples": self.job.options.batchnorm_samples if self.batchnorm == "recompute" else None,
        }

    def load(self, state: State, source: str, *, keep_batchnorm: bool = False) -> str:
        """Load weights into the model, in place.

        Args:
            state: The weights.
            source: Name of the weights in messages.
            keep_batchnorm: Whether to keep the batch-norm statistics in `state`, which are those of a trained network.

        Returns:
            The source of the batch-norm statistics: "own", "recompute", "interpolate" or "none".

        Raises:
            DataError: If the weights do not fit the model.
        """
        self.train_means = None
        self.subject.load(state, source)
        if keep_batchnorm and self.batchnorm != "none":
            return "own"
        if self.batchnorm == "recompute":
            splits = self.subject.data.splits
            split = splits.get(TRAIN, splits[self.subject.splits[0]])
            recompute(self.subject.model, split, samples=self.job.options.batchnorm_samples)
        return self.batchnorm

    def record(self, split: str, progress: Progress, *, writer: StoreWriter | None = None) -> RecordWithErrors:
        """Compute the record of the model's present weights on one split.

        Features and logits are kept in memory between passes if they fit into 1 GiB, else computed again.

        Args:
            split: Name of the split.
            progress: Receives messages and a bar.
            writer: Writer of a dump to which the split is added.

        Raises:
            DataError: If the features have no record.
        """
        samples = self.subject.rows_of(split, None) or len(self.subject.data.split(split))
        weights, bias, scored = self.subject.weights, self.subject.bias, self.subject.scored
        fits = samples * sum(weights.shape) * 4 <= CACHE_BYTES
        passes = 1 if fits else 2 if writer is None else 3
        # Every forward pass is closed on leaving, which ends the thread behind it.
        with progress.task(split, samples * passes, "samples") as bar, ExitStack() as stack:

            def forward() -> Iterable[Block]:
                return stack.enter_context(closing(self.subject.forward(split, progress=progress, bar=bar)))

            blocks = list(forward()) if fits else None
            if writer is not None:
                writer.write_split(split, blocks or forward(), rows=samples, scores="scored" if scored else "logits")
            rows, settings = _RowsOfBlocks(lambda: blocks or forward()), Settings(errors=self.job.options.errors)
            first = accumulate(rows, weights, bias, settings)
            if split == TRAIN:
                self.train_means = first.moments.means_of_classes(settings.min_samples).cpu()
            context = Context(training=split == TRAIN, train_means=None if split == TRAIN else self.train_means)
            detailed = compute_from_moments(first, weights, bias, settings=settings, blocks=rows, context=context)
            return RecordWithErrors(detailed.record, detailed.influences)

    def explained_record(
        self, split: str, progress: Progress, *, writer: StoreWriter | None = None
    ) -> RecordWithErrors:
        """Compute `record` for weights that nobody trained, where dead or exploding features are no error.

        Returns:
            The record; if the features have none, loss and accuracy alone, with the reason in `missing`.
        """
        try:
            record = self.record(split, progress, writer=writer)
        except DataError as error:
            quality, reason = Quality(), str(error)
            with closing(self.subject.forward(split, progress=progress)) as blocks:
                for block in blocks:
                    quality.update_scores(block.scores, block.labels)
            if quality.loss is None:
                reason = f"{reason}; loss: {INFINITE_LOGITS}"
            values = {"samples": quality.samples, "accuracy": quality.accuracy, "loss": quality.loss, "missing": reason}
            record = RecordWithErrors(settled({**empty_record(), **values}), None)
        if record["loss"] is not None:
            return record
        # Logits of an untrained network that are not finite say nothing about its predictions.
        undefined = [name for name in record if name.removesuffix(STDERR).removesuffix(BIAS) in OF_LOGITS]
        overflow = f"{record['missing']}; {', '.join(undefined)}: the logits overflow to infinity or NaN"
        return RecordWithErrors({**record, **dict.fromkeys(undefined), "missing": overflow}, record.influences)

    def evaluate(self, state_at: StateAt, position: Position, progress: Progress) -> list[Record]:
        """Compute the records of one position, one for each split; for a path also write its dump and influences.

        Raises:
            DataError: If the weights there cannot be computed, or a trained network has no record.
        """
        job, kind = self.job, self.job.ledger.kind
        source, label = ", ".join(map(str, job.files)), job.ledger.label_of(position)
        with error_context(f"{source}: "):
            state = state_at(*position)
        trained = kind == "path" and position in TRAINED
        coordinates = dict(zip(AXES[kind], position, strict=True))
        batchnorm = self.load(state, str(job.files[0]), keep_batchnorm=trained)
        record_of = self.record if trained else self.explained_record
        records, influences = [], []
        with self._writer(position, label) as writer:
            for split in self.splits:
                with error_context(f"{source}: {label}, {split}: "):
                    record = record_of(split, progress, writer=writer)
                influences.append(record.influences)
                records.append({**coordinates, "split": split, **in_order({"batchnorm": batchnorm, **record})})
        if kind == "path" and job.options.errors:
            write_influences(job.ledger.influences(*position), influences)
        return records

    def _writer(self, position: Position, label: str) -> AbstractContextManager[StoreWriter | None]:
        """Return a writer of the dump of the weights that the model has now, if the path keeps dumps.

        The weights are in no file, so the provenance has the size and the hash of the tensors. The number in a dump's
        name would be taken for its step, so the step is stored: α in millionths, which sorts dumps along the path.
        """
        job, subject = self.job, self.subject
        if not (isinstance(job.options, PathOptions) and job.options.keep_dumps):
            return nullcontext()
        size, digest = 0, hashlib.sha256()
        for key, tensor in subject.model.state_dict().items():
            if isinstance(tensor, Tensor):
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                size += tensor.nbytes
                digest.update(key.encode())
                digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        name, step = f"{' to '.join(file.stem for file in job.files)}, {label}", round(position[0] * 1e6)
        provenance = subject.provenance(
            name, step=step, size=size, sha256=digest.hexdigest(), epoch=None, storage=Storage()
        )
        file, names = job.ledger.dump(*position), subject.data.class_names
        # A position with a dump but no record is evaluated again.
        return store_writer(
            file, provenance, Storage(), subject.weights, subject.bias, class_names=names, overwrite=True
        )


@contextmanager
def opened(job: Job, *, overwrite: bool, resume: bool, progress: Progress) -> Iterator[Survey]:
    """Claim the directory of a path or plane within the `with` block, and open model and data.

    Args:
        job: Checkpoints and settings.
        overwrite: Whether to replace earlier results.
        resume: Whether finished results are no error.
        progress: Receives a message if another process works in the directory.

    Raises:
        UsageError: If the directory contains other results, or both `overwrite` and `resume` are set.
    """
    if overwrite and resume:
        raise UsageError("overwrite and resume exclude each other")
    with claimed_in_turn(job.ledger.path, progress.message) as waited:
        job.ledger.require_free(overwrite=overwrite, resume=resume or (waited and not overwrite))
        yield Survey(job)


def visit(
    survey: Survey,
    state_at: StateAt,
    positions: Sequence[Position],
    records: list[Record],
    *,
    title: str,
    reopened: Callable[[Survey], StateAt],
    workers: Workers,
    progress: Progress,
) -> None:
    """Evaluate the positions that have no record yet, and keep their records in the ledger, whatever stops the loop.

    Args:
        survey: Evaluates positions in this process.
        state_at: Returns the state dict at a position.
        positions: Positions to evaluate.
        records: Records so far. Those of new positions are appended; an incomplete position is evaluated again.
        title: Title of the progress bar.
        reopened: Builds `state_at` in a worker process.
        workers: Processes or cluster that evaluate the positions.
        progress: Receives messages and a bar, advanced by one for each position.

    Raises:
        DataError: If a position cannot be evaluated.
    """
    job, ledger, splits = survey.job, survey.job.ledger, survey.subject.splits
    stored = {(ledger.position_of(record), record["split"]) for record in records}
    complete = {position for position, _ in stored if all((position, split) in stored for split in splits)}
    records[:] = [record for record in records if ledger.position_of(record) in complete]
    missing = [position for position in positions if position not in complete]
    names, work = [ledger.label_of(position) for position in missing], partial(_evaluate_in_worker, job, reopened)
    if workers.alone:
        work = partial(survey.evaluate, state_at, progress=progress)
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


@dataclass
class _RowsOfBlocks:
    """A pass over blocks, which knows the documents of the rows that it yielded last.

    Attributes:
        blocks: Starts the pass.
        start: Index of the first row.
        latest: Documents of the block that was yielded last, (n,), or None.
    """

    blocks: Callable[[], Iterable[Block]]
    start: int = 0
    latest: Tensor | None = None

    def __call__(self) -> Iterator[tuple[Tensor, Tensor, Tensor | Scored | None]]:
        for block in self.blocks():
            self.latest = block.documents
            yield block.features, block.labels, block.scores

    def documents(self, start: int, stop: int) -> Tensor | None:
        """Return the documents (n,) of the rows `start` … `stop`, those of the last block, or None."""
        return self.latest


def _evaluate_in_worker(job: Job, reopened: Callable[[Survey], StateAt], position: Position) -> list[Record]:
    def evaluation() -> Callable[[Position, Progress], list[Record]]:
        survey = Survey(job)
        return partial(survey.evaluate, reopened(survey))

    return made_once(job, evaluation)(position, NullProgress())
