"""A dump written by a thread of its own, so that a forward pass never waits for the disk."""

import queue
import threading
from collections.abc import Callable
from typing import Any

import torch

from ckpt_probe.extraction.storing import StoreWriter

WAITING_BLOCKS = 8

Call = tuple[str, tuple[Any, ...], dict[str, Any]]


class _Abandoned(Exception):
    """The other side gave up: the dump is to be left unfinished, and so removed."""


class BackgroundWriter:
    """Calls a StoreWriter's methods in order in one background thread, at most a few blocks behind.

    An error of the writer is raised at the next call or on leaving the `with`; an error inside the `with` makes the
    writer abandon the dump, so that nothing half-written stays.
    """

    def __init__(self, open_writer: Callable[[], StoreWriter]) -> None:
        self._open = open_writer
        self._calls: queue.Queue[Call | None] = queue.Queue(maxsize=WAITING_BLOCKS)
        self._abandoned = threading.Event()
        self._ended = False
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="dump writer", daemon=True)

    def __enter__(self) -> "BackgroundWriter":
        self._thread.start()
        return self

    def call(self, method: str, *arguments: Any, **named: Any) -> None:
        """Have the writer's `method` called, once it is open; blocks while too many calls wait."""
        self._raise_error()
        self._calls.put((method, arguments, named))

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._abandoned.set()
        try:
            self._end()
        except KeyboardInterrupt:
            # HDF5 must not be at work when the process ends, or that ends in a crash. A second Ctrl-C ends the waiting.
            self._abandoned.set()
            self._end()
            raise
        if error is None:
            self._raise_error()

    def _end(self) -> None:
        self._calls.put(None)
        # A join that Ctrl-C ends takes the thread for ended (CPython issue 90882), and a second one would not wait.
        self._done.wait()
        self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._write()
        finally:
            self._done.set()

    def _write(self) -> None:
        # Its sums may be the larger part of the work, whatever the thread has set that makes batches ready.
        torch.set_num_threads(self._threads)
        try:
            with self._open() as writer:
                while (item := self._next()) is not None:
                    method, arguments, named = item
                    getattr(writer, method)(*arguments, **named)
                if self._abandoned.is_set():
                    raise _Abandoned
        except _Abandoned:
            pass
        except BaseException as error:  # raised again in the thread that owns the `with`
            self._error = error
        # Whoever still calls must not block on a full queue: what is left is taken and dropped, up to the end.
        while not self._ended:
            self._next()

    def _next(self) -> Call | None:
        item = self._calls.get()
        self._ended = item is None
        return item
