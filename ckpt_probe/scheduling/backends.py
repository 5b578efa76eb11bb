"""Backends that run tasks: worker processes of this machine, or the workers of a Dask cluster.

A process that dies loses only its own task. The workers of a cluster run on any number of machines that share a file
system.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import count
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from queue import Empty, Queue
from typing import Any
from uuid import uuid4

from ckpt_probe.addresses import all_credentials
from ckpt_probe.children import safe_path
from ckpt_probe.errors import CkptProbeError, DataError, UsageError, last_line
from ckpt_probe.files import INTERRUPTS, interrupts_delayed, remove_temporary_files
from ckpt_probe.scheduling.tasks import Caller, Failed, Lost, attempt, describe_mismatch, installed_code

PRELOADED = ("h5py", "torch")
"""Packages that take long to import and that worker processes import once for all of them."""
CONNECT_SECONDS = 15
COUNTED_SECONDS = 1.0
"""Seconds for which the number of workers is cached."""
AHEAD = 2
"""Tasks submitted for each worker, so that it does not wait for the next one."""


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
        with _child_settings():
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
        """End the processes at once."""
        for process in [*self._pool._processes.values()] if self._futures else ():
            process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        torch = sys.modules.get("torch")
        threads = None if torch is None else torch.get_num_threads()
        with _child_settings():
            resource_tracker.ensure_running()  # it ends the blocking of SIGINT
        with _child_settings():
            settings = threads, dict(os.environ)
            return ProcessPoolExecutor(self._count, _context(), initializer=_begin, initargs=settings)


class Cluster:
    """A backend that submits tasks to a running Dask scheduler, whose workers may join and leave at any time.

    Args:
        address: Address of the scheduler, or the file that it has written.
        say: Function that shows a message.
    """

    def __init__(self, address: str, say: Callable[[str], None]) -> None:
        self._address, self._say = address, say
        self._client = _client(address)
        # The cluster frees a result when the last reference to its future is gone.
        self._numbers: dict[Any, int] = {}
        self._ended: Queue[Any] = Queue()
        self._done, self._warned = 0, False
        self._workers, self._counted = 0, -COUNTED_SECONDS
        # A unique prefix, because a task of the same name in another call would be mistaken for this one.
        self._caller, self._count = Caller(str(Path.cwd()), f"ckpt-probe-{uuid4().hex[:8]}", installed_code()), count()
        try:
            self._require_same_version()
            # Number of workers that may die while they hold a task before the scheduler gives it up.
            self._allowed = self._client.run_on_scheduler(_allowed_failures)
            if not self._present():
                say(f"{address}: no worker yet; tasks wait until one joins")
        except BaseException:
            self.close()
            raise

    def capacity(self) -> int:
        """Return twice the number of workers; 1 before the first joins, as a waiting task may start an adaptive one."""
        return max(1, AHEAD * self._present())

    def submit(self, number: int, work: Callable[[Any], Any], item: Any) -> None:
        """Submit a task."""
        key = f"{self._caller.name}-{next(self._count)}"
        try:
            future = self._client.submit(attempt, work, item, all_credentials(), self._caller, key=key, pure=False)
        except Exception as error:
            raise self._gone(error) from error
        self._numbers[future] = number
        future.add_done_callback(self._ended.put)

    def finished(self) -> list[tuple[int, Any]]:
        """Return numbers and outcomes of the tasks that have ended; wait a second at most, as workers may join.

        Raises:
            DataError: If the scheduler has ended.
        """
        try:
            ended = [self._ended.get(timeout=COUNTED_SECONDS)]
        except Empty:
            if self._client.status != "running":
                raise self._gone(None) from None
            return []
        while not self._ended.empty():
            ended.append(self._ended.get())
        try:
            outcomes = [(self._numbers.pop(future), self._outcome(future)) for future in ended]
        except CkptProbeError:
            raise
        except Exception as error:
            raise self._gone(error) from error
        self._done += len(outcomes)
        return outcomes

    def close(self) -> None:
        """Cancel the tasks that are still running and disconnect."""
        with suppress(Exception):  # the scheduler may be gone, which another error reports already
            if self._numbers and self._client.status == "running":
                self._client.cancel(list(self._numbers), force=True)
        self._client.close(timeout=5)

    def _outcome(self, future: Any) -> Any:
        if future.status in {"cancelled", "lost"}:
            raise self._gone(None)
        if future.status == "finished":
            return future.result()
        error = future.exception()
        if type(error).__name__ == "KilledWorker":
            return Lost(self._allowed + 1)
        return Failed(f"on a worker: {last_line(error)}")

    def _present(self) -> int:
        now = time.monotonic()
        if now - self._counted >= COUNTED_SECONDS:
            try:
                threads = self._client.nthreads().values()
            except Exception as error:
                raise self._gone(error) from error
            self._workers, self._counted = len(threads), now
            if max(threads, default=1) > 1 and not self._warned:
                self._warned = True
                advice = "it runs one task at a time all the same; more workers with --nthreads 1 run more"
                self._say(f"{self._address}: a worker has {max(threads)} threads; {advice}")
        return self._workers

    def _require_same_version(self) -> None:
        # Workers compare their code with that of each task. The scheduler needs the package to unpickle tasks.
        try:
            theirs = self._client.run_on_scheduler(installed_code)
        except Exception as error:
            theirs = last_line(error)
        if theirs != self._caller.code:
            raise UsageError(f"{self._address}: {describe_mismatch('the scheduler', theirs, self._caller.code)}")

    def _gone(self, error: BaseException | None) -> DataError:
        cause = "" if error is None else f" ({last_line(error)})"
        return DataError(
            f"{self._address}: the connection to the scheduler was lost after {self._done} tasks{cause}; "
            "finished tasks are not repeated: run the same command again to continue"
        )


@contextmanager
def _child_settings() -> Iterator[None]:
    """Start processes without the working directory on `sys.path`, and without signals that this process handles."""
    mask = getattr(signal, "pthread_sigmask", lambda *_: ())
    with interrupts_delayed(), safe_path():
        before = mask(getattr(signal, "SIG_BLOCK", 0), {*INTERRUPTS} - {signal.SIGTERM})
        try:
            yield
        finally:
            mask(getattr(signal, "SIG_SETMASK", 0), before)


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
    signal.signal(signal.SIGTERM, lambda *_: _end())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A parent that is killed cannot end its worker processes, which would wait for tasks forever.
    parent = parent_process()
    assert parent is not None
    parent.join()
    _end()


def _end() -> None:
    remove_temporary_files()
    os._exit(1)


def _client(address: str) -> Any:
    from ckpt_probe.plugins import require_extra

    distributed = require_extra("distributed", "cluster")
    # A scheduler may write its file a little later.
    file, end = Path(address), time.monotonic() + CONNECT_SECONDS
    while file.suffix == ".json" and not file.is_file() and time.monotonic() < end:
        time.sleep(0.1)
    location = {"scheduler_file": address} if file.is_file() else {"address": address}
    try:
        return distributed.Client(**location, timeout=CONNECT_SECONDS, set_as_default=False, name="ckpt-probe")
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"`scheduler={address!r}`: no scheduler answers there ({last_line(error)}); start one with: dask scheduler"
        ) from error


def _allowed_failures(dask_scheduler: Any) -> int:
    return int(dask_scheduler.allowed_failures)
