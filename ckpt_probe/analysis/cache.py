"""Records kept beside their dumps, so that a series with one new dump costs the analysis of that one."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

from ckpt_probe.analysis.settings import ENTRY_POINTS, Settings
from ckpt_probe.errors import CkptProbeError
from ckpt_probe.files import code_hash, content_hash, write_text
from ckpt_probe.moments.portrait import Portrait
from ckpt_probe.moments.record import Reading
from ckpt_probe.remote import beside

FOLDER = ".ckpt-probe-cache"
LIBRARIES = ("h5py", "numpy", "scipy", "torch")
"""Libraries that read dumps and compute with their numbers."""


@dataclass(frozen=True)
class Cache:
    """What was asked, by which code; with a dump's content it decides the records."""

    asked: str

    @staticmethod
    def of(settings: Settings, splits: Sequence[str] | None) -> "Cache | None":
        """The cache for these options; None where records may depend on what a name does not tell.

        That is spectra, which are too large to be kept, and metrics of other packages, whose code may change.
        """
        if settings.spectra or entry_points(group=ENTRY_POINTS):
            return None
        asked = {**settings.to_json(), "splits": splits and list(splits), **_code()}
        return Cache(json.dumps(asked, sort_keys=True))

    def entry(self, dump: Path) -> "Entry":
        """What is kept of a dump, and the place where to keep it."""
        return self.entry_of(dump, content_hash(dump))

    def entry_of(self, file: Path, content: str) -> "Entry":
        """The same for any file, of which `content` is the hash of all that matters."""
        key = sha256(self.asked.encode()).hexdigest()[:12]
        return Entry(folder_of(file) / f"{file.name}.{key}.json", self.asked, content)


def folder_of(file: Path) -> Path:
    """The directory in which the records of a dump are kept."""
    return beside(file) / FOLDER


class Entry:
    """The records of one dump: `readings`, None where they are not at hand for just this content."""

    def __init__(self, file: Path, asked: str, content: str) -> None:
        self.file = file
        self._named = {"asked": asked, "content": content}
        self.readings = self.found()

    def found(self) -> list[Reading] | None:
        """What is kept now."""
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            if any(kept[name] != value for name, value in self._named.items()):
                return None
            if kept["sha256"] != _hash(kept["readings"]):
                return None
            return [_reading(one) for one in kept["readings"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            # Not there, damaged, or not ours, or from another time: computed anew and written over.
            return None

    def keep(self, readings: Sequence[Reading]) -> str | None:
        """Keep what was computed; what to say where that is impossible."""
        kept: list[dict[str, Any]] = [
            {
                "record": one.record,
                "per_class": one.per_class,
                "portrait": None if one.portrait is None else asdict(one.portrait),
            }
            for one in readings
        ]
        try:
            told = {**self._named, "sha256": _hash(kept), "readings": kept}
            write_text(self.file, json.dumps(told, allow_nan=False), overwrite=True)
        except CkptProbeError as error:
            return f"the cache of records could not be written: {error}"
        return None


def _reading(kept: dict[str, Any]) -> Reading:
    portrait = kept["portrait"]
    return Reading(kept["record"], {}, kept["per_class"], None if portrait is None else Portrait(**portrait))


def _hash(readings: list[dict[str, Any]]) -> str:
    """Of what is kept, so that a damaged number is computed anew."""
    return sha256(json.dumps(readings, sort_keys=True).encode()).hexdigest()


@cache
def _code() -> dict[str, str]:
    """Return everything but the options that decides a number: our modules, and the versions of libraries."""
    return {"code": code_hash(), **{name: version(name) for name in LIBRARIES}}
