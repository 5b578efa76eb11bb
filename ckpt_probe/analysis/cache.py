"""Records cached in the user's own directory, with the influences of rows: one new dump costs its analysis alone."""

import functools
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ckpt_probe.analysis.settings import Settings
from ckpt_probe.budget import require_regular
from ckpt_probe.errors import CkptProbeError, DataError
from ckpt_probe.files import code_hash, replacing, write_text
from ckpt_probe.moments import DetailedRecord
from ckpt_probe.moments.details import Portrait
from ckpt_probe.moments.errors.design import Design, Influences
from ckpt_probe.moments.selection import ENTRY_POINTS
from ckpt_probe.scheduling import Busy, UnclaimedError, claimed
from ckpt_probe.user_cache import cached_file

RECORDS = "records"
"""Subdirectory of the cache."""
LIBRARIES = ("h5py", "numpy", "scipy", "torch")
"""Libraries that read dumps and compute with their numbers."""

ARRAYS = ("indices", "labels", "shares", "documents", "document_rows")
"""Arrays of a `Design`; its numbers are stored as arrays without dimensions."""

NUMBERS = ("samples", "fixed")
VALUE = "value/"


def cache_key(settings: Settings, splits: Sequence[str] | None) -> str | None:
    """Return options, code and library versions as JSON, which with the content of a dump determine its records.

    None if the records cannot be cached: with spectra, which are too large, and with metrics of other packages, whose
    code may change.
    """
    if settings.spectra or entry_points(group=ENTRY_POINTS):
        return None
    return json.dumps({**settings.to_json(), "splits": splits and list(splits), **_code()}, sort_keys=True)


@dataclass(frozen=True)
class CachedRecords:
    """The records of a file, whether they came from the cache, and a warning if it cannot be written."""

    records: list[DetailedRecord]
    from_cache: bool = False
    warning: str | None = None


def cached_records(
    key: str | None, file: Path, content: Callable[[], str], compute: Callable[[], list[DetailedRecord]]
) -> CachedRecords | Busy:
    """Return the records of a file from the cache, or compute them and add them to it.

    Args:
        key: Result of `cache_key`; None to use no cache.
        file: A dump or a checkpoint.
        content: Returns the hash of everything in it that its records depend on.
        compute: Returns the records.

    Returns:
        The records, or `Busy` if another process computes them.
    """
    if key is None:
        return CachedRecords(compute())
    try:
        present = content()
        identity = sha256(json.dumps([key, present, file.name]).encode()).hexdigest()
        entry = CacheEntry(cached_file(RECORDS, f"{identity[:32]}.json"), key, present)
    except DataError as error:
        return CachedRecords(compute(), warning=f"records are not cached: {error}")
    if (records := entry.read()) is not None:
        return CachedRecords(records, from_cache=True)
    try:
        with claimed(entry.file) as claim:
            if isinstance(claim, Busy):
                return claim
            # Another process may have cached the records just before the claim.
            if (records := entry.read()) is not None:
                return CachedRecords(records, from_cache=True)
            records = compute()
            return CachedRecords(records, warning=entry.write(records))
    except UnclaimedError as error:
        return CachedRecords(compute(), warning=f"the cache of records could not be written: {error}")


@dataclass(frozen=True)
class CacheEntry:
    """The cached records of one file in the state of its present content.

    Attributes:
        file: The JSON file of the entry.
        key: Result of `cache_key`.
        content: Hash of the content that was analyzed.
    """

    file: Path
    key: str
    content: str

    @property
    def _influences(self) -> Path:
        """File of the influences of rows, beside the records."""
        return self.file.with_suffix(".npz")

    def read(self) -> list[DetailedRecord] | None:
        """Return the records; None if they are missing, damaged, or belong to other content or options."""
        try:
            require_regular(self.file)
            cached = json.loads(self.file.read_text(encoding="utf-8"))
            identity = (self.key, self.content, _hash(cached["records"]))
            if (cached["key"], cached["content"], cached["sha256"]) != identity:
                return None
            records = [_from_json(**values) for values in cached["records"]]
            if cached["influences_sha256"] is None:
                return records
            stored = self._influences.read_bytes()
            if sha256(stored).hexdigest() != cached["influences_sha256"]:
                return None
            influences = read_influences(stored, len(records))
            return [replace(record, influences=of) for record, of in zip(records, influences, strict=True)]
        except (CkptProbeError, OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, records: Sequence[DetailedRecord]) -> str | None:
        """Write the records; return a warning if that is impossible."""
        values = [
            {
                "record": detailed.record,
                "per_class": detailed.per_class,
                "portrait": None if detailed.portrait is None else asdict(detailed.portrait),
            }
            for detailed in records
        ]
        cached = {"key": self.key, "content": self.content, "sha256": _hash(values), "records": values}
        influences = bytes_of_influences([detailed.influences for detailed in records])
        cached["influences_sha256"] = None if influences is None else sha256(influences).hexdigest()
        try:
            if influences is not None:
                with replacing(self._influences, overwrite=True) as temporary:
                    temporary.write_bytes(influences)
            write_text(self.file, json.dumps(cached, allow_nan=False), overwrite=True)
        except CkptProbeError as error:
            return f"the cache of records could not be written: {error}"
        return None


def bytes_of_influences(of_records: Sequence[Influences | None]) -> bytes | None:
    """Return the influences of records as the bytes of an .npz file, or None if no record has any."""
    arrays: dict[str, np.ndarray] = {}
    for number, values in enumerate(of_records):
        if values is None:
            continue
        design = values.design
        known = {name: getattr(design, name) for name in ARRAYS if getattr(design, name) is not None}
        arrays |= {f"{number}/{name}": array.numpy() for name, array in known.items()}
        arrays |= {f"{number}/{name}": np.array(getattr(design, name)) for name in NUMBERS}
        arrays |= {f"{number}/{VALUE}{name}": values[name].numpy() for name in values}
    if not arrays:
        return None
    file = io.BytesIO()
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def read_influences(stored: bytes, records: int) -> list[Influences | None]:
    """Return the influences of a number of records from the bytes of an .npz file; None for a record without any.

    Raises:
        KeyError: If an array is missing.
        ValueError: If the file is damaged.
    """
    with np.load(io.BytesIO(stored), allow_pickle=False) as file:
        return [_influences_in(file, f"{number}/") for number in range(records)]


def _influences_in(file: np.lib.npyio.NpzFile, prefix: str) -> Influences | None:
    names = [name for name in file.files if name.startswith(prefix)]
    if not names:
        return None
    arrays = {name: torch.from_numpy(file[prefix + name]) for name in ARRAYS if prefix + name in names}
    design = Design(**arrays, samples=int(file[f"{prefix}samples"]), fixed=bool(file[f"{prefix}fixed"]))  # pyright: ignore[reportArgumentType]
    start = f"{prefix}{VALUE}"
    values = {name.removeprefix(start): torch.from_numpy(file[name]) for name in names if name.startswith(start)}
    return Influences(design, values)


def _from_json(record: dict[str, Any], per_class: list[dict[str, Any]], portrait: dict[str, Any] | None):
    return DetailedRecord(record, {}, per_class, None if portrait is None else Portrait(**portrait))


def _hash(records: list[dict[str, Any]]) -> str:
    """Return a checksum that detects damaged numbers."""
    return sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()


@functools.cache
def _code() -> dict[str, str]:
    """Return a hash of the package's code, and the versions of libraries that determine numbers."""
    return {"code": code_hash(), **{name: version(name) for name in LIBRARIES}}
