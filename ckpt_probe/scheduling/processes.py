"""Run tasks in worker processes of this machine; a process that dies loses only its own task."""

import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.context import BaseContext
from typing import Any

from ckpt_probe.addresses import all_credentials
from ckpt_probe.children import safe_path
from ckpt_probe.scheduling.tasks import Lost, attempt

PRELOADED = ("h5py", "torch")
"""Packages that take long to import and that worker processes import once for all of them."""


class Processes:
    """A backend with a pool of processes, which is started again if one of them was killed.

    Each process uses the number of threads of this one, so that sums have the same order and results are identical bit
    for bit.

    Args:
        count: Number of processes.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = self._start()
        self._futures: dict[Future[Any], int] = {}

    def capacity(self) -> int:
        """Return the number of processes."""
        return self._count

    def submit(self, number: int, work: Callable[[Any], Any], item: Any) -> None:
        """Submit a task."""
        with safe_path():
            self._futures[self._pool.submit(attempt, work, item, all_credentials())] = number

    def finished(self) -> list[tuple[int, Any]]:
        """Wait until a task has ended; if a process was killed, all running tasks are lost."""
        done, _ = wait(self._futures, return_when=FIRST_COMPLETED)
        if not any(isinstance(future.exception(), BrokenProcessPool) for future in done):
            return [(self._futures.pop(future), future.result()) for future in done]
        futures, self._futures = self._futures, {}
        self._pool.shutdown(cancel_futures=True)
        self._pool = self._start()
        return [(number, Lost() if future.exception() else future.result()) for future, number in futures.items()]

    def close(self) -> None:
        """End the processes after their current tasks."""
        self._pool.shutdown(cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        torch = sys.modules.get("torch")
        threads = None if torch is None else torch.get_num_threads()
        with safe_path():  # its locks start multiprocessing's tracker of resources
            settings = threads, dict(os.environ)
            return ProcessPoolExecutor(self._count, _context(), initializer=_begin, initargs=settings)


def _context() -> BaseContext:
    """Return how processes are started: as forks of a server that has imported what this process has, or anew."""
    if sys.platform != "linux":
        return get_context("spawn")
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload([name for name in PRELOADED if name in sys.modules])
    try:
        forkserver.ensure_running()
    except OSError:  # this process is a fork of the one that has the server, or cannot create its socket
        return get_context("spawn")
    return get_context("forkserver")


def _begin(threads: int | None, environment: Mapping[str, str]) -> None:
    # The process of which this one is a fork may have started long ago.
    os.environ.clear()
    os.environ.update(environment)
    if threads is not None:
        # For torch if it is imported later; a task that does not need it should not import it.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A parent that is killed cannot end its worker processes, which would wait for tasks forever.
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
