"""fsspec's file system for HTTP, with credentials that are added to each request and so stand in no path of it."""

import re
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
from fsspec.implementations.http import HTTPFileSystem
from yarl import URL

from ckpt_probe.addresses import credentials, without_secrets
from ckpt_probe.budget import Budget
from ckpt_probe.errors import DataError

PAGE_COST = 6
"""Bytes of memory for each byte of the page of a directory: the page, its text and the links in it."""
LEGAL = "%/:=&?~+!$,;'@()*[]"
"""Characters that are not percent-encoded, besides letters and digits."""


class LimitedResponse(aiohttp.ClientResponse):
    """A response whose body is not read beyond the requested range, or beyond the budget of a page."""

    async def read(self) -> bytes:
        """Return the body.

        Raises:
            DataError: If it is too long.
        """
        requested = re.fullmatch(r"bytes=(\d+)-(\d+)", self.request_info.headers.get("Range", ""))
        if self._body is None:
            address = without_secrets(str(self.url))
            most = int(requested[2]) - int(requested[1]) + 1 if requested else None
            body, budget = bytearray(), Budget(address)
            try:
                async for chunk in self.content.iter_chunked(2**20):
                    body += chunk
                    if most is None:
                        budget.spend(PAGE_COST * len(chunk), chunk.count(b"href") + chunk.count(b"http"))
                    elif len(body) > most:
                        raise DataError(f"{address}: the host sends more than {most:,} bytes")
            except DataError:
                self.close()
                raise
            self._body = bytes(body)
        return self._body


class WebFileSystem(HTTPFileSystem):
    """HTTP by addresses without credentials."""

    def encode_url(self, url: str) -> URL:
        """Return the URL that is requested, with user, password and signature."""
        user, query = credentials(url.rstrip("/"))
        request = URL(quote(f"{url}{'&' if '?' in url else '?'}{query}" if query else url, safe=LEGAL), encoded=True)
        if not user:
            return request
        name, _, password = user.partition(":")
        return request.with_user(unquote(name)).with_password(unquote(password))


def web_file_system(timeout: float) -> WebFileSystem:
    """Return the file system for HTTP.

    Args:
        timeout: Seconds that a host may take to connect or to send the next bytes.
    """
    client: dict[str, Any] = {
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout),
        # With the proxies of the environment, aiohttp would read .netrc, and send a password to a host unasked.
        "trust_env": False,
        # Sizes and ranges are those of the file as it is stored.
        "headers": {"Accept-Encoding": "identity"},
        "auto_decompress": False,
        "response_class": LimitedResponse,
    }
    return WebFileSystem(encoded=True, simple_links=False, client_kwargs=client, skip_instance_cache=True)
