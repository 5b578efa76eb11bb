"""Extract checkpoints one after another: known already? then load, forward, write."""

import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.checkpoints import Checkpoint, fingerprint, step_of
from ckpt_probe.dumps import Provenance, read_provenance, require_split_name
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction.building import build_subject
from ckpt_probe.extraction.config import Setup, Storage
from ckpt_probe.extraction.plausibility import Outcome, Tally, stated_accuracies
from ckpt_probe.extraction.subject import Subject
from ckpt_probe.extraction.writer import Scores, choose_rows, store_writer
from ckpt_probe.models import Backbone
from ckpt_probe.progress import Progress
from ckpt_probe.scheduling import Busy, Failed, claimed, joint_error
from ckpt_probe.series import Member

if TYPE_CHECKING:
    from ckpt_probe.extraction.parallel import SharedForward

PAUSE = 0.5
"""Seconds until a checkpoint that another process is extracting is tried again."""


@dataclass(frozen=True)
class Job:
    """Settings of the extraction of a series, as they are sent to workers.

    Attributes:
        setup: Model and data.
        storage: Contents of the dumps.
        out: Directory of the dumps.
        overwrite: Whether to replace existing dumps.
        request: Call that is stored in the provenance.
        first: Checkpoint whose metadata name the model, and in which each worker finds the head.
    """

    setup: Setup
    storage: Storage
    out: Path
    overwrite: bool
    request: Mapping[str, Any] = field(default_factory=dict)
    first: Path | None = None


@dataclass(frozen=True)
class Extracted:
    """Result of one checkpoint.

    Attributes:
        written: Whether its dump was written; it may have existed already.
        fingerprint: Fingerprint of its weights.
        notes: Notes about the model, the data and the samples.
        outcomes: Predictions, if the dump was written.
    """

    written: bool
    fingerprint: str
    notes: tuple[str, ...]
    outcomes: tuple[Outcome, ...] = ()


def extract_here(
    job: Job,
    members: Sequence[Member],
    progress: Progress,
    subject: Subject | None = None,
    shared: "SharedForward | None" = None,
) -> Generator[tuple[Member, Extracted], None, None]:
    """Extract one checkpoint after another in this process, and yield each with its result.

    A checkpoint that another process is extracting is tried again after the others.

    Args:
        job: Settings.
        members: Checkpoints.
        progress: Where progress and messages go.
        subject: Model and data; those of the first checkpoint if None.
        shared: Workers that forward large splits.

    Raises:
        DataError: If checkpoints cannot be extracted, after all others; at once if it is the first that can be opened.
    """
    waiting, extracted = deque(members), 0
    failed: dict[str, Failed] = {}
    while waiting:
        for _ in range(len(waiting)):
            member, opened = waiting.popleft(), False
            try:
                with job.setup.open(member.path) as checkpoint:
                    opened = True
                    if subject is None:
                        subject = open_checked_subject(checkpoint, job, progress)
                    result = extract_checkpoint(checkpoint, member, subject, job, progress, shared)
            except DataError as error:
                if opened and not extracted:
                    raise  # The cause may be the data, which all checkpoints share.
                failed[member.name] = Failed(str(error), ours=True)
                continue
            if isinstance(result, Busy):
                waiting.append(member)
                progress.message(f"{member.name}: {result.holder} is working on it; continuing with the others")
            else:
                extracted += 1
                yield member, result
        if waiting:
            time.sleep(PAUSE)
    if failed:
        raise joint_error(failed, extracted + len(failed))


def open_checked_subject(checkpoint: Checkpoint, job: Job, progress: Progress) -> Subject:
    """Open model and data of a checkpoint, and report if class moments are reduced to fit the memory.

    Raises:
        UsageError: If the results cannot be stored; also as in `build_subject`.
        DataError: As in `build_subject`.
    """
    subject, storage = build_subject(checkpoint, job.setup), job.storage
    for name in subject.splits:
        require_split_name(name)
    if storage.dtype == "float64" and subject.device.type == "mps":
        raise UsageError("`dtype='float64'`: not supported by MPS; add `device='cpu'`, or use float32")
    head, (classes, features), scored = subject.head, subject.weights.shape, subject.scored
    if isinstance(head, Backbone):
        classes = max(1, subject.data.classes)
    elif not storage.with_logits and not scored and head.shows_logits:
        raise UsageError(
            f"the model's logits are {head.reading}, so that features and weights do not give its loss: they have to "
            "be stored"
        )
    if warning := storage.require_fitting(classes, features, positions=scored):
        progress.message(warning)
    return subject


def extract_checkpoint(
    checkpoint: Checkpoint,
    member: Member,
    subject: Subject,
    job: Job,
    progress: Progress,
    shared: "SharedForward | None" = None,
) -> Extracted | Busy:
    """Write the dump of an open checkpoint, unless it is complete or another process is writing it.

    Args:
        checkpoint: Open checkpoint.
        member: Its entry in the series.
        subject: Model and data; the model's weights are replaced.
        job: Settings.
        progress: Where progress and messages go.
        shared: Workers that forward large splits; None to forward in this process.

    Raises:
        UsageError: If a dump of another provenance exists, and is not to be replaced.
        DataError: If the checkpoint does not fit the model, or a sample cannot be forwarded.
    """
    path = job.out / f"{member.name}.h5"
    weights_fingerprint = fingerprint(checkpoint)
    provenance = subject.provenance(
        member.name,
        step=step_of(checkpoint, member.name)[0] if member.step is None else member.step,
        size=checkpoint.size,
        sha256=checkpoint.content_hash(),
        epoch=checkpoint.metadata.epoch,
        storage=job.storage,
        request=dict(job.request),
    )
    if _is_complete(path, provenance, job):
        return Extracted(False, weights_fingerprint, subject.notes)
    with claimed(path) as claim:
        if isinstance(claim, Busy):
            return claim
        # Another process may have finished the dump just before the claim.
        if _is_complete(path, provenance, job):
            return Extracted(False, weights_fingerprint, subject.notes)
        if subject.loaded_from != str(checkpoint.path):
            subject.load(checkpoint.state_dict(), str(checkpoint.path), checkpoint.extra_state())
        tallies = _write_dump(path, provenance, member, subject, job, progress, shared)
    outcome = Outcome(member.name, tallies, stated_accuracies(checkpoint, subject.setup))
    return Extracted(True, weights_fingerprint, (subject.inputs, *subject.notes), (outcome,))


def _write_dump(
    path: Path,
    provenance: Provenance,
    member: Member,
    subject: Subject,
    job: Job,
    progress: Progress,
    shared: "SharedForward | None",
) -> dict[str, Tally]:
    """Write the dump of the checkpoint whose weights are loaded; return the counted predictions of each split."""
    storage, tallies = job.storage, {}
    counts = {name: subject.rows_of(name, storage.limit) for name in subject.splits}
    labelled = subject.data.labelled
    unknown = next((name for name, count in counts.items() if count is None), None)
    if unknown is not None and storage.max_rows is not None:
        raise UsageError(
            f"`max_rows={storage.max_rows}`: the number of rows of split {unknown} is not known before it was read"
        )
    scores: Scores = "logits" if storage.with_logits and not isinstance(subject.head, Backbone) else "none"
    scores = "scored" if subject.scored else scores
    with (
        progress.task(path.stem, sum(count or 0 for count in counts.values()), "rows") as bar,
        store_writer(
            path,
            provenance,
            storage,
            subject.weights,
            subject.bias,
            taps=subject.taps,
            classes=subject.data.classes,
            class_names=subject.data.class_names,
            overwrite=job.overwrite or path.exists(),
        ) as writer,
    ):
        for name, count in counts.items():
            if shared is not None and shared.divides(subject, name, storage.limit):
                forwarded = shared.blocks(job, subject, member, name, path, bar)
            else:
                forwarded = subject.forward(name, storage, progress=progress, bar=bar)
            chosen = None if count is None else choose_rows(count, storage.max_rows, storage.rows_seed)
            # If the writer fails, the thread that prepares batches ends here and not at garbage collection.
            with closing(forwarded) as blocks:
                tallies[name] = writer.write_split(
                    name, blocks, rows=count, scores=scores, labelled=labelled, chosen=chosen
                )
            names = subject.names_of_rows(name, storage.limit)
            if names is not None:
                writer.write_sample_names(name, names, chosen)
    return tallies


def _is_complete(path: Path, provenance: Provenance, job: Job) -> bool:
    """Return whether the dump exists and need not be written again.

    Raises:
        UsageError: If it has another provenance.
    """
    if job.overwrite or not path.exists():
        return False
    stored = None
    with suppress(DataError):
        stored = read_provenance(path)
    if stored is None:
        raise UsageError(f"{path}: exists, but is not a complete dump of ckpt-probe; `overwrite=True` replaces it")
    differences = "; ".join(stored.differences(provenance))
    if differences:
        raise UsageError(
            f"{path}: a dump with another provenance (stored / now): {differences}; `overwrite=True` replaces it"
        )
    return True
