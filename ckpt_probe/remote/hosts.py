"""Hosts through fsspec's file systems: what is there, and bytes of it; asked again where that may help."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import quote, unquote

from ckpt_probe.addresses import credentials
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.remote.failures import NoPartsError, is_transient, told

EXTRA = "remote"
ATTEMPTS = {"s3": 5, "http": 5, "https": 5, "gs": 1, "hf": 2}
"""Requests at most; gcsfs asks six times by itself, and huggingface_hub where it reads."""
LONGEST_WAIT = 8.0
DEFAULT_TIMEOUT = 30.0
BLOCK = 8 * 2**20
"""Bytes of one request."""
MOST_NAMES = 500_000
DEEPEST = 12
"""Folders within folders of an HTTP listing that are looked into."""
LEGAL = "%/:=&?~+!$,;'@()*[]"


@dataclass(frozen=True)
class Found:
    """A file elsewhere: its clean address, its size, and by what a change of it shows ("" where nothing does).

    ranges: whether parts of it can be asked for.
    """

    address: str
    size: int
    validator: str
    ranges: bool = field(default=True, compare=False)


def look(address: str) -> Found | None:
    """The file at an address, None where it is a directory. Raises DataError where nothing is, and as `failures`."""
    host = _host(address)
    facts = _asked(address, lambda: host.info(_request(address)))
    if facts.get("type") == "directory" or facts.get("mimetype") == "text/html":
        return None
    return _found(address, facts)


def listing(address: str, *, deep: bool) -> list[Found]:
    """The files in a directory, and with `deep` in all below it, by name.

    Raises DataError for a name that would lie outside it, where there are too many, and as `failures`.
    """
    found = list(_by_links(address, deep) if address.startswith("http") else _by_names(address, deep))
    if len(found) > MOST_NAMES:
        raise DataError(f"{address}: more than {MOST_NAMES:,} files; name a directory further down")
    for file in found:
        _require_inside(address, file.address)
    return sorted(found, key=lambda file: file.address)


def blocks(file: Found, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes of a file from `start` to `stop`, its end where None, at most `BLOCK` at a time.

    No more memory is taken than for what has come. Raises DataError where there are fewer than it should have, or more.
    """
    stop = file.size if stop is None else stop
    if not file.ranges:
        yield from _streamed(file, stop)
        return
    for begin in range(start, stop, BLOCK):
        end = min(begin + BLOCK, stop)
        try:
            data = _asked(file.address, lambda begin=begin, end=end: _range(file, begin, end))
        except NoPartsError:
            if (begin, stop) != (0, file.size):
                raise
            yield from _streamed(file, stop)
            return
        if len(data) != end - begin:
            raise DataError(f"{file.address}: {len(data):,} bytes came instead of {end - begin:,}; {CHANGED}")
        yield data


CHANGED = "it may have changed while it was read: try again"


def seconds() -> float:
    """How long a host may take to answer, by CKPT_PROBE_TIMEOUT. Raises UsageError where that is no time."""
    text = os.environ.get("CKPT_PROBE_TIMEOUT", str(DEFAULT_TIMEOUT))
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise UsageError(f"CKPT_PROBE_TIMEOUT: expected a number of seconds, found {text!r}")
    return found


def _asked(address: str, ask: Callable[[], Any]) -> Any:
    """What a host answers, after more attempts where the first ones fail for a while."""
    tenacity = _package("tenacity")
    attempts = ATTEMPTS[address.partition(":")[0]]
    again = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(attempts),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=LONGEST_WAIT),
        retry=tenacity.retry_if_exception(is_transient),
        reraise=True,
    )
    try:
        return again(ask)
    except Exception as error:
        failure = told(address, error, attempts)
        # A client's own error has the whole address in it, and its cause the request.
        raise failure from None


def _host(address: str) -> Any:
    scheme = address.partition(":")[0]
    user, _ = credentials(address)
    if user and scheme not in {"http", "https"}:
        hint = "they are taken from the environment and the usual files, never from an address"
        raise UsageError(f"{address}: credentials within the address; {hint}")
    return _made(scheme, user, seconds(), os.getpid())


@cache
def _made(scheme: str, user: str, timeout: float, process: int) -> Any:
    if scheme == "s3":
        once = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"total_max_attempts": 1}}
        made = _package("s3fs").S3FileSystem(config_kwargs=once, use_listings_cache=False)
        made.retries = 1
        return made
    if scheme == "gs":
        _package("gcsfs")
        # Its other class asks over gRPC what kind of bucket it is, and waits for minutes where nobody answers that.
        return _package("gcsfs.core").GCSFileSystem(use_listings_cache=False, requests_timeout=timeout)
    if scheme == "hf":
        return _package("huggingface_hub").HfFileSystem(use_listings_cache=False)
    from ckpt_probe.remote.web import web

    return web(user, timeout)


def _package(name: str) -> Any:
    # What this needs takes longer to load than all else here, and most files are not elsewhere.
    from ckpt_probe.plugins import require_extra

    return require_extra(name, EXTRA)


def _request(address: str) -> str:
    """An address as a host is asked for it."""
    if not address.startswith("http"):
        return address
    _, query = credentials(address)
    whole = f"{address}{'&' if '?' in address else '?'}{query}" if query else address
    return quote(whole, safe=LEGAL)


def _range(file: Found, start: int, stop: int) -> bytes:
    host = _host(file.address)
    if file.address.startswith("http"):
        from ckpt_probe.remote.web import part_of

        return part_of(host, _request(file.address), start, stop, file.size)
    # Of these, the hub's alone reads by a file object, which would read ahead.
    ahead = {"cache_type": "none"} if file.address.startswith("hf:") else {}
    return host.cat_file(file.address, start=start, end=stop, **ahead)


def _streamed(file: Found, stop: int) -> Iterator[bytes]:
    from ckpt_probe.remote.web import stream

    found = 0
    for data in _asked(file.address, lambda: stream(_host(file.address), _request(file.address), stop)):
        found += len(data)
        yield data
    if found != stop:
        raise DataError(f"{file.address}: {found:,} bytes came instead of {stop:,}; {CHANGED}")


def _by_names(address: str, deep: bool) -> Iterator[Found]:
    host = _host(address)
    if deep:
        entries = _asked(address, lambda: host.find(address, detail=True)).values()
    else:
        entries = _asked(address, lambda: host.ls(address, detail=True))
    scheme, _, inner = address.partition("://")
    # A host tells names without its scheme, and hf:// the revision that a branch stands for.
    start = host._strip_protocol(address)
    for entry in entries:
        name = str(entry["name"])
        if entry.get("type") != "file" or name == start:
            continue
        if not name.startswith(f"{start}/"):
            raise DataError(f"{address}: the host lists {name[:200]!r}, which is not in it")
        if not name.endswith("/"):
            yield _found(f"{scheme}://{inner}/{name[len(start) + 1 :]}", entry)


def _by_links(address: str, deep: bool) -> Iterator[Found]:
    """What the page of a directory links to below it."""
    host, waiting, asked = _host(address), [(address, 0)], 0
    while waiting:
        folder, depth = waiting.pop()
        links = _asked(folder, lambda folder=folder: host.ls(f"{_request(folder)}/", detail=False))
        for link in dict.fromkeys(link.partition("#")[0].partition("?")[0] for link in links):
            if link.rstrip("/") == folder.rstrip("/"):
                continue
            _require_inside(folder, link.rstrip("/"))
            asked += 1
            if asked > MOST_NAMES or depth > DEEPEST:
                raise DataError(f"{address}: a listing without an end; name a directory further down")
            if link.endswith("/"):
                waiting += [(link.rstrip("/"), depth + 1)] if deep else []
                continue
            found = look(link)
            if found is not None:
                yield found


def _require_inside(folder: str, address: str) -> None:
    behind = address.removeprefix(f"{folder}/")
    parts = unquote(behind).split("/")
    if behind == address or any(part in {"", ".", ".."} or "\\" in part or "\0" in part for part in parts):
        raise DataError(f"{folder}: the host lists {behind[:200]!r}, a name that leads out of the directory")


def _found(address: str, facts: Any) -> Found:
    size = facts.get("size")
    ranges = bool(facts.get("partial", True)) if address.startswith("http") else True
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
        raise DataError(f"{address}: the host does not say how large it is; fetch it yourself and name the file")
    changed = [facts.get(name) for name in ("ETag", "etag", "blob_id", "oid", "md5Hash", "generation")]
    if not any(changed):
        # A listing may tell times to the millisecond, and the file itself to the second.
        changed = [str(facts.get(name) or "") for name in ("LastModified", "last-modified", "mtime", "updated")]
    return Found(address, size, "|".join(str(part) for part in changed if part), ranges)
