"""Extract checkpoints by several workers: one each, or ranges of the samples of one checkpoint after another."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from ckpt_probe.checkpoints import Checkpoint, CheckpointMetadata, open_checkpoint, save_checkpoint
from ckpt_probe.data import Streaming, count_of
from ckpt_probe.errors import DataError
from ckpt_probe.extraction.blocks import Block
from ckpt_probe.extraction.building import open_subject
from ckpt_probe.extraction.checkpoint import Extracted, Job, extract_checkpoint, extract_here, open_checked_subject
from ckpt_probe.extraction.subject import Subject
from ckpt_probe.files import parts_of
from ckpt_probe.progress import MessageLog, Progress, Task
from ckpt_probe.scheduling import Busy, Team, Workers, in_turn, made_once, results
from ckpt_probe.series import Member


def extract_in_parallel(
    job: Job, members: Sequence[Member], staff: Workers, rows_per_task: int | None, progress: Progress
) -> Generator[tuple[Member, Extracted], None, None]:
    """Yield each checkpoint with its result; every worker takes one, or all workers divide one after another."""
    # Errors of the settings are raised here, before any worker starts.
    with ExitStack() as stack:
        first, checkpoint = _open_first(members, job, stack)
        subject = open_checked_subject(checkpoint, job, progress)
    job = replace(job, first=first.path)
    if rows_per_task is not None:
        with Team(staff, progress.message) as team:
            shared = SharedForward(rows_per_task, team, progress)
            if any(shared.divides(subject, split, job.storage.limit) for split in subject.splits):
                yield from extract_here(job, members, progress, subject, shared)
                return
    names = [member.name for member in members]
    run = partial(_extract_in_worker, job)
    with closing(results(run, members, names=names, workers=staff, say=progress.message)) as ready:
        for result in in_turn(ready):
            yield members[names.index(result[0])], result[1]


def _open_first(members: Sequence[Member], job: Job, stack: ExitStack) -> tuple[Member, Checkpoint]:
    """Return the first checkpoint that can be opened, open; raise the error of the first one if none can be."""
    errors = []
    for member in members:
        try:
            return member, stack.enter_context(job.setup.open(member.path))
        except DataError as error:
            errors.append(error)
    raise errors[0]


def _extract_in_worker(job: Job, member: Member) -> tuple[str, Extracted] | Busy:
    """Extract a checkpoint in a worker, which opens model and data once for all of its checkpoints."""
    subject, log = made_once(job, partial(_first_subject, job)), MessageLog()
    with job.setup.open(member.path) as checkpoint:
        result = extract_checkpoint(checkpoint, member, subject, job, log)
    if isinstance(result, Busy):
        return result
    messages = (f"{member.name}: {text}" for text in log.messages)
    return member.name, replace(result, notes=(*messages, *result.notes))


def _first_subject(job: Job) -> Subject:
    """Open model and data of the first checkpoint."""
    assert job.first is not None
    return open_subject(job.first, job.setup)


@dataclass(frozen=True)
class SampleRange:
    """A range of samples of a split for one checkpoint.

    Attributes:
        member: Checkpoint.
        split: Name of the split.
        start: First sample.
        stop: Sample after the last one.
        file: Temporary file for the blocks.
    """

    member: Member
    split: str
    start: int
    stop: int
    file: Path

    def __str__(self) -> str:
        return f"{self.member.name}: {self.split}: samples {self.start} to {self.stop - 1}"


@dataclass(frozen=True)
class Forwarded:
    """The outcome of a range, whose blocks are in its file.

    Attributes:
        part: The range.
        notes: Messages of the worker.
        left_out: Samples that could not be read: their indices and the reasons.
    """

    part: SampleRange
    notes: tuple[str, ...] = ()
    left_out: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SharedForward:
    """The division of large splits into ranges, which a team of workers forwards.

    A range is a whole number of batches, so that blocks are identical to those of one process, bit for bit. Workers
    write them to temporary files in the directory of the dumps, which all of them must be able to access.

    Attributes:
        samples: Number of samples per range, rounded up to whole batches; smaller splits are not divided.
        team: Workers.
        progress: Where messages go.
    """

    samples: int
    team: Team
    progress: Progress

    def divides(self, subject: Subject, split: str, limit: int | None) -> bool:
        """Return whether a split has more than one range."""
        return count_of(subject.data.split(split), limit) > self._size(subject)

    def blocks(
        self, job: Job, subject: Subject, member: Member, split: str, dump: Path, bar: Task
    ) -> Generator[Block, None, None]:
        """Yield the blocks of a split, like `Subject.forward`, for the weights of the member."""
        samples, size, say = subject.data.split(split), self._size(subject), self.progress.message
        count = count_of(samples, job.storage.limit)
        with parts_of(dump) as folder:
            parts = [
                SampleRange(member, split, start, min(start + size, count), folder / f"{start}.safetensors")
                for start in range(0, count, size)
            ]
            names = [str(part) for part in parts]
            with closing(results(partial(_forward, job), parts, names=names, workers=self.team, say=say)) as ready:
                for done in in_turn(ready):
                    for note in done.notes:
                        say(f"{done.part}: {note}")
                    if done.left_out and isinstance(samples, Streaming):
                        samples.leave_out(done.left_out, count)
                    for block in _read(done.part.file):
                        bar.advance(len(block.labels))
                        yield block
                    done.part.file.unlink()

    def _size(self, subject: Subject) -> int:
        batch = subject.setup.batch_size
        return batch * -(-self.samples // batch)


def _forward(job: Job, part: SampleRange) -> Forwarded:
    """Forward one range in a worker, which opens model and data once, and loads a checkpoint once for all ranges."""
    subject, log = made_once(job, partial(_first_subject, job)), MessageLog()
    if subject.loaded_from != str(part.member.path):
        with subject.setup.open(part.member.path) as checkpoint:
            subject.load(checkpoint.state_dict(), str(part.member.path), checkpoint.extra_state())
    start, stop = part.start, part.stop
    with closing(subject.forward(part.split, job.storage, start=start, stop=stop, progress=log)) as blocks:
        _write(part.file, blocks)
    samples = subject.data.split(part.split)
    left_out = samples.left_out if isinstance(samples, Streaming) else {}
    mine = {number: why for number, why in left_out.items() if start <= number < stop}
    return Forwarded(part, tuple(log.messages), mine)


def _write(file: Path, blocks: Iterator[Block]) -> None:
    tensors: dict[str, Tensor] = {}
    for number, block in enumerate(blocks):
        # Copies, because the next batch may use the same memory.
        tensors |= {f"{number}/{name}": rows.contiguous().clone() for name, rows in block.to_tensors().items()}
    if not file.parent.is_dir():
        raise DataError(f"{file.parent}: the process that requested these samples has ended")
    # A worker that was killed may have written it just before.
    save_checkpoint(file, tensors, CheckpointMetadata(), overwrite=True)


def _read(file: Path) -> Iterator[Block]:
    blocks: dict[int, dict[str, Tensor]] = {}
    with open_checkpoint(file) as checkpoint:
        for key, tensor in checkpoint.state_dict().items():
            number, _, name = key.partition("/")
            blocks.setdefault(int(number), {})[name] = tensor
    for number in sorted(blocks):
        yield Block.from_tensors(blocks[number])
