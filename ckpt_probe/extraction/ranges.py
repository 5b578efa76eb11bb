"""One checkpoint forwarded by several workers: ranges of samples, each a task, whose blocks come back in order."""

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
    """What is asked for every checkpoint."""

    @property
    def storage(self) -> Storage:
        """What is kept, and how much is forwarded."""
        ...

    def subject(self) -> Subject:
        """Model and data, opened."""
        ...


@dataclass(frozen=True)
class Range:
    """Samples of a split, from `start` up to `stop`, and where what a checkpoint makes of them is to be written."""

    member: Member
    split: str
    start: int
    stop: int
    file: Path

    def __str__(self) -> str:
        return f"{self.member.name}: {self.split}: samples {self.start} to {self.stop - 1}"


@dataclass(frozen=True)
class Forwarded:
    """What is said of a range, whose blocks are in its file; samples that could not be read, by number."""

    part: Range
    notes: tuple[str, ...] = ()
    left_out: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranges:
    """Splits of more than `samples` samples, forwarded by a team in ranges of so many, or a few more.

    A range is a whole number of batches, so that the blocks are those of one process, bit for bit. They lie on the disk
    for as long as it takes to read them: workers are to see the directory of the dumps.
    """

    samples: int
    team: Team
    progress: Progress

    def divides(self, subject: Subject, split: str, limit: int | None) -> bool:
        """Whether a split is worked at in ranges."""
        return _count(subject, split, limit) > self._size(subject)

    def blocks(
        self, order: Order, subject: Subject, member: Member, split: str, dump: Path, bar: Task
    ) -> Generator[Block, None, None]:
        """As `Subject.forward` over the split, of the weights that the member has."""
        count = _count(subject, split, order.storage.limit)
        with closing(self._forwarded(order, subject, member, split, dump)) as found:
            for done in found:
                for note in done.notes:
                    self.progress.message(f"{done.part}: {note}")
                held = subject.data.split(split)
                if done.left_out and isinstance(held, Streaming):
                    held.leave_out(done.left_out, count)
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
    whole = len(subject.data.split(split))
    return whole if limit is None else min(limit, whole)


def _forward(order: Order, part: Range) -> Forwarded:
    """What a worker does: it opens model and data once, and loads a checkpoint once for all of its ranges."""
    subject, said = made_once(order, order.subject), MessageLog()
    if subject.holds != str(part.member.path):
        with subject.setup.open(part.member.path) as checkpoint:
            subject.load(checkpoint.state_dict(), str(part.member.path), checkpoint.extra_state())
    storage, (start, stop) = order.storage, (part.start, part.stop)
    within = {"limit": storage.limit, "start": start, "stop": stop}
    with closing(subject.forward(part.split, dtype=storage.forward_dtype, progress=said, **within)) as blocks:
        _write(part.file, blocks)
    held = subject.data.split(part.split)
    left_out = held.left_out if isinstance(held, Streaming) else {}
    mine = {number: why for number, why in left_out.items() if start <= number < stop}
    return Forwarded(part, tuple(said.messages), mine)


def _write(file: Path, blocks: Iterator[Block]) -> None:
    tensors: dict[str, Tensor] = {}
    for number, block in enumerate(blocks):
        found = {FEATURES: block.features, LABELS: block.labels, LOGITS: block.logits}
        if block.scored is not None:
            found[PREDICTION] = as_tensor(block.scored.prediction, "predictions")
            found[LOSS] = as_tensor(block.scored.loss, "losses")
        found |= {f"{LAYER}{name}": rows for name, rows in block.layers.items()}
        # Copies: what the next batch brings may take the same memory.
        tensors |= {f"{number}/{name}": tensor.contiguous().clone() for name, tensor in found.items()}
    if not file.parent.is_dir():
        raise DataError(f"{file.parent}: whoever asked for these samples has ended")
    # A worker that was lost may have written it just before.
    save_checkpoint(file, tensors, CheckpointMetadata(), overwrite=True)


def _read(file: Path) -> Iterator[Block]:
    with open_checkpoint(file) as held:
        state = held.state_dict()
    blocks: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        number, _, name = key.partition("/")
        blocks.setdefault(int(number), {})[name] = tensor
    for number in sorted(blocks):
        found = blocks[number]
        scored = Scored(found[PREDICTION], found[LOSS]) if PREDICTION in found else None
        layers = {name.removeprefix(LAYER): rows for name, rows in found.items() if name.startswith(LAYER)}
        yield Block(found[FEATURES], found[LABELS], found[LOGITS], scored, layers)
