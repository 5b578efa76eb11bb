"""Extract the checkpoints of a run to dumps, also while the run is writing them; finished dumps are skipped."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckpt_probe.addresses import Address, as_path
from ckpt_probe.checkpoints import Arrivals, RepeatedWeights, is_run, open_series, unopened_member
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.extraction.checkpoint import Extracted, Job, extract_here, open_checked_subject
from ckpt_probe.extraction.config import Setup, Storage, request_of
from ckpt_probe.extraction.plausibility import Outcome, warnings_of
from ckpt_probe.extraction.subject import Subject
from ckpt_probe.groups import find_runs
from ckpt_probe.keywords import from_arguments
from ckpt_probe.moments import MEMORY
from ckpt_probe.moments.errors.subset import SUBSET_ROWS
from ckpt_probe.progress import DeduplicatedProgress, NullProgress, Progress
from ckpt_probe.remote import resolve
from ckpt_probe.scheduling import Workers, remove_abandoned
from ckpt_probe.series import Member, step_warnings

EVERY = 5.0
"""Seconds between two looks at the directory of a run."""


@dataclass(frozen=True)
class ExtractionSummary:
    """Result of the extraction of a series.

    Attributes:
        written: Names of the dumps that were written.
        skipped: Names of the dumps that were complete already.
        stopped: Whether following a run was ended by Ctrl-C.
    """

    written: tuple[str, ...]
    skipped: tuple[str, ...]
    stopped: bool = False


def extract_series(
    source: Path | str,
    out: Path | str,
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    data: str | None = None,
    data_arguments: Mapping[str, Any] | None = None,
    classifier: str | None = None,
    state_key: str | None = None,
    base: Path | str | None = None,
    splits: str | Sequence[str] | None = None,
    unlabelled: bool = False,
    limit: int | None = None,
    batch_size: int = 256,
    device: str = "auto",
    dtype: str = "float32",
    data_workers: int | None = None,
    layers: str | Sequence[str] = "penultimate",
    pooling: str | None = None,
    store: str = "features",
    feature_dtype: str = "float32",
    with_logits: bool = True,
    max_rows: int | None = None,
    rows_seed: int = 0,
    layer_store: str = "moments",
    subset_rows: int = SUBSET_ROWS,
    subset_seed: int = 0,
    memory: int = MEMORY,
    overwrite: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    rows_per_task: int | None = None,
    follow: bool = False,
    until: int | None = None,
    every: float = EVERY,
    progress: Progress | None = None,
) -> ExtractionSummary:
    """Write `out`/NAME.h5 for every checkpoint at `source`: features (N, D), labels, logits, classifier weights.

    A directory of runs, such as RECIPE/SEED/checkpoints, is mirrored: `out`/RECIPE/SEED/NAME.h5.
    A complete dump with the same provenance is skipped. Several processes may extract into the same directory at the
    same time; they divide the checkpoints among themselves. A dump gets its name when it is complete.

    Args:
        source: Checkpoint, directory of checkpoints, or directory of runs, or of groups of runs.
        out: Directory of the dumps.
        model: Name of the model; that in the checkpoint's metadata if None.
        model_arguments: Arguments of the model, which replace those in the metadata.
        data: Name of the data; that in the checkpoint's metadata if None.
        data_arguments: Arguments of the data, which replace those in the metadata.
        classifier: Name of the last linear layer; found by running the model if None.
        state_key: Key of the weights in a checkpoint, as in `open_checkpoint`.
        base: Checkpoint onto which an adapter is merged, as in `open_checkpoint`.
        splits: Splits of the data to use; all if None.
        unlabelled: Whether labels of the data are ignored.
        limit: Number of samples of each split that are used, the first ones; all if None.
        batch_size: Samples per forward pass.
        device: "auto", "cpu", "cuda[:n]" or "mps".
        dtype: Precision of the forward pass: "float32", "float64", "float16" or "bfloat16".
        data_workers: Number of processes that read images, which does not change the results; chosen by the number of
            free cores if None.
        layers: Layers that are stored beside the classifier's input: "penultimate" for none, "all", "every=K", or names
            joined by commas.
        pooling: Method by which activations of layers, or the tokens of a model without a head, become rows: "mean",
            "cls", "last", "tokens" or "flatten"; the usual one of each layer if None.
        store: "features" for rows, "moments" for class moments (at most 8·C·D² bytes), or "both".
        feature_dtype: Precision of the stored features: "float32", "float64" or "float16".
        with_logits: Whether logits are stored.
        max_rows: Largest number of rows stored of each split; the other rows are only counted, and enter the moments.
        rows_seed: Seed by which these rows are drawn.
        layer_store: What to store of layers other than the classifier's input: "moments", "features" or "both".
        subset_rows: Number of rows of the fixed subset, balanced by class, that is stored of every layer for standard
            errors and comparisons.
        subset_seed: Seed by which these rows are drawn.
        memory: Largest size of class moments in bytes.
        overwrite: Whether to replace existing dumps; otherwise one with another provenance is an error.
        workers: Number of checkpoints that are extracted at the same time, each in a process of its own.
        scheduler: Address of a Dask scheduler whose workers extract the checkpoints instead.
        rows_per_task: Number of samples per task, rounded up to whole batches: if a split has more, the workers divide
            the samples of one checkpoint after another. The dumps are the same.
        follow: Whether to wait for further checkpoints in the directory `source`, and for further runs if it is one of
            runs, in this process. A checkpoint is extracted when its files have not changed between two looks and its
            header is complete.
        until: With `follow`, step of the last checkpoint to wait for in each run; None to continue until Ctrl-C.
        every: With `follow`, seconds between two looks.
        progress: Where progress and notes go.

    Raises:
        UsageError: If settings do not fit, or a dump of another provenance exists and `overwrite` is false.
        DataError: If a checkpoint or the data cannot be read, or do not fit the model.
    """
    setup, storage = from_arguments(Setup, locals()), from_arguments(Storage, locals())
    progress = DeduplicatedProgress(progress or NullProgress())
    job = Job(setup, storage, Path(out), overwrite)
    if follow:
        if workers != 1 or scheduler is not None or rows_per_task is not None:
            raise UsageError("`follow` extracts one checkpoint at a time: leave out workers and `rows_per_task`")
        return _follow(as_path(source), job, until, every, progress)
    source = resolve(source)
    staff = None if workers == 1 and scheduler is None else Workers(workers, scheduler)
    runs = [_Run(path, source, job, progress) for path in _runs_below(source, progress)]
    for run in runs:
        lone = unopened_member(run.path)
        members = open_series(run.path, state_key=state_key, base=setup.base) if lone is None else [lone]
        _require_distinct_names(members)
        if staff is None:
            extracted = extract_here(run.job, members, progress)
        else:
            from ckpt_probe.extraction.parallel import extract_in_parallel

            extracted = extract_in_parallel(run.job, members, staff, rows_per_task, progress)
        with progress.task("checkpoints", len(members), "checkpoints") as bar:
            for _ in run.extend(members, extracted):
                bar.advance()
        run.end()
    return _summary(runs)


class _Run:
    """A run that is extracted: its checkpoints, the names of its dumps, and the warnings and notes that they give.

    Args:
        path: Directory of the run, or a checkpoint.
        source: Directory of runs, which is mirrored, or the run itself.
        job: Settings of the extraction of `source`.
        progress: Where warnings and notes go.
    """

    def __init__(self, path: Path, source: Path, job: Job, progress: Progress) -> None:
        self.relative = Path() if path == source else path.relative_to(source)
        self.path, self._progress, out = path, progress, job.out / self.relative
        self.job = replace(job, out=out, request=request_of([path], out, job.setup, job.storage))
        self.members: list[Member] = []
        self._repeated = RepeatedWeights(job.setup.state_key, job.setup.base)
        self._notes: dict[str, None] = {}
        self._outcomes: list[Outcome] = []
        self.written: list[str] = []
        self.skipped: list[str] = []

    def extend(
        self, members: Sequence[Member], extracted: Generator[tuple[Member, Extracted], None, None]
    ) -> Iterator[tuple[Member, Extracted]]:
        """Yield each of some further checkpoints with its result, as soon as it is extracted."""
        self.members += members
        self._notes |= {f"{each.name}: {listed(each.also)} has the same weights": None for each in members if each.also}
        for warning in step_warnings(self.members):
            self._progress.message(warning)
        with closing(extracted):
            for member, result in extracted:
                (self.written if result.written else self.skipped).append((self.relative / member.name).as_posix())
                for warning in self._repeated.warnings(member, result.fingerprint):
                    self._progress.message(warning)
                self._notes |= dict.fromkeys(result.notes)
                self._outcomes += result.outcomes
                yield member, result

    def end(self) -> None:
        """Report notes and implausible results, and remove files of processes that were ended."""
        remove_abandoned(self.job.out)
        for note in (*self._notes, *warnings_of(self._outcomes)):
            self._progress.message(note)


def _runs_below(source: Path, progress: Progress) -> list[Path]:
    """Return the runs in a directory of runs or of groups of runs; only `source` for a run itself, or a remote one."""
    if isinstance(source, Address) or not source.is_dir() or is_run(source):
        return [source]
    runs = find_runs(source, is_run, "a run: a directory of checkpoints", progress.message)
    return [Path(run.path) for run in runs if run.seed is not None or run.group is not None] or [source]


def _follow(source: Path, job: Job, until: int | None, every: float, progress: Progress) -> ExtractionSummary:
    """Extract the checkpoints of a run, or of each run of a tree, once they are complete; runs may appear over time."""
    if source.is_file():
        raise UsageError(f"{source}: `follow=True` needs the directory of a run, not one checkpoint")
    followed: dict[Path, tuple[Arrivals, _Run]] = {}
    subject: tuple[Path, Subject] | None = None
    stopped = False
    with progress.task(f"following {source}", None, "checkpoints") as bar:
        try:
            while True:
                paths = _runs_below(source, NullProgress())
                for path in paths:
                    if path not in followed:
                        arrivals = Arrivals(path, state_key=job.setup.state_key, base=job.setup.base)
                        followed[path] = arrivals, _Run(path, source, job, progress)
                    arrivals, run = followed[path]
                    members = arrivals.look()
                    if members and (subject is None or subject[0] != path):
                        with job.setup.open(members[0].path) as checkpoint:
                            subject = path, open_checked_subject(checkpoint, run.job, progress)
                    extracted = extract_here(run.job, members, progress, subject and subject[1])
                    for member, result in run.extend(members, extracted):
                        if result.written:
                            progress.message(f"{run.job.out / member.name}.h5: written")
                        bar.advance()
                    for name, reason in arrivals.left_out.items():
                        progress.message(f"{(run.relative / name).as_posix()}: not extracted: {reason}")
                if until is not None and all(_has_reached(until, *followed[path]) for path in paths):
                    break
                time.sleep(every)
        except KeyboardInterrupt:
            stopped = True
    for _, run in followed.values():
        run.end()
    return _summary([run for _, run in followed.values()], stopped)


def _summary(runs: Sequence[_Run], stopped: bool = False) -> ExtractionSummary:
    written = tuple(name for run in runs for name in run.written)
    return ExtractionSummary(written, tuple(name for run in runs for name in run.skipped), stopped)


def _has_reached(step: int, arrivals: Arrivals, run: _Run) -> bool:
    """Return whether a checkpoint of a step or later, and each that was seen before it, is extracted or left out."""
    return arrivals.settled and any(each.step is not None and each.step >= step for each in run.members)


def _require_distinct_names(members: Sequence[Member]) -> None:
    names = [member.name for member in members]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"two checkpoints are called {twice}, so their dumps would have the same name; extract them separately"
        )
