"""What a task is, wherever it runs: work on one item, and what came of it."""

import os
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ckpt_probe.errors import CkptProbeError, UsageError, last_line

T = TypeVar("T")

_kept: list[tuple[Any, Any]] = []
_callers: list["Caller"] = []
_alone = threading.Lock()


@dataclass(frozen=True)
class Workers:
    """Who runs tasks: so many processes of this machine, this one alone where it is 1, or a Dask cluster.

    scheduler: the address of the cluster's scheduler, such as tcp://host:8786, or the file that it has written.
    """

    count: int = 1
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"workers: expected at least 1, found {self.count}")
        if self.scheduler is not None and self.count != 1:
            raise UsageError("--workers and --scheduler exclude each other: a cluster has workers of its own")

    @property
    def alone(self) -> bool:
        """Whether this process does it all."""
        return self.count == 1 and self.scheduler is None


ALONE = Workers()


@dataclass(frozen=True)
class Busy:
    """What a task answers where another process is at its item: the item's turn comes again."""

    holder: str


@dataclass(frozen=True)
class Failed:
    """A task that ended with an error.

    ours: the error is of our own family, so that its message says of what it is. trace: the worker's traceback where
    it is an error of the program.
    """

    message: str
    ours: bool = False
    wrong_use: bool = False
    trace: str | None = None


@dataclass(frozen=True)
class Lost:
    """A task whose worker process was killed while it, or another task, ran. times: how many such have been."""

    times: int = 1


@dataclass(frozen=True)
class Caller:
    """Who gives tasks to a worker that serves many: where relative names of files are looked for, and a name."""

    directory: str
    name: str


def made_once(key: Any, make: Callable[[], T]) -> T:
    """What `make` gives, kept in this process until another key is asked for.

    So a worker opens a model and its data once for all the checkpoints that one caller gives it.
    """
    if not _kept or _kept[0][0] != key:
        _kept.clear()
        _kept.append((key, make()))
    return _kept[0][1]


def attempt(work: Callable[[Any], Any], item: Any, caller: Caller | None = None) -> Any:
    """What `work` makes of an item, or how it failed; this is what a worker runs, one at a time in a process.

    A model that is kept for the next task takes one checkpoint's weights after another, so that a worker of several
    threads would give one task the other's weights.
    """
    with _alone:
        return _attempted(work, item, caller)


def _attempted(work: Callable[[Any], Any], item: Any, caller: Caller | None) -> Any:
    try:
        if caller is not None:
            # What has the same name may be something else by now: the directory, and all that was opened in it.
            os.chdir(caller.directory)
            if _callers != [caller]:
                _kept.clear()
                _callers[:] = [caller]
        return work(item)
    except CkptProbeError as error:
        return Failed(str(error), ours=True, wrong_use=isinstance(error, UsageError))
    except Exception as error:
        return Failed(last_line(error), trace=traceback.format_exc())
