"""Run tasks on the workers of a Dask cluster, on any number of machines that share a file system."""

import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from queue import Empty, Queue
from typing import Any
from uuid import uuid4

from ckpt_probe.addresses import all_credentials
from ckpt_probe.errors import CkptProbeError, DataError, UsageError, last_line
from ckpt_probe.scheduling.tasks import Caller, Failed, Lost, attempt, describe_mismatch, installed_code

CONNECT_SECONDS = 15
COUNTED_SECONDS = 1.0
"""Seconds for which the number of workers is cached."""
AHEAD = 2
"""Tasks submitted for each worker, so that it does not wait for the next one."""


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
        # Workers that join later compare their code with that of each task.
        try:
            versions = self._client.run(installed_code, on_error="return")
        except Exception as error:
            raise self._gone(error) from error
        try:
            versions["scheduler"] = self._client.run_on_scheduler(installed_code)
        except Exception as error:
            # The scheduler unpickles the tasks that it forwards, and so needs the package too.
            versions["scheduler"] = error
        for worker, code in versions.items():
            if code != self._caller.code:
                theirs = code if isinstance(code, str) else last_line(code)
                raise UsageError(f"{self._address}: {describe_mismatch(worker, theirs, self._caller.code)}")

    def _gone(self, error: BaseException | None) -> DataError:
        cause = "" if error is None else f" ({last_line(error)})"
        return DataError(
            f"{self._address}: the connection to the scheduler was lost after {self._done} tasks{cause}; "
            "finished tasks are not repeated: run the same command again to continue"
        )


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
