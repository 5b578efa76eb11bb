"""The checkpoints of a run that is still writing them, each once it is whole."""

from pathlib import Path

from ckpt_probe.checkpoints.folders import DISTRIBUTED, INDICES
from ckpt_probe.checkpoints.series import member_of, places_in
from ckpt_probe.errors import DataError
from ckpt_probe.files import Stamp, stamp_of
from ckpt_probe.series import Member, in_order, named_step


class Arrivals:
    """Looks at a directory again and again, and tells of each checkpoint once.

    A checkpoint is opened only when no file of it has changed between two looks; it is whole when its header then
    opens. One whose name has no step (`last.ckpt`) is left out, as a run may write it anew at any time.
    """

    def __init__(self, path: Path | str, *, state_key: str | None = None, base: Path | str | None = None) -> None:
        self._path = Path(path)
        self._state_key, self._base = state_key, base
        self._told: set[Path] = set()
        self._seen: dict[Path, Stamp] = {}
        self._refused: dict[Path, Stamp] = {}
        self.left_out: dict[str, str] = {}
        """Name of each checkpoint that was not told of so far → why."""

    @property
    def settled(self) -> bool:
        """Whether nothing that was there at the last look is still to come."""
        return self._seen.keys() <= self._told | self._refused.keys()

    def look(self) -> list[Member]:
        """What has become whole since the last look, in the order of steps."""
        try:
            places = places_in(self._path) if self._path.is_dir() else []
        except DataError as error:
            # Of shards, the index comes last.
            self.left_out[self._path.name] = str(error)
            return []
        self.left_out.pop(self._path.name, None)
        before, self._seen = self._seen, {}
        found = []
        for file, name in places:
            if file in self._told:
                continue
            if named_step(name) is None:
                self.left_out[name] = "its name has no step; extract without --follow takes it when the run is over"
                continue
            stamp = stamp_of(_whole(file, name))
            self._seen[file] = stamp
            if before.get(file) == stamp and self._refused.get(file) != stamp:
                found += self._opened(file, name, stamp)
        return in_order(found)

    def _opened(self, file: Path, name: str, stamp: Stamp) -> list[Member]:
        try:
            member = member_of(file, name, self._state_key, self._base)
        except DataError as error:
            self._refused[file] = stamp
            self.left_out[name] = str(error)
            return []
        self._told.add(file)
        self.left_out.pop(name, None)
        return [member]


def _whole(file: Path, name: str) -> Path:
    """What has to be whole: a directory where the checkpoint is more than its file, else the file."""
    several = file.name == DISTRIBUTED or file.name.endswith(INDICES) or file.parent.name == name
    return file.parent if several else file
