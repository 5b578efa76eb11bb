"""Define tasks and their outcomes: work on one item, wherever it runs."""

import os
import socket
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from ckpt_probe.addresses import Credentials, redacted, use_credentials
from ckpt_probe.errors import CkptProbeError, UsageError, last_line
from ckpt_probe.files import code_hash
from ckpt_probe.keywords import whole_number

T = TypeVar("T")

_cache: list[tuple[Any, Any]] = []
_callers: list["Caller"] = []
_alone = threading.Lock()


@dataclass(frozen=True)
class Workers:
    """The workers that run tasks.

    Attributes:
        count: Number of processes of this machine; 1 for this process alone.
        scheduler: Address of a Dask scheduler, such as tcp://host:8786, or the file that it has written; its workers
            run the tasks instead.
    """

    count: int = 1
    scheduler: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", whole_number("workers", self.count, 1))
        if self.scheduler is not None and self.count != 1:
            raise UsageError("`workers` and `scheduler` exclude each other: a cluster has workers of its own")

    @property
    def alone(self) -> bool:
        """Return whether all tasks run in this process."""
        return self.count == 1 and self.scheduler is None


@dataclass(frozen=True)
class Busy:
    """Outcome of a task whose item another process is working on; the item is tried again later.

    Attributes:
        holder: Description of the other process.
    """

    holder: str


@dataclass(frozen=True)
class Failed:
    """Outcome of a task that raised an error.

    Attributes:
        message: Message of the error.
        ours: Whether it is a `CkptProbeError`, whose message names the file that it is about.
        wrong_use: Whether it is a `UsageError`.
        trace: Traceback of an unexpected error.
    """

    message: str
    ours: bool = False
    wrong_use: bool = False
    trace: str | None = None


@dataclass(frozen=True)
class Lost:
    """Outcome of a task whose worker process was killed.

    Attributes:
        times: Number of workers that were killed.
    """

    times: int = 1


@dataclass(frozen=True)
class Caller:
    """The process that submits tasks to a worker of a cluster, which may serve several.

    Attributes:
        directory: Directory against which relative paths are resolved.
        name: Unique name of the call.
        code: Version and hash of the package, which the worker's must equal.
    """

    directory: str
    name: str
    code: str


@cache
def installed_code() -> str:
    """Return the code that this process runs: the version of the package and a hash of its modules."""
    from importlib.metadata import version  # takes longer to load than this module

    return f"{version('ckpt-probe')} {code_hash()[:8]}"


def describe_mismatch(worker: str, theirs: str, ours: str) -> str:
    """Return the message for a worker whose code differs from that of the caller."""
    hint = "install the same on the scheduler and on all workers"
    return f"{worker} has another ckpt-probe ({theirs} / here {ours}); {hint}"


def made_once(key: Any, make: Callable[[], T]) -> T:
    """Return the result of `make`, cached in this process until another key is requested.

    A worker thus opens a model and its data once for all checkpoints of one caller.
    """
    if not _cache or _cache[0][0] != key:
        _cache.clear()
        _cache.append((key, make()))
    return _cache[0][1]


def attempt(work: Callable[[Any], Any], item: Any, credentials: Credentials, caller: Caller | None = None) -> Any:
    """Return the result of `work` for an item, or `Failed`; workers call this.

    Only one task runs at a time in a process: the cached model holds the weights of one checkpoint, which another
    thread would overwrite.

    Args:
        work: Function of one item.
        item: The item.
        credentials: Credentials of addresses in the item, used for this task only.
        caller: Process that submitted the task, if the worker may serve several.
    """
    with _alone, use_credentials(credentials):
        try:
            if caller is not None:
                if caller.code != installed_code():
                    raise UsageError(describe_mismatch(socket.gethostname(), installed_code(), caller.code))
                # Relative names have another meaning for another caller, and so has the cache.
                os.chdir(caller.directory)
                if _callers != [caller]:
                    _cache.clear()
                    _callers[:] = [caller]
            return work(item)
        except CkptProbeError as error:
            return Failed(str(error), ours=True, wrong_use=isinstance(error, UsageError))
        except Exception as error:
            return Failed(redacted(last_line(error)), trace=redacted(traceback.format_exc()))
