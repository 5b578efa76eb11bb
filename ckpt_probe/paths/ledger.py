"""The directory of evaluated points: the plan that they follow, their records so far, and what the whole gave."""

import json
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from ckpt_probe.addresses import without_credentials
from ckpt_probe.analysis import Record
from ckpt_probe.analysis.lines import number, read_lines
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.files import read_object, write_text

PLAN_FILE = "plan.json"
POINTS_FILE = "points.jsonl"
REQUEST = "request"
"""Entry of the plan's file that holds the call, which may be given in other words for the same plan."""
POSITIONS = {"path": ("alpha",), "plane": ("x", "y")}
"""What places a point, by kind."""
WHOLES: dict[str, dict[str, type | tuple[type, ...]]] = {
    "path": {"summary": list, "distance": (int, float), "length": (int, float)},
    "plane": {"marks": list, "summary": list, "axes": dict, "xs": list, "ys": list},
}
"""What the file of a finished one holds, by kind."""
DAMAGED = "--overwrite computes all of it again"
PAUSE = 20
"""Records are written again after so many times as long as the last writing took, which so never costs much."""


class Ledger:
    """plan.json and points.jsonl of a directory, and the file of its kind, path.json or plane.json, once finished."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.kind = kind
        self._due = 0.0

    @property
    def files(self) -> list[Path]:
        """All that it writes, the plan last: while anything is left, that says of which points."""
        return [self._whole(self.kind), self.path / POINTS_FILE, self.path / PLAN_FILE]

    @property
    def finished(self) -> bool:
        """Whether the whole is there."""
        return self._whole(self.kind).exists()

    @property
    def begun(self) -> bool:
        """Whether there are points."""
        return (self.path / POINTS_FILE).exists()

    def require_free(self, *, overwrite: bool, resume: bool) -> None:
        """Raise UsageError where what the directory holds may be neither replaced nor gone on with."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path}: a file; expected a directory for the {self.kind}")
        other = next((kind for kind in POSITIONS if kind != self.kind and self._whole(kind).exists()), None)
        if other is not None:
            raise UsageError(f"{self.path}: contains a {other}; choose another name")
        if self.finished and not overwrite and not resume:
            told = "--overwrite replaces it, --resume shows it, or choose another name"
            raise UsageError(f"{self.path}: contains a finished {self.kind}; {told}")

    def follow(self, plan: Record, *, begun: bool, request: Record | None = None) -> None:
        """Go on with what is there where anything was `begun`, else start with this plan, and keep the request.

        Raises UsageError where it was begun by another plan, naming what differs, or by one that is not known.
        """
        plan = without_credentials(plan)
        planned = (self.path / PLAN_FILE).exists()
        if begun and planned:
            self._require_same(plan)
        elif self.begun:
            raise UsageError(f"{self.path}: contains points of an unknown {self.kind}; --overwrite replaces them")
        else:
            content = plan if request is None else {**plan, REQUEST: request}
            write_text(self.path / PLAN_FILE, json.dumps(content, indent=2) + "\n", overwrite=True)

    def finish(self, found: Record) -> None:
        """Write what the whole gave."""
        text = json.dumps({"plan": self._plan(), **found}, indent=2, allow_nan=False) + "\n"
        write_text(self._whole(self.kind), text, overwrite=True)

    def found(self) -> Record:
        """What `finish` has kept. Raises DataError where the file cannot be read or is not one of ours."""
        file = self._whole(self.kind)
        found = _object(file, f"what a {self.kind} gave")
        for name, kind in WHOLES[self.kind].items():
            if not isinstance(found.get(name), kind):
                raise DataError(f"{file}: {name} is missing or damaged; {DAMAGED}")
        return found

    def points(self, splits: Collection[str] | None = None) -> list[Record]:
        """The records that an earlier call has left, of these splits or of any.

        Raises DataError, naming the line, where one is no point.
        """
        if not self.begun:
            return []
        file = self.path / POINTS_FILE
        try:
            records = read_lines(file)
            for line, record in enumerate(records, 1):
                self._require_point(record, f"{file}: record {line}", splits)
        except DataError as error:
            raise DataError(f"{error}; {DAMAGED}") from error
        return records

    def keep(self, records: Sequence[Record]) -> None:
        """Write the records so far."""
        started = time.monotonic()
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        write_text(self.path / POINTS_FILE, text, overwrite=True)
        now = time.monotonic()
        self._due = now + PAUSE * (now - started)

    def keep_in_time(self, records: Sequence[Record]) -> None:
        """Write the records so far, unless that was done a moment ago."""
        if time.monotonic() >= self._due:
            self.keep(records)

    def _whole(self, kind: str) -> Path:
        return self.path / f"{kind}.json"

    def _plan(self) -> Record:
        return _object(self.path / PLAN_FILE, f"the plan of a {self.kind}")

    def _require_point(self, record: Record, where: str, splits: Collection[str] | None) -> None:
        if any(number(record, name, where) is None for name in POSITIONS[self.kind]):
            raise DataError(f"{where}: no {' and '.join(POSITIONS[self.kind])}, which a point of a {self.kind} has")
        absent = [name for name in ("split", "loss", "accuracy") if name not in record]
        if absent:
            raise DataError(f"{where}: no {absent[0]}, which every point has")
        if splits is not None and record["split"] not in splits:
            raise DataError(f"{where}: split {record['split']!r}, where only {', '.join(splits)} is evaluated")
        for name in ("loss", "accuracy"):
            number(record, name, where)

    def _require_same(self, plan: Record) -> None:
        # As it would be read back: a tuple is a list there.
        earlier, plan = self._plan(), json.loads(json.dumps(plan))
        changed = [f"{key} {earlier.get(key)!r} / {plan[key]!r}" for key in plan if earlier.get(key) != plan[key]]
        if changed:
            told = f"(stored / now): {'; '.join(changed)}; --overwrite replaces them"
            raise UsageError(f"{self.path}: contains points of another {self.kind} {told}")


def _object(file: Path, what: str) -> Record:
    try:
        return read_object(file, what)
    except DataError as error:
        raise DataError(f"{error}; {DAMAGED}") from error
