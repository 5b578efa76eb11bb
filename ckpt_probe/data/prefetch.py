"""The batches of a split in order, the next ones made ready while a model works on this one."""

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.data.samples import Batch, Inputs, Split, Streaming

PREFETCHED = 3


def ready_batches(
    split: Split,
    size: int,
    limit: int | None = None,
    *,
    start: int = 0,
    stop: int | None = None,
    pinned: bool = False,
) -> AbstractContextManager[Iterator[Batch]]:
    """Batches of `size` of the first `limit` samples of a split, as `ready_parts` makes them ready.

    start, stop: of these samples, only those from the first up to the second.
    """
    count = len(split) if limit is None else min(limit, len(split))
    last = count if stop is None else min(stop, count)
    parts = [slice(first, min(first + size, last)) for first in range(start, last, size)]
    return ready_parts(split, parts, of=count, pinned=pinned)


@contextmanager
def ready_parts(
    split: Split, parts: Sequence[slice], *, of: int | None = None, pinned: bool = False
) -> Generator[Iterator[Batch], None, None]:
    """A batch for each part of a split, in order, in pinned memory where asked for.

    of: how many samples the parts are some of, where they are not all that is read.

    Not pinned, they are for a model on the CPU: torch then makes them ready in one thread. A second team of its threads
    would outnumber the cores, and from then on those of the model sleep after each operator and have to be woken.
    A streaming split makes them ready itself, for any other a thread does; leaving the `with` at any time ends that.
    Raises what reading a sample raises.
    """
    if isinstance(split, Streaming):
        with closing(split.batches(parts, of=of, pinned=pinned)) as batches:
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
        except Exception as error:  # handed to whoever asks for the next batch
            _offer(ready, error, stop)
        finally:
            # What a thread sets is also what threads begin with that start after it.
            torch.set_num_threads(threads)
            ended.set()

    def handed_out() -> Iterator[Batch]:
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
            # Not a join, which takes the thread for ended where Ctrl-C ends it (CPython issue 90882).
            ended.wait()
        except KeyboardInterrupt:
            # Its source may be an HDF5 file, which must not be read when the process ends.
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
