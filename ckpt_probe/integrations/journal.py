"""records.jsonl: a line for each step and split of a run, whole lines only, and none twice however often it resumes."""

import json
import logging
import os
from pathlib import Path

from ckpt_probe.analysis import Record, read_records
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.files import write_text

Key = tuple[int, str]

LOG = logging.getLogger(__name__)


class Journal:
    """The records of one run in a file of JSON Lines, as `analyze --json` prints them."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._known: set[Key] | None = None
        self._own: set[Key] = set()

    def begin(self, step: int, *, overwrite: bool = False) -> None:
        """Get ready for training that goes on after `step` updates: what was recorded later is recorded again.

        Raises UsageError where training starts anew, at step 0, and the file has records already, unless `overwrite`.
        """
        if self.path.is_dir():
            raise UsageError(f"{self.path}: a directory, where the file of records is to be")
        found = self._records()
        # An evaluation before training is of this run.
        mine = [record for record in found if record["step"] <= step and (step > 0 or _key(record) in self._own)]
        if step == 0 and len(mine) < len(found) and not overwrite:
            raise UsageError(
                f"{self.path}: has records of another run; pass overwrite=True to replace them, resume that run, or "
                "choose another name"
            )
        if len(mine) < len(found):
            write_text(self.path, "".join(map(_line, mine)), overwrite=True)
        self._known = {_key(record) for record in mine}

    def append(self, record: Record) -> None:
        """Write one more line, at once; a step and split that the file has already is left as it is, and said."""
        if self._known is None:
            self._known = {_key(found) for found in self._records()}
        if _key(record) in self._known:
            where = f"step {record['step']}, split {record['split']}"
            LOG.warning("%s: %s is there already, and stays as it is", self.path, where)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = _line(record).encode("utf-8")
        try:
            with self.path.open("ab", buffering=0) as file:
                # One call: a process that is killed has written all of the line or nothing.
                if file.write(line) != len(line):
                    raise DataError(f"{self.path}: the disk took only part of a record; free some space")
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._known.add(_key(record))
        self._own.add(_key(record))

    def _mend(self) -> None:
        """Drop a last line that was cut off."""
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_text(self.path, whole, overwrite=True)

    def _records(self) -> list[Record]:
        if not self.path.exists():
            return []
        self._mend()
        records = list(read_records(self.path))
        for number, record in enumerate(records, 1):
            if not isinstance(record.get("step"), int):
                raise DataError(f"{self.path}: record {number} has no step; it is no file of this kind")
        return records


def _key(record: Record) -> Key:
    return record["step"], str(record.get("split"))


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"
