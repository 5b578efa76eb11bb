"""Addresses of remote files (`s3://bucket/run`), and the removal of credentials from addresses and texts."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from ckpt_probe.errors import UsageError

SCHEMES = ("s3", "gs", "https", "http", "hf")
_START = re.compile(rf"({'|'.join(SCHEMES)}):/{{1,2}}(?=[^/])", re.IGNORECASE)
_NO_END = r"[^\s\"'<>\\]"
_WITHIN = re.compile(rf"(?<![\w/])(?:{'|'.join(SCHEMES)})://(?:(?!,\w+://){_NO_END})+", re.IGNORECASE)
_USER = re.compile(r"(?<!\bhf)(://)[^/\s@\"'<>\\]+@", re.IGNORECASE)
_ENCODED_USER = re.compile(r"(%3A%2F%2F)(?:(?!%2F)[^/\s@\"'<>\\])+?%40", re.IGNORECASE)

PUBLIC_PARAMETERS = frozenset({"versionid", "generation", "revision", "ref", "download", "raw", "dl"})
"""Parameters of an address that are not secret and identify the file, such as a version."""
SIGNING_PARAMETERS = re.compile(
    r"(x-amz-|x-goog-|goog|aws|amz|key-pair-id|policy|signature|expires|sig$|s[etpvrki]$|sk|token|access)",
    re.I,
)
"""Names of parameters that sign an address; a later signature of the same address replaces them."""
SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
HIDDEN = "[redacted]"


class Credentials(dict[str, tuple[str, str]]):
    """`user:password` and signing parameters by address; they do not show in a log of the arguments of a task."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} addresses)"


_credentials = Credentials()
"""Credentials that were removed from addresses. They stay in memory: child processes inherit the environment."""


class Address(type(Path())):
    """Path of a remote file: a `Path` whose text is the address, with both slashes after the scheme."""

    def __str__(self) -> str:
        return _START.sub(lambda match: f"{match[1].lower()}://", super().__str__(), count=1)


def is_address(path: Path | str) -> bool:
    """Return whether a path is the address of a remote file, also if `Path` has dropped one of its slashes."""
    return _START.match(str(path)) is not None


def as_path(path: Path | str) -> Path:
    """Return a text as a path, and a path as it is: `Path(path)` would make a local path of a remote one."""
    return path if isinstance(path, Path) else Path(path)


def local_path(path: Path | str) -> Path:
    """Return the path of a file or directory on this machine; a remote one is downloaded into the cache."""
    return Path(os.fspath(path))


def without_secrets(text: str) -> str:
    """Return an address without user, password and signature, which are stored for `credentials`.

    Raises:
        UsageError: If the same address was used before with other parameters.
    """
    clean, user, query = _split(text)
    if user or query:
        _store(clean, user, query)
    return clean


def clean_words(value: Any) -> Any:
    """Apply `without_secrets` to each address in a text, or in nested mappings and lists of texts."""
    return _cleaned(value, without_secrets)


def without_credentials(value: Any) -> Any:
    """Remove credentials from each address in a text, or in nested mappings and lists; they are not stored."""
    return _cleaned(value, lambda address: _split(address)[0])


def credentials(address: str) -> tuple[str, str]:
    """Return the credentials that were removed from an address.

    Files below an address have the same user and password as the address.

    Args:
        address: Address without credentials.

    Returns:
        `user:password` and the signing parameters (`Signature=…`); "" for each that is unknown.
    """
    if address in _credentials:
        return _credentials[address]
    parents = [parent for parent in _credentials if address.startswith(f"{parent}/")]
    return (_credentials[max(parents, key=len)][0], "") if parents else ("", "")


def all_credentials() -> Credentials:
    """Return a copy of all credentials that were removed from addresses, to send with a task to another process."""
    return Credentials(_credentials)


@contextmanager
def use_credentials(received: Mapping[str, tuple[str, str]]) -> Iterator[None]:
    """Use the credentials that another process has sent with a task, until the end of the context."""
    before = dict(_credentials)
    _credentials.update(received)
    try:
        yield
    finally:
        _credentials.clear()
        _credentials.update(before)


def redacted(text: str) -> str:
    """Remove all credentials that this process knows from a text, such as the error message of a library."""
    secrets = {os.environ.get(name, "") for name in SECRET_VARIABLES}
    for user, query in _credentials.values():
        secrets |= {user, user.partition(":")[2], query, *(value for _, value in parse_qsl(query))}
        secrets |= {unquote(user), unquote(user.partition(":")[2])}
        secrets |= {part.partition("=")[2] for part in query.split("&")}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) > 3:
            text = text.replace(secret, HIDDEN)
    return _without_users(text)


def refuse_address(path: Path | str) -> None:
    """Raise UsageError if an output path is an address."""
    if is_address(path):
        raise UsageError(
            f"{without_secrets(str(path))}: results are written to local files only; write there, then copy them"
        )


def _split(text: str) -> tuple[str, str, str]:
    """Split an address into the address without credentials, `user:password`, and the signing parameters."""
    address = _START.sub(lambda match: f"{match[1].lower()}://", text, count=1)
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    user, query = "", ""
    if scheme != "hf":
        if "@" not in host and "@" in path and re.search(r":(?!\d*$)", host):
            # A password that contains a slash, which is common for S3.
            user, _, rest = rest.partition("@")
            host, slash, path = rest.partition("/")
        else:
            user, _, host = host.rpartition("@")
    if scheme in {"http", "https"}:
        path, query = _split_query(path)
        path, _, _ = path.partition("#")
    return f"{scheme}://{host}{slash}{path}".rstrip("/"), user, query


def _cleaned(value: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {_cleaned(name, clean): _cleaned(part, clean) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(part, clean) for part in value]
    if not isinstance(value, str):
        return value
    # JSON may escape a slash.
    text = value.replace("\\/", "/") if ":\\/\\/" in value else value
    return _without_users(_WITHIN.sub(lambda match: clean(match[0]) + "/" * match[0].endswith("/"), text))


def _without_users(text: str) -> str:
    """Hide user and password in addresses of any scheme."""
    return _ENCODED_USER.sub(rf"\1{HIDDEN}%40", _USER.sub(rf"\1{HIDDEN}@", text))


def _split_query(path_and_query: str) -> tuple[str, str]:
    """Split a path with query into the path with its public parameters, and the other parameters."""
    path, mark, query = path_and_query.partition("?")
    if not mark:
        return path_and_query, ""
    pairs = query.split("&")
    public = [pair for pair in pairs if pair.partition("=")[0].lower() in PUBLIC_PARAMETERS]
    return "?".join(filter(None, [path, "&".join(public)])), "&".join(pair for pair in pairs if pair not in public)


def _store(address: str, user: str, query: str) -> None:
    before = _credentials.get(address)
    if before is not None and _without_signature(before[1]) != _without_signature(query):
        raise UsageError(
            f"{address}: used twice with different parameters after the question mark, which may name different files; "
            "use one of them at a time"
        )
    _credentials[address] = (user, query)


def _without_signature(query: str) -> str:
    """Return the parameters that do not belong to a signature, and so may identify the file."""
    return urlencode(sorted(pair for pair in parse_qsl(query) if not SIGNING_PARAMETERS.match(pair[0])))
