"""fsspec's file system for HTTP, with credentials that are added to each request and so stand in no path of it."""

from typing import Any
from urllib.parse import quote, unquote

import aiohttp
from fsspec.implementations.http import HTTPFileSystem
from yarl import URL

from ckpt_probe.addresses import credentials

LEGAL = "%/:=&?~+!$,;'@()*[]"
"""Characters that are not percent-encoded, besides letters and digits."""


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
    }
    return WebFileSystem(encoded=True, simple_links=False, client_kwargs=client, skip_instance_cache=True)
