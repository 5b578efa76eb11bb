"""Divide the samples of one checkpoint among several workers: each range is a task, and blocks return in order."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ckpt_probe.checkpoints import CheckpointMetadata, open_checkpoint, save_checkpoint
from ckpt_probe.data import Streaming
from ckpt_probe.errors import DataError
from ckpt_probe.extraction.forward import Block
from ckpt_probe.extraction.setup import Storage
from ckpt_probe.extraction.subject import Subject
from ckpt_probe.files import parts_of
from ckpt_probe.metrics.arrays import as_tensor
from ckpt_probe.moments.quality import Scored
from ckpt_probe.progress import MessageLog, Progress, Task
from ckpt_probe.scheduling import Team, in_turn, made_once, results
from ckpt_probe.series import Member

FEATURES, LABELS, LOGITS, PREDICTION, LOSS = "features", "labels", "logits", "prediction", "loss"
LAYER = "layer/"


class Order(Protocol):
    """Settings that apply to every checkpoint of a series."""

    @property
    def storage(self) -> Storage:
        """Contents of the dumps, and number of samples."""
        ...

    def subject(self) -> Subject:
        """Open model and data."""
        ...


@dataclass(frozen=True)
class Range:
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

    part: Range
    notes: tuple[str, ...] = ()
    left_out: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranges:
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
        return _count(subject, split, limit) > self._size(subject)

    def blocks(
        self, order: Order, subject: Subject, member: Member, split: str, dump: Path, bar: Task
    ) -> Generator[Block, None, None]:
        """Yield the blocks of a split, like `Subject.forward`, for the weights of the member."""
        count = _count(subject, split, order.storage.limit)
        with closing(self._forwarded(order, subject, member, split, dump)) as ranges:
            for done in ranges:
                for note in done.notes:
                    self.progress.message(f"{done.part}: {note}")
                samples = subject.data.split(split)
                if done.left_out and isinstance(samples, Streaming):
                    samples.leave_out(done.left_out, count)
                for block in _read(done.part.file):
                    bar.advance(len(block.labels))
                    yield block
                done.part.file.unlink()

    def _forwarded(
        self, order: Order, subject: Subject, member: Member, split: str, dump: Path
    ) -> Generator[Forwarded, None, None]:
        size, count, say = self._size(subject), _count(subject, split, order.storage.limit), self.progress.message
        with parts_of(dump) as folder:
            parts = [
                Range(member, split, start, min(start + size, count), folder / f"{start}.safetensors")
                for start in range(0, count, size)
            ]
            names = [str(part) for part in parts]
            with closing(results(partial(_forward, order), parts, names=names, workers=self.team, say=say)) as ready:
                yield from in_turn(ready)

    def _size(self, subject: Subject) -> int:
        batch = subject.setup.batch_size
        return batch * -(-self.samples // batch)


def _count(subject: Subject, split: str, limit: int | None) -> int:
    samples = len(subject.data.split(split))
    return samples if limit is None else min(limit, samples)


def _forward(order: Order, part: Range) -> Forwarded:
    """Forward one range in a worker, which opens model and data once, and loads a checkpoint once for all ranges."""
    subject, log = made_once(order, order.subject), MessageLog()
    if subject.holds != str(part.member.path):
        with subject.setup.open(part.member.path) as checkpoint:
            subject.load(checkpoint.state_dict(), str(part.member.path), checkpoint.extra_state())
    storage, (start, stop) = order.storage, (part.start, part.stop)
    within = {"limit": storage.limit, "start": start, "stop": stop}
    with closing(subject.forward(part.split, dtype=storage.forward_dtype, progress=log, **within)) as blocks:
        _write(part.file, blocks)
    samples = subject.data.split(part.split)
    left_out = samples.left_out if isinstance(samples, Streaming) else {}
    mine = {number: why for number, why in left_out.items() if start <= number < stop}
    return Forwarded(part, tuple(log.messages), mine)


def _write(file: Path, blocks: Iterator[Block]) -> None:
    tensors: dict[str, Tensor] = {}
    for number, block in enumerate(blocks):
        arrays = {FEATURES: block.features, LABELS: block.labels, LOGITS: block.logits}
        if block.scored is not None:
            arrays[PREDICTION] = as_tensor(block.scored.prediction, "predictions")
            arrays[LOSS] = as_tensor(block.scored.loss, "losses")
        arrays |= {f"{LAYER}{name}": rows for name, rows in block.layers.items()}
        # Copies, because the next batch may use the same memory.
        tensors |= {f"{number}/{name}": tensor.contiguous().clone() for name, tensor in arrays.items()}
    if not file.parent.is_dir():
        raise DataError(f"{file.parent}: the process that requested these samples has ended")
    # A worker that was killed may have written it just before.
    save_checkpoint(file, tensors, CheckpointMetadata(), overwrite=True)


def _read(file: Path) -> Iterator[Block]:
    with open_checkpoint(file) as opened:
        state = opened.state_dict()
    blocks: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        number, _, name = key.partition("/")
        blocks.setdefault(int(number), {})[name] = tensor
    for number in sorted(blocks):
        arrays = blocks[number]
        scored = Scored(arrays[PREDICTION], arrays[LOSS]) if PREDICTION in arrays else None
        layers = {name.removeprefix(LAYER): rows for name, rows in arrays.items() if name.startswith(LAYER)}
        yield Block(arrays[FEATURES], arrays[LABELS], arrays[LOGITS], scored, layers)
