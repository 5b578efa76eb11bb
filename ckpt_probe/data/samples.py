"""Labelled samples in named splits, read in batches that a model accepts, while it processes the batch before."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, contextmanager
from copy import copy
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ckpt_probe.errors import DataError, listed
from ckpt_probe.metrics.rows import as_labels, as_tensor

Inputs = Tensor | Mapping[str, Tensor]
"""Model inputs of n samples: a tensor of shape (n, …), or several by the names of the model's arguments."""

LabelledBatch = tuple[Inputs, Tensor]
"""Inputs and labels of n samples; labels are int64 of shape (n,), or (n, positions) for labels of positions."""

LEFT_OUT = -100
"""Label of a position that is left out, such as padding; the value that frameworks use."""

LENGTHS = "lengths before padding"
"""Name among a batch's inputs of the lengths, shape (n,), of its padded samples."""

DOCUMENTS = "documents of the samples"
"""Name among a batch's inputs of the document of each sample, and its first position in it, shape (n, 2)."""

UNLABELLED = -1
"""Label of a sample without a label."""

FIRST_SIZES = (16, 256, 4096)
"""Numbers of samples that `first_samples` tries to read in turn until enough are readable."""

PREFETCHED = 3
"""Number of batches that are read ahead."""
THREAD_NAME = "batches"


@runtime_checkable
class Split(Protocol):
    """One split: its labels, and batches of inputs and labels on the CPU."""

    @property
    def labels(self) -> Tensor:
        """Return all labels, shape (N,), int64."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor | slice) -> LabelledBatch:
        """Read samples by index; unreadable ones are left out."""
        ...


@runtime_checkable
class Streaming(Protocol):
    """A split that prepares its batches in the background and leaves out unreadable samples."""

    @property
    def left_out(self) -> Mapping[int, str]:
        """Return the reason for each sample that could not be read so far, by its index."""
        ...

    def batches(
        self, parts: Sequence[slice], *, total: int | None = None, pinned: bool = False
    ) -> Generator[LabelledBatch, None, None]:
        """Yield a batch for each part of the split in order, except for parts without a readable sample.

        Args:
            parts: Ranges of samples, one per batch.
            total: Number of samples read in total, if the parts cover only some of them.
            pinned: Whether batches are in pinned memory.
        """
        ...

    def leave_out(self, reasons: Mapping[int, str], total: int) -> None:
        """Add samples that another process could not read.

        Args:
            reasons: Why each of them cannot be read, by its index.
            total: Number of samples read in total.
        """
        ...


@dataclass(frozen=True)
class LabelledData:
    """Labelled samples in splits.

    Args:
        name: Name of the data; "" for the name of the function that returns them.
        splits: The splits by name.
        classes: Number of classes; 0 without labels.
        input_shape: Shape of one sample; () for texts and sound.
        arguments: Data arguments that load the same data again, for any model.
        class_names: Names of the first classes, None if they have none.
        notes: Sentences on samples that were left out while loading.
        preparation: How images become inputs, with the source of each step.
        padding: Id of the token that pads texts.
    """

    name: str
    splits: dict[str, Split]
    classes: int
    input_shape: tuple[int, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    preparation: str = ""
    padding: int | None = None

    @property
    def labelled(self) -> bool:
        """Return whether samples have labels."""
        return self.classes > 0

    def split(self, name: str) -> Split:
        """Return a split by name.

        Raises:
            DataError: If there is no such split.
        """
        if name not in self.splits:
            raise DataError(f"{self.name}: no split {name!r}; there are: {', '.join(self.splits)}")
        return self.splits[name]

    def notes_of_reading(self, splits: Sequence[str]) -> list[str]:
        """Return notes on the samples read so far of some splits, such as the number left out."""
        return [f"split {name}: {note}" for name in splits for note in notes_of(self.splits[name])]


class ArraySplit:
    """A split in memory. Batches convert uint8 to float32 in [0, 1], floats to float32, other integers to int64.

    Args:
        inputs: Inputs as stored, shape (N, …).
        labels: Labels, shape (N,), which become int64.
    """

    def __init__(self, inputs: Any, labels: Any) -> None:
        self.inputs = as_tensor(inputs, "inputs")
        self.labels = as_labels(labels).to(torch.int64)
        if self.inputs.ndim < 2 or self.labels.ndim != 1 or len(self.inputs) != len(self.labels):
            shapes = f"{tuple(self.inputs.shape)} and {tuple(self.labels.shape)}"
            raise DataError(f"inputs and labels: expected (N, …) and (N,), found {shapes}")

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return inputs, shape (n, …), and labels, shape (n,), of samples by index."""
        return to_model_dtype(self.inputs[indices]), self.labels[indices]

    def part(self, rows: Any) -> "ArraySplit":
        """Return a split of some samples, by their indices or a mask."""
        chosen = copy(self)
        chosen.inputs, chosen.labels = self.inputs[rows], self.labels[rows]
        return chosen


def one_tensor(inputs: Inputs, consumer: str) -> Tensor:
    """Return inputs that are a single tensor.

    Args:
        inputs: Inputs of a batch.
        consumer: The operation that needs a single tensor, for the message.

    Raises:
        DataError: If the inputs are several tensors.
    """
    if isinstance(inputs, Tensor):
        return inputs
    raise DataError(f"{consumer} takes data whose inputs are one tensor; these are {', '.join(inputs)}")


def to_model_dtype(inputs: Tensor) -> Tensor:
    """Convert uint8 to float32 in [0, 1], floats to float32, and other integers to int64."""
    if inputs.dtype == torch.uint8:
        return inputs.to(torch.float32).div_(255)
    return inputs.to(torch.float32 if inputs.is_floating_point() else torch.int64)


def split_lengths(inputs: Inputs) -> tuple[Inputs, Tensor | None, Tensor | None]:
    """Separate a batch into the inputs of the model and what it states about its samples.

    Returns:
        The inputs; the lengths of padded samples, shape (n,), None without padding; and the document of each sample
        with its first position in it, shape (n, 2), None if the batch states none.
    """
    if isinstance(inputs, Tensor) or not {LENGTHS, DOCUMENTS} & inputs.keys():
        return inputs, None, None
    plain = {name: part for name, part in inputs.items() if name not in (LENGTHS, DOCUMENTS)}
    return plain, inputs.get(LENGTHS), inputs.get(DOCUMENTS)


def first_samples(split: Split, count: int) -> LabelledBatch:
    """Read at least `count` samples from the start of a split, or all if it has fewer.

    More samples are read only if some are unreadable.

    Args:
        split: The split.
        count: Number of samples.

    Raises:
        DataError: If none of the first 4,096 samples can be read.
    """
    for size in (count, *FIRST_SIZES):
        inputs, labels = split.batch(slice(0, size))
        if len(labels) >= count or size >= len(split):
            break
    if not len(labels):
        reasons = list(split.left_out.values()) if isinstance(split, Streaming) else []
        message = f"none of the first {min(size, len(split))} samples can be read"
        raise DataError(f"{message}: {listed(reasons, 3)}")
    return split_lengths(inputs)[0], labels


def ready_batches(
    split: Split,
    size: int,
    limit: int | None = None,
    *,
    start: int = 0,
    stop: int | None = None,
    pinned: bool = False,
) -> AbstractContextManager[Iterator[LabelledBatch]]:
    """Prepare batches of the first samples of a split in the background; see `ready_parts`.

    Args:
        split: The split.
        size: Samples per batch.
        limit: Number of samples; all if None.
        start: Index of the first sample of the first batch.
        stop: Index after the last sample; `limit` if None.
        pinned: Whether batches are in pinned memory.
    """
    count = count_of(split, limit)
    last = count if stop is None else min(stop, count)
    parts = [slice(first, min(first + size, last)) for first in range(start, last, size)]
    return ready_parts(split, parts, total=count, pinned=pinned)


@contextmanager
def ready_parts(
    split: Split, parts: Sequence[slice], *, total: int | None = None, pinned: bool = False
) -> Generator[Iterator[LabelledBatch], None, None]:
    """Prepare a batch for each part of a split, in order, in the background.

    A streaming split prepares its batches itself; for other splits a thread does. Leaving the `with` block ends the
    thread. Batches that are not pinned are for a model on the CPU; torch prepares them with one thread, because a
    second team of threads would outnumber the cores, and the model's threads would sleep after each operator. Errors
    of reading a sample are raised by the iterator.

    Args:
        split: The split.
        parts: Ranges of samples, one per batch.
        total: Number of samples read in total, if the parts cover only some of them.
        pinned: Whether batches are in pinned memory.
    """
    if isinstance(split, Streaming):
        with closing(split.batches(parts, total=total, pinned=pinned)) as batches:
            yield batches
        return
    threads = torch.get_num_threads()
    remaining = iter(parts)

    def read(part: slice) -> LabelledBatch:
        inputs, labels = split.batch(part)
        return _pinned(inputs) if pinned else inputs, labels

    pool = ThreadPoolExecutor(1, THREAD_NAME, torch.set_num_threads, (threads if pinned else 1,))
    waiting = deque(pool.submit(read, part) for part in islice(remaining, PREFETCHED))

    def in_order() -> Iterator[LabelledBatch]:
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(pool.submit(read, part) for part in islice(remaining, 1))
            yield batch

    try:
        yield in_order()
    finally:
        for batch in waiting:
            batch.cancel()
        # Threads that start later inherit this setting. It also runs after a batch that is being read.
        last = pool.submit(torch.set_num_threads, threads)
        try:
            # `join` is not used: it treats the thread as ended if Ctrl-C interrupts it (CPython issue 90882).
            wait([last])
        except KeyboardInterrupt:
            # An HDF5 file must not be read while the process ends.
            wait([last])
            raise
        finally:
            pool.shutdown()


def _pinned(inputs: Inputs) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs.pin_memory()
    return {name: tensor.pin_memory() for name, tensor in inputs.items()}


def count_of(split: Split, limit: int | None) -> int:
    """Return the number of the first `limit` samples of a split; all if None."""
    return len(split) if limit is None else min(limit, len(split))


def names_of(split: Split) -> Sequence[str] | None:
    """Return the names of the samples of a split, such as files in its folder; None if they have none."""
    return getattr(split, "names", None)


def notes_of(split: Split) -> tuple[str, ...]:
    """Return notes on the samples of a split read so far, such as the number left out."""
    return tuple(getattr(split, "notes", ()))


def of_splits(
    name: str, splits: Mapping[str, Split], arguments: dict[str, Any], class_names: tuple[str, ...] | None = None
) -> LabelledData:
    """Join splits to labelled data; the largest label determines the number of classes.

    Args:
        name: Name of the data.
        splits: The splits by name.
        arguments: Data arguments, for the record.
        class_names: Names of the first classes.

    Raises:
        DataError: If a split is empty, or a label is negative.
    """
    empty = [split for split, samples in splits.items() if not len(samples)]
    if empty:
        raise DataError(f"split {empty[0]!r} is empty")
    lowest = min(int(samples.labels.min()) for samples in splits.values())
    if lowest < 0:
        raise DataError(f"a label is {lowest}; number the classes from 0 on")
    classes = max(len(class_names or ()), 1 + max(int(samples.labels.max()) for samples in splits.values()))
    inputs, _ = first_samples(next(iter(splits.values())), 1)
    return LabelledData(name, dict(splits), classes, sample_shape(inputs), arguments, class_names)


def sample_shape(inputs: Inputs) -> tuple[int, ...]:
    """Return the shape of one sample of a batch; () for inputs by name, whose lengths differ between batches."""
    return tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else ()


def described_size(shape: tuple[int, ...], size_source: str, channels_source: str) -> str:
    """Return the size and the channels of images (C, H, W), or the shape of other inputs, with their sources."""
    if len(shape) != 3:
        return f"shape {tuple(shape)} ({size_source})"
    return f"size {shape[1]}×{shape[2]} ({size_source}), channels {shape[0]} ({channels_source})"
