"""Batches of a split in order, prepared in the background while the model processes the current one."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import islice

import torch
from torch import Tensor

from ckpt_probe.data.samples import Inputs, LabelledBatch, Split, Streaming

PREFETCHED = 3
"""Number of batches that are read ahead."""
THREAD_NAME = "batches"


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
    count = len(split) if limit is None else min(limit, len(split))
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
