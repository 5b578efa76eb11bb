"""Requests to hosts through fsspec: information about files, listings and ranges, repeated if that may help."""

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

from ckpt_probe.addresses import credentials
from ckpt_probe.budget import Budget
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.remote.failures import CHANGED, describe_failure, is_transient

EXTRA = "remote"
ATTEMPTS = {"s3": 5, "http": 5, "https": 5, "gs": 1, "hf": 2}
"""Number of attempts by scheme; gcsfs repeats a request itself, and huggingface_hub does when it reads."""
LONGEST_WAIT = 8.0
"""Longest wait between two attempts, in seconds."""
DEFAULT_TIMEOUT = 30.0
READ_AHEAD = 64 * 1024
"""Number of bytes that are read beyond those requested; most headers of safetensors files are smaller."""
PATIENCE = 10.0
"""Seconds in which a client starts, besides those in which the host may answer."""
SLOWEST = 2**14
"""Bytes in a second below which a host is too slow."""
LISTING = 2**22
"""Bytes of a listing, which may come in many answers."""
WEB = ("http", "https")


@dataclass(frozen=True)
class Entry:
    """A remote file or directory.

    Attributes:
        address: Address without credentials.
        size: Size in bytes; None for a directory, and for a link of a web page that was not requested yet.
        validator: Text that changes if the file changes (its ETag or time); "" if the host states neither.
        ranges: Whether the host sends parts of the file.
        directory: Whether it is a directory.
    """

    address: str
    size: int | None = None
    validator: str = ""
    ranges: bool = field(default=True, compare=False)
    directory: bool = False


def scheme_of(address: str) -> str:
    """Return the scheme of an address: s3, gs, http, https or hf."""
    return address.partition(":")[0]


def look_up(address: str) -> Entry:
    """Request information about an address.

    Raises:
        DataError: If there is nothing at the address, or the host cannot be reached.
    """
    info = request(address, lambda: file_system(address).info(address))
    if info.get("type") == "directory" or info.get("mimetype") == "text/html":
        return Entry(address, directory=True)
    return _file_entry(address, info)


def list_directory(address: str) -> list[Entry]:
    """List the files and directories in a remote directory.

    Raises:
        DataError: If a name leads out of the directory, if a file and a directory have one name, if the entries are
            beyond the budget, or if the host cannot be reached.
    """
    entries: dict[str, Entry] = {}
    budget = Budget(address)
    for entry in _web_entries(address) if scheme_of(address) in WEB else _entries(address):
        name = entry.address.removeprefix(f"{address}/")
        parts = unquote(name).split("/")
        if name == entry.address or any(part in {"", ".", ".."} or "\\" in part or "\0" in part for part in parts):
            raise DataError(f"{address}: the host lists {name[:200]!r}, a name that leads out of the directory")
        if entry.address in entries and entries[entry.address].directory != entry.directory:
            raise DataError(f"{entry.address}: a file and a directory of one name, which cannot be read as files")
        budget.spend(len(entry.address), entries=2)
        entries[entry.address] = entry
    return [entries[name] for name in sorted(entries)]


class RangeFile(io.RawIOBase):
    """A remote file that is read by ranges; it must not change between the first and the last of them.

    Args:
        entry: The file.
        read_ahead: Whether to read `READ_AHEAD` bytes beyond those requested, and to keep them for the next read.
        cached_copy: Function that returns the local copy, None if the file was not downloaded.
        download: Function that downloads the file and returns the local copy, for a host that sends no ranges.
    """

    def __init__(
        self,
        entry: Entry,
        *,
        read_ahead: bool,
        cached_copy: Callable[[], Path | None],
        download: Callable[[], Path],
    ) -> None:
        super().__init__()
        self._entry, self._cached_copy, self._download = entry, cached_copy, download
        self._size = entry.size or 0
        self._position = 0
        self._read_ahead = read_ahead
        self._several = False
        self._local = False
        self._file: Any = io.BytesIO()
        cached = {"cache_type": "readahead", "block_size": READ_AHEAD} if read_ahead else {"cache_type": "none"}
        address = entry.address
        self._file = request(address, lambda: file_system(address).open(address, "rb", size=entry.size, **cached))

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position of the next read."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes.

        Raises:
            DataError: If the host sends fewer or fails.
        """
        start = self._position
        stop = self._size if size < 0 else min(start + size, self._size)
        if stop <= start:
            return b""
        data = request(self._entry.address, lambda: self._range(start, stop), stop - start)
        if data is None:
            # Some hosts state that they send ranges, but send whole files.
            self._file, self._local = self._download().open("rb"), True
            self._file.seek(start)
            data = self._file.read(stop - start)
        if len(data) != stop - start:
            raise DataError(
                f"{self._entry.address}: received {len(data):,} bytes instead of {stop - start:,}; {CHANGED}"
            )
        self._position = stop
        self._several |= stop > READ_AHEAD or (start > 0 and not self._read_ahead)
        return data

    def close(self) -> None:
        """Close the file.

        Raises:
            DataError: If it was read in several ranges and has changed since it was opened.
        """
        if self.closed:
            return
        super().close()
        self._file.close()
        if self._several and look_up(self._entry.address) != self._entry:
            raise DataError(f"{self._entry.address}: changed while it was read, so that parts of two files were mixed")

    def _range(self, start: int, stop: int) -> bytes | None:
        """Return bytes, or None if the host sends the whole file instead."""
        if not self._local and (copy := self._cached_copy()) is not None:
            # It was downloaded meanwhile, as for its hash.
            self._file, self._local = copy.open("rb"), True
        self._file.seek(start)
        try:
            return self._file.read(stop - start)
        except ValueError:
            return None


def request(address: str, ask: Callable[[], Any], size: int = 0) -> Any:
    """Return the result of `ask`, which is called again if it fails for a reason that may pass.

    Args:
        address: Address without credentials.
        ask: Function that sends the request.
        size: Number of bytes that are expected; a host that sends fewer than `SLOWEST` a second is not waited for.

    Raises:
        DataError: If it fails finally.
    """
    seconds = PATIENCE + 3 * _timeout() + size / SLOWEST
    tenacity = _package("tenacity")
    attempts = ATTEMPTS[scheme_of(address)]
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(attempts),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=LONGEST_WAIT),
        retry=tenacity.retry_if_exception(is_transient),
        reraise=True,
    )
    try:
        return retrying(_ask_within, address, ask, seconds)
    except Exception as error:
        failure = describe_failure(address, error, attempts)
        # The error of a client contains the whole address, and its cause the request.
        raise failure from None


def _ask_within(address: str, ask: Callable[[], Any], seconds: float) -> Any:
    """Return the result of `ask`; its client limits only the time between two bytes.

    Raises:
        DataError: If it takes longer than `seconds`.
    """
    answer: Future[Any] = Future()

    def put() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=put, daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        if answer.done():
            raise
        raise DataError(
            f"{address}: the host sends too slowly, its answer was not complete after {seconds:.0f} seconds; try again "
            "later, or raise CKPT_PROBE_TIMEOUT (seconds)"
        ) from None


def file_system(address: str) -> Any:
    """Return the file system of fsspec for an address.

    Raises:
        UsageError: If the extra `remote` is not installed, if the timeout is not a number, or if an address of another
            scheme than HTTP contains credentials.
    """
    scheme = scheme_of(address)
    if scheme not in WEB and credentials(address)[0]:
        hint = "they are taken from the environment and the usual files, never from an address"
        raise UsageError(f"{address}: credentials within the address; {hint}")
    return _file_system("https" if scheme in WEB else scheme, _timeout(), os.getpid())


@cache
def _file_system(scheme: str, timeout: float, _process: int) -> Any:
    if scheme == "s3":
        once = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"total_max_attempts": 1}}
        made = _package("s3fs").S3FileSystem(config_kwargs=once, use_listings_cache=False)
        made.retries = 1
        return made
    if scheme == "gs":
        _package("gcsfs")
        # Its other class asks over gRPC for the kind of a bucket, and waits for minutes if nobody answers.
        return _package("gcsfs.core").GCSFileSystem(use_listings_cache=False, requests_timeout=timeout)
    if scheme == "hf":
        return _package("huggingface_hub").HfFileSystem(use_listings_cache=False)
    _package("aiohttp")
    _package("fsspec")
    from ckpt_probe.remote.web import web_file_system

    return web_file_system(timeout)


def _timeout() -> float:
    text = os.environ.get("CKPT_PROBE_TIMEOUT", str(DEFAULT_TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"CKPT_PROBE_TIMEOUT: expected a number of seconds, found {text!r}")
    return seconds


def _package(name: str) -> Any:
    # These packages load slowly, and most files are local.
    from ckpt_probe.plugins import require_extra

    return require_extra(name, EXTRA)


def _entries(address: str) -> Iterator[Entry]:
    host = file_system(address)
    # Hosts state names without the scheme, and hf:// with the revision of a branch.
    directory = host._strip_protocol(address)
    for info in request(address, lambda: host.ls(address, detail=True), LISTING):
        name = str(info["name"]).rstrip("/")
        if name == directory:
            continue
        if not name.startswith(f"{directory}/"):
            raise DataError(f"{address}: the host lists {name[:200]!r}, which is not in it")
        inner = f"{address}/{name[len(directory) + 1 :]}"
        yield Entry(inner, directory=True) if info.get("type") == "directory" else _file_entry(inner, info)


def _web_entries(address: str) -> Iterator[Entry]:
    """Yield the links of a web page that lead below its address, without sizes."""
    links = request(address, lambda: file_system(address).ls(f"{address}/", detail=False))
    for link in dict.fromkeys(link.partition("#")[0].partition("?")[0] for link in links):
        if link.rstrip("/") != address:
            yield Entry(link.rstrip("/"), directory=link.endswith("/"))


def _file_entry(address: str, info: Any) -> Entry:
    size = info.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
        raise DataError(f"{address}: the host does not state its size; download it yourself and name the file")
    changes = [info.get(name) for name in ("ETag", "etag", "blob_id", "oid", "md5Hash", "generation")]
    if not any(changes):
        # A listing may state times to the millisecond, and the file itself to the second.
        changes = [str(info.get(name) or "") for name in ("LastModified", "Last-Modified", "mtime", "updated")]
    return Entry(address, size, "|".join(str(part) for part in changes if part), bool(info.get("partial", True)))
