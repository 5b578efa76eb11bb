"""Batches of a split in order, prepared in the background while the model processes the current one."""

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.data.samples import Inputs, LabelledBatch, Split, Streaming

PREFETCHED = 3


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
    ready: queue.Queue[Any] = queue.Queue(maxsize=PREFETCHED)
    stop, ended = threading.Event(), threading.Event()
    threads = torch.get_num_threads()

    def prepare() -> None:
        if not pinned:
            torch.set_num_threads(1)
        try:
            for part in parts:
                inputs, labels = split.batch(part)
                if not _offer(ready, (_pinned(inputs) if pinned else inputs, labels), stop):
                    return
            _offer(ready, None, stop)
        except Exception as error:  # raised again by `handed_out`
            _offer(ready, error, stop)
        finally:
            # Threads that start later inherit this setting.
            torch.set_num_threads(threads)
            ended.set()

    def handed_out() -> Iterator[LabelledBatch]:
        while (item := ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    thread = threading.Thread(target=prepare, name="batches", daemon=True)
    thread.start()
    try:
        yield handed_out()
    finally:
        stop.set()
        try:
            # Not a join, which treats the thread as ended if Ctrl-C interrupts it (CPython issue 90882).
            ended.wait()
        except KeyboardInterrupt:
            # An HDF5 file must not be read while the process ends.
            ended.wait()
            thread.join()
            raise
        thread.join()


def _pinned(inputs: Inputs) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs.pin_memory()
    return {name: tensor.pin_memory() for name, tensor in inputs.items()}


def _offer(ready: queue.Queue[Any], item: Any, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False
