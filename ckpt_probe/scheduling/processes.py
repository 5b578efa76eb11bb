"""Processes of this machine, each at one task at a time; one that ends takes only its task with it."""

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from ckpt_probe.children import safe_path
from ckpt_probe.scheduling.tasks import Lost, attempt

WATCH_SECONDS = 0.5


class Processes:
    """A pool of processes that is made anew where one of them was killed.

    Each computes with as many threads as this process would, so that sums are taken in the same order and results are
    bit for bit the same.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = self._made()
        self._futures: dict[Future[Any], int] = {}

    def capacity(self) -> int:
        """One task a process."""
        return self._count

    def submit(self, number: int, work: Callable[[Any], Any], item: Any) -> None:
        """Give out a task."""
        with safe_path():
            self._futures[self._pool.submit(attempt, work, item)] = number

    def finished(self) -> list[tuple[int, Any]]:
        """Wait until a task has ended; where a process was killed, all tasks that were at work are lost."""
        done, _ = wait(self._futures, return_when=FIRST_COMPLETED)
        if not any(isinstance(future.exception(), BrokenProcessPool) for future in done):
            return [(self._futures.pop(future), future.result()) for future in done]
        futures, self._futures = self._futures, {}
        self._pool.shutdown(cancel_futures=True)
        self._pool = self._made()
        return [(number, Lost() if future.exception() else future.result()) for future, number in futures.items()]

    def close(self) -> None:
        """End the processes once what they are at is done."""
        self._pool.shutdown(cancel_futures=True)

    def _made(self) -> ProcessPoolExecutor:
        torch = sys.modules.get("torch")
        threads = None if torch is None else torch.get_num_threads()
        with safe_path():  # its locks start multiprocessing's tracker of resources
            return ProcessPoolExecutor(
                self._count, get_context("spawn"), initializer=_begin, initargs=(threads, os.getpid())
            )


def _begin(threads: int | None, parent: int) -> None:
    if threads is not None:
        # For torch where it is loaded later, which a task without any need of it is spared.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    # A parent that is killed cannot end its processes, which would wait for tasks for ever.
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)
