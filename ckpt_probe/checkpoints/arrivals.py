"""Find new complete checkpoints of a run that is still training."""

from pathlib import Path

from ckpt_probe.checkpoints.folders import DISTRIBUTED, INDICES
from ckpt_probe.checkpoints.series import checkpoint_files, member_of
from ckpt_probe.errors import DataError
from ckpt_probe.files import Stamp, stamp_of
from ckpt_probe.series import Member, in_order, named_step


class Arrivals:
    """A directory that is searched repeatedly; each checkpoint is returned once.

    A checkpoint is opened if none of its files has changed between two searches, and is complete if it can be opened.
    A checkpoint whose name has no step (`last.ckpt`) is left out, since the run may replace it at any time.

    Args:
        path: Directory of the run.
        state_key: As in `open_checkpoint`.
        base: As in `open_checkpoint`.
    """

    def __init__(self, path: Path | str, *, state_key: str | None = None, base: Path | str | None = None) -> None:
        self._path = Path(path)
        self._state_key, self._base = state_key, base
        self._returned: set[Path] = set()
        self._seen: dict[Path, Stamp] = {}
        self._refused: dict[Path, Stamp] = {}
        self.left_out: dict[str, str] = {}
        """Name of each checkpoint that was not returned so far → reason."""

    @property
    def settled(self) -> bool:
        """Whether every checkpoint of the last search was returned or refused."""
        return self._seen.keys() <= self._returned | self._refused.keys()

    def look(self) -> list[Member]:
        """Return the checkpoints that are complete since the last search, ordered by step."""
        try:
            checkpoints = checkpoint_files(self._path) if self._path.is_dir() else []
        except DataError as error:
            # The index of shards is written last.
            self.left_out[self._path.name] = str(error)
            return []
        self.left_out.pop(self._path.name, None)
        before, self._seen = self._seen, {}
        members = []
        for file, name in checkpoints:
            if file in self._returned:
                continue
            if named_step(name) is None:
                self.left_out[name] = "its name has no step; extract it without following when the run is over"
                continue
            stamp = stamp_of(_all_files(file, name))
            self._seen[file] = stamp
            if before.get(file) == stamp and self._refused.get(file) != stamp:
                members += self._opened(file, name, stamp)
        return in_order(members)

    def _opened(self, file: Path, name: str, stamp: Stamp) -> list[Member]:
        try:
            member = member_of(file, name, self._state_key, self._base)
        except DataError as error:
            self._refused[file] = stamp
            self.left_out[name] = str(error)
            return []
        self._returned.add(file)
        self.left_out.pop(name, None)
        return [member]


def _all_files(file: Path, name: str) -> Path:
    """Return the directory of a checkpoint with several files, else its file."""
    several = file.name == DISTRIBUTED or file.name.endswith(INDICES) or file.parent.name == name
    return file.parent if several else file
