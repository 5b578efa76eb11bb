"""Errors of the clients of hosts: which of them may pass, and how they are reported in one line."""

import errno
from collections.abc import Iterator

from ckpt_probe.addresses import redacted
from ckpt_probe.errors import CkptProbeError, DataError, last_line

TRANSIENT_NAMES = frozenset(
    {
        *("TimeoutError", "FSTimeoutError", "ConnectionError", "ServerDisconnectedError", "ClientPayloadError"),
        *("ClientConnectionError", "HTTPClientError", "IncompleteRead", "TransportError", "IncompleteReadError"),
        "ResponseStreamingError",
    }
)
"""Names of classes of errors after which the same request may succeed; the packages need not be loaded for that."""
EXPIRED = "FileExpired"
"""Error of s3fs for an object that was replaced while it was read."""
MALFORMED = "HttpProcessingError"
"""Error of aiohttp for an answer that ended early, or is not HTTP."""
FINAL_NAMES = frozenset(
    {"ClientConnectorCertificateError", "ClientSSLError", "ClientConnectorDNSError", "SSLError", EXPIRED}
)
TRANSIENT_NUMBERS = frozenset({errno.EBUSY, errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO), errno.ETIMEDOUT})
TRANSIENT_STATUSES = frozenset({408, 425, 429, *range(500, 600)})
DENIED = frozenset({401, 403})

HINTS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or FSSPEC_S3_ANON=true for a public bucket",
    "gs": "run gcloud auth application-default login, or set FSSPEC_GS_TOKEN=anon for a public bucket",
    "hf": "run hf auth login, or set HF_TOKEN",
}
HTTP_HINT = "sign the address anew, or name its user as https://user:password@host/…"
CHANGED = "it may have changed while it was read: try again"


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed a little later."""
    causes = list(_causes(error))
    if any(isinstance(cause, CkptProbeError | PermissionError) or _names(cause) & FINAL_NAMES for cause in causes):
        return False
    if statuses := _statuses(causes):
        return bool(TRANSIENT_STATUSES & set(statuses))
    if any(_names(cause) & TRANSIENT_NAMES for cause in causes):
        return True
    return any(isinstance(cause, OSError) and cause.errno in TRANSIENT_NUMBERS for cause in causes)


def describe_failure(address: str, error: BaseException, attempts: int) -> CkptProbeError:
    """Return the error to raise in place of a client's: one line without credentials.

    Args:
        address: Address without credentials.
        error: Error of the client.
        attempts: Number of attempts that are made if an error may pass.
    """
    causes = list(_causes(error))
    ours = next((cause for cause in causes if isinstance(cause, CkptProbeError)), None)
    if ours is not None:
        return ours
    return DataError(f"{address}: {_sentence(address, causes, attempts)}")


def _sentence(address: str, causes: list[BaseException], attempts: int) -> str:
    scheme = address.partition(":")[0]
    statuses, names = _statuses(causes), set().union(*map(_names, causes))
    tried = f" ({attempts} attempts)" if attempts > 1 and is_transient(causes[0]) else ""
    if EXPIRED in names:
        return "changed while it was read, so that parts of two files were mixed"
    if names & {"ClientConnectorCertificateError", "ClientSSLError", "SSLError"}:
        return "the host's certificate cannot be verified; add its authority to the system's, or set SSL_CERT_FILE"
    if names & {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}:
        return f"no credentials found; {HINTS.get(scheme, HTTP_HINT)}"
    if DENIED & set(statuses) or names & {"PermissionError", "GatedRepoError"}:
        return f"access denied; {HINTS.get(scheme, HTTP_HINT)}"
    unreached = names & {"ClientConnectionError", "EndpointConnectionError", "ConnectError", "ConnectionError"}
    late = any("timeout" in name.lower() for name in names)
    missing = names & {"FileNotFoundError", "RepositoryNotFoundError"} and not (statuses or unreached or late)
    if 404 in statuses or missing:
        return "no such file or directory there"
    if statuses:
        return f"the host answers with HTTP status {statuses[-1]}{tried}; try again later"
    if late:
        return f"the host does not answer in time{tried}; try again later, or raise CKPT_PROBE_TIMEOUT (seconds)"
    if MALFORMED in names:
        return f"the answer of the host ended early, or is not HTTP{tried}; try again later"
    if unreached:
        return f"the host cannot be reached{tried}; check its name and the network"
    return f"cannot be fetched{tried}: {redacted(last_line(causes[-1]))[:300]}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, the first cause last."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _statuses(causes: list[BaseException]) -> list[int]:
    # aiohttp gives the status 400 to a response that ended early.
    malformed = any(MALFORMED in _names(cause) for cause in causes)
    return [] if malformed else [status for cause in causes if (status := _status(cause)) is not None]


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        response = response.get("ResponseMetadata", {})
        status = response.get("HTTPStatusCode") if isinstance(response, dict) else None
    else:
        status = (
            getattr(error, "status", None) or getattr(response, "status_code", None) or getattr(error, "code", None)
        )
    try:
        return int(status) if status else None
    except (TypeError, ValueError):
        return None
