"""Records cached in the user's own directory: a series with one new dump costs the analysis of that dump alone."""

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

from ckpt_probe.analysis.influences import bytes_of_influences, read_influences
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.errors import CkptProbeError
from ckpt_probe.files import code_hash, replacing, write_text
from ckpt_probe.moments import DetailedRecord
from ckpt_probe.moments.portrait import Portrait
from ckpt_probe.moments.registry import ENTRY_POINTS
from ckpt_probe.user_cache import private_cache

RECORDS = "records"
"""Subdirectory of the cache."""
LIBRARIES = ("h5py", "numpy", "scipy", "torch")
"""Libraries that read dumps and compute with their numbers."""


@dataclass(frozen=True)
class Cache:
    """The cached records for one set of options.

    Attributes:
        key: Options, code and library versions as JSON; with the content of a dump, they determine its records.
    """

    key: str

    @staticmethod
    def of(settings: Settings, splits: Sequence[str] | None) -> "Cache | None":
        """Return the cache for these options; None if the records cannot be cached.

        That is the case for spectra, which are too large, and with metrics of other packages, whose code may change.
        """
        if settings.spectra or entry_points(group=ENTRY_POINTS):
            return None
        key = {**settings.to_json(), "splits": splits and list(splits), **_code()}
        return Cache(json.dumps(key, sort_keys=True))

    def entry(self, file: Path, content: str) -> "CacheEntry":
        """Return the entry of a file.

        Args:
            file: A dump or a checkpoint.
            content: Hash of everything in it that its records depend on.

        Raises:
            DataError: If the cache cannot be written, or others may use it.
        """
        identity = json.dumps([self.key, content, file.name])
        name = f"{sha256(identity.encode()).hexdigest()[:32]}.json"
        return CacheEntry(private_cache(RECORDS) / name, self.key, content)


@dataclass(frozen=True)
class CacheEntry:
    """The cached records of one file in the state of its present content.

    Attributes:
        file: The JSON file of the entry.
        key: Key of the `Cache`.
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
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
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


def _from_json(record: dict[str, Any], per_class: list[dict[str, Any]], portrait: dict[str, Any] | None):
    return DetailedRecord(record, {}, per_class, None if portrait is None else Portrait(**portrait))


def _hash(records: list[dict[str, Any]]) -> str:
    """Return a checksum that detects damaged numbers."""
    return sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()


@functools.cache
def _code() -> dict[str, str]:
    """Return a hash of the package's code, and the versions of libraries that determine numbers."""
    return {"code": code_hash(), **{name: version(name) for name in LIBRARIES}}
