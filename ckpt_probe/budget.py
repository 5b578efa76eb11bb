"""Budget of a file from others: the memory and the time that its contents may take, counted while it is read.

One limit for all formats. Before a reader allocates memory that a file claims, and while it follows what a file says,
it spends that from the budget of the file; the error of a budget that is spent is one line.
"""

import json
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import thread_time
from typing import Any

from ckpt_probe.errors import DataError

MEMORY = 2**29
"""Memory in bytes that the contents of any file may take."""
GROWTH = 50
"""Memory in bytes for each byte of a file, if that is more than `MEMORY`."""
ENTRY = 256
"""Memory in bytes that is counted for each object: an opcode of a pickle, a value in JSON, a column, a link."""
SECONDS = 8.0
"""Processor time in seconds that reading any file may take."""
SPEED = 2**20
"""Bytes of a file for each further second, if that is more than `SECONDS`."""
PROCESS = Path("/proc/self/statm")
"""Sizes of this process in pages, on Linux; the sixth is its writable memory."""

LIBRARY = 2**26
"""Memory in bytes that a library may take beside the contents of a file."""

_enforcing = threading.RLock()


class OverBudget(DataError):
    """The contents of a file take more memory or time than its size justifies."""


class Budget:
    """Memory and time that remain for one file.

    Args:
        source: Name of the file, for messages.
        size: Bytes of the file that are numbers, texts or the like; 0 for a file that describes others, such as JSON.

    Attributes:
        memory: Bytes that the contents may take in total.
    """

    def __init__(self, source: object, size: int = 0) -> None:
        self._source = source
        self.memory = max(MEMORY, GROWTH * size)
        self._seconds = max(SECONDS, size / SPEED)
        self._started = thread_time()
        self._spent = 0

    def spend(self, size: int = 0, entries: int = 0, *, cause: str = "") -> None:
        """Count memory that is needed next, and the time until now.

        Args:
            size: Bytes.
            entries: Number of objects, of `ENTRY` bytes each.
            cause: What needs it, for the message, with a colon.

        Raises:
            OverBudget: If the budget is spent.
        """
        self._spent += size + ENTRY * entries
        if self._spent > self.memory:
            raise self._over(f"{self._spent:,} bytes or more", cause)
        if thread_time() - self._started > self._seconds:
            raise OverBudget(
                f"{self._source}: takes more than {self._seconds:.0f} seconds to read, which its size does not "
                "justify; if you trust it, save it in parts"
            )

    def _over(self, size: str, cause: str) -> OverBudget:
        return OverBudget(
            f"{self._source}: {cause}unpacks to {size}, which its size does not justify; if you trust it, save it "
            "without compression or in parts"
        )

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Let the operating system refuse memory beyond the budget, for a library that believes the sizes in a file.

        The limit holds for the whole process, and on Linux only.

        Raises:
            OverBudget: If an allocation fails.
        """
        if not PROCESS.exists():
            yield
            return
        import resource

        with _enforcing:
            writable = int(PROCESS.read_text().split()[5]) * resource.getpagesize()
            allowed = writable + max(self.memory - self._spent, 0) + LIBRARY
            soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
            resource.setrlimit(resource.RLIMIT_DATA, (min([allowed, *limits]), hard))
            try:
                yield
            except MemoryError as error:
                raise self._over(f"more than {self.memory:,} bytes", "") from error
            finally:
                resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    def parse_json(self, content: bytes, **options: Any) -> Any:
        """Parse JSON after counting the objects that it will become.

        Args:
            content: UTF-8.
            **options: Arguments of `json.loads`.

        Raises:
            OverBudget: If the budget is spent.
            ValueError: If it is not JSON.
        """
        self.spend(4 * len(content), sum(map(content.count, (b"{", b"[", b","))))
        return json.loads(content.decode("utf-8"), **options)


def require_regular(path: Path | str) -> None:
    """Raise DataError if a path is a pipe, a socket or a device, since reading it may block forever.

    A missing file is not an error here, and neither is a pipe that a shell passes (`<(…)`), which has a writer.
    """
    if str(path).startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/")):
        return
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{path}: a pipe, a socket or a device, not a file; copy its contents into a file first")
