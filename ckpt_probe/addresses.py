"""Addresses of files elsewhere (`s3://bucket/run`), as paths that can be written anywhere: they hold no credentials."""

import json
import os
import re
from collections.abc import Callable, Mapping
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

KEPT = frozenset({"versionid", "generation", "revision", "ref", "download", "raw", "dl"})
"""Parameters of an address that are no secrets, and say which file it is."""
RENEWED = re.compile(
    r"(x-amz-|x-goog-|goog|aws|amz|key-pair-id|policy|signature|expires|sig$|s[etpvrki]$|sk|token|access)",
    re.I,
)
"""Parameters that sign an address: those of a later signature take their place."""
ASIDE = "CKPT_PROBE_ADDRESS_SECRETS"
"""The variable by which the processes that this one starts know what was taken out of its addresses."""
OF_ENVIRONMENT = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
HIDDEN = "[redacted]"


class Address(type(Path())):
    """The path of a file elsewhere: a `Path` whose text is the address again, both slashes after its scheme."""

    def __str__(self) -> str:
        return _START.sub(lambda found: f"{found[1].lower()}://", super().__str__(), count=1)


def is_address(path: Path | str) -> bool:
    """Whether a path names a file elsewhere, also where a `Path` was made of it and dropped a slash."""
    return _START.match(str(path)) is not None


def place(path: Path | str) -> Path:
    """A path as anybody may name it: an `Address` without credentials, else the path itself.

    Raises UsageError where the same address was given before with other parameters.
    """
    return Address(without_secrets(str(path))) if is_address(path) else Path(path)


def without_secrets(text: str) -> str:
    """Return an address without user, password and signature, which are kept for `credentials`.

    Raises UsageError as `place`.
    """
    clean, user, query = _split(text)
    if user or query:
        _keep(clean, user, query)
    return clean


def clean_words(value: Any) -> Any:
    """Return text, or mappings and lists of texts, with each address in it as by `without_secrets`."""
    return _cleaned(value, without_secrets)


def without_credentials(value: Any) -> Any:
    """Return text, or mappings and lists of texts, with no credentials in any address; nothing is kept of them."""
    return _cleaned(value, lambda address: _split(address)[0])


def credentials(address: str) -> tuple[str, str]:
    """Who (`user:password`) and by which parameters (`Signature=…`) a clean address is asked; "" where nothing is said.

    What is below an address is asked by the same user.
    """
    kept = _kept()
    if address in kept:
        return kept[address][0], kept[address][1]
    above = [found for found in kept if address.startswith(f"{found}/")]
    return (kept[max(above, key=len)][0], "") if above else ("", "")


def redacted(text: str) -> str:
    """Text of a library, in which no credentials are left that this process knows."""
    secrets = {os.environ.get(name, "") for name in OF_ENVIRONMENT}
    for user, query in _kept().values():
        secrets |= {user, user.partition(":")[2], query, *(value for _, value in parse_qsl(query))}
        secrets |= {unquote(user), unquote(user.partition(":")[2])}
        secrets |= {part.partition("=")[2] for part in query.split("&")}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) > 3:
            text = text.replace(secret, HIDDEN)
    return _without_users(text)


def refuse_address(path: Path | str) -> None:
    """Raise UsageError where results were to be written to an address."""
    if is_address(path):
        raise UsageError(f"{place(path)}: results are written to local files alone; write there, then copy them")


def _split(text: str) -> tuple[str, str, str]:
    """Return an address without credentials, its user and password, and the parameters that sign it."""
    address = _START.sub(lambda found: f"{found[1].lower()}://", text, count=1)
    scheme, _, rest = address.partition("://")
    host, slash, behind = rest.partition("/")
    user, query = "", ""
    if scheme != "hf":
        if "@" not in host and "@" in behind and re.search(r":(?!\d*$)", host):
            # A password with a slash in it, as those of S3 often are.
            user, _, rest = rest.partition("@")
            host, slash, behind = rest.partition("/")
        else:
            user, _, host = host.rpartition("@")
    if scheme in {"http", "https"}:
        behind, query = _parted(behind)
        behind, _, _ = behind.partition("#")
    return f"{scheme}://{host}{slash}{behind}".rstrip("/"), user, query


def _cleaned(value: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {_cleaned(name, clean): _cleaned(part, clean) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(part, clean) for part in value]
    if not isinstance(value, str):
        return value
    # JSON may write a slash with another before it.
    text = value.replace("\\/", "/") if ":\\/\\/" in value else value
    return _without_users(_WITHIN.sub(lambda found: clean(found[0]) + "/" * found[0].endswith("/"), text))


def _without_users(text: str) -> str:
    """Return text with user and password hidden in addresses of any scheme."""
    return _ENCODED_USER.sub(rf"\1{HIDDEN}%40", _USER.sub(rf"\1{HIDDEN}@", text))


def _parted(behind: str) -> tuple[str, str]:
    """A path with the parameters that stay in it, and those that are put aside."""
    path, mark, query = behind.partition("?")
    if not mark:
        return behind, ""
    pairs = query.split("&")
    stays = [pair for pair in pairs if pair.partition("=")[0].lower() in KEPT]
    return "?".join(filter(None, [path, "&".join(stays)])), "&".join(pair for pair in pairs if pair not in stays)


def _keep(address: str, user: str, query: str) -> None:
    kept = dict(_kept())
    before = kept.get(address)
    if before is not None and _naming(before[1]) != _naming(query):
        raise UsageError(
            f"{address}: given twice with different parameters behind the question mark, by which files cannot be told "
            "apart; use one of them at a time"
        )
    kept[address] = [user, query]
    os.environ[ASIDE] = json.dumps(kept)


def _naming(query: str) -> str:
    """What of the parameters may say which file it is."""
    return urlencode(sorted(pair for pair in parse_qsl(query) if not RENEWED.match(pair[0])))


def _kept() -> Mapping[str, list[str]]:
    try:
        return json.loads(os.environ.get(ASIDE, "{}"))
    except ValueError:
        return {}
