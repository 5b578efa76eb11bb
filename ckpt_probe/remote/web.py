"""HTTP through fsspec's file system: its client with our limits, and parts of a file that are no longer than asked."""

from collections.abc import Iterator
from typing import Any

from ckpt_probe.addresses import without_secrets
from ckpt_probe.errors import DataError
from ckpt_probe.plugins import require_extra
from ckpt_probe.remote.failures import NoPartsError

CHUNK = 2**20


def web(user: str, timeout: float) -> Any:
    """A file system for one user (`name:password`, "" for none), that follows no redirect to elsewhere."""
    aiohttp = require_extra("aiohttp", "remote")
    http = require_extra("fsspec.implementations.http", "remote")
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_refuse_leaving)
    client: dict[str, Any] = {
        "trace_configs": [trace],
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout),
        # With the environment's proxies came its .netrc, which would send a password that nobody asked for.
        "trust_env": False,
    }
    if user:
        name, _, password = user.partition(":")
        from urllib.parse import unquote

        client["auth"] = aiohttp.BasicAuth(unquote(name), unquote(password))
    return http.HTTPFileSystem(encoded=True, simple_links=False, client_kwargs=client, skip_instance_cache=True)


def part_of(host: Any, request: str, start: int, stop: int, size: int) -> bytes:
    """Bytes of a file, never more than were asked for. Raises DataError where the answer is of another part or size."""
    sync: Any = require_extra("fsspec.asyn", "remote").sync
    return sync(host.loop, _part_of, host, request, start, stop, size)


def stream(host: Any, request: str, most: int) -> Iterator[bytes]:
    """A file of a host that gives no parts, from its beginning; at most one byte more than `most`."""
    left = most + 1
    with host.open(request, block_size=0) as opened:
        while left > 0:
            data = opened.read(min(CHUNK, left))
            if not data:
                return
            left -= len(data)
            yield data


async def _part_of(host: Any, request: str, start: int, stop: int, size: int) -> bytes:
    session = await host.set_session()
    asked = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    async with session.get(host.encode_url(request), headers=asked) as answer:
        answer.raise_for_status()
        whole = (start, stop) == (0, size)
        told = answer.headers.get("Content-Range", "")
        if answer.status == 206 and told != f"bytes {start}-{stop - 1}/{size}":
            raise DataError(
                f"{without_secrets(request)}: bytes {start}-{stop - 1} of {size:,} were asked for, but the host sends "
                f"{told[:60] or 'others'}; it may have changed while it was read: try again"
            )
        if answer.status != 206 and not whole:
            raise NoPartsError(f"{without_secrets(request)}: the host sends no parts of it; fetch it and name the file")
        found = bytearray()
        while len(found) <= stop - start:
            data = await answer.content.read(CHUNK)
            if not data:
                break
            found += data
    return bytes(found)


async def _refuse_leaving(_session: Any, _context: Any, params: Any) -> None:
    """Raise DataError where a host sends us on to another host, or out of the directory that was asked for."""
    from yarl import URL

    target = params.url.join(URL(params.response.headers.get("Location", ""), encoded=True))
    folder = params.url.path.rstrip("/").rpartition("/")[0] + "/"
    if target.origin() != params.url.origin() or not target.path.startswith(folder):
        where = without_secrets(str(params.url))
        raise DataError(
            f"{where}: the host redirects to {target.origin()}, elsewhere, which is not followed; "
            "if you trust it, name the address it leads to"
        )
