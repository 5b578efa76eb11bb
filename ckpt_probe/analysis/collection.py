"""Records in their order: read as they are asked for, kept, and shown as a small table in a notebook."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from ckpt_probe.analysis.entries import Entry, Record, entries_in, references_of
from ckpt_probe.analysis.lines import metric_names, read_lines
from ckpt_probe.errors import DataError
from ckpt_probe.notebook import sparkline, table, text

MOST_ROWS, LAST = 12, 1000


class Records(Sequence[Record]):
    """A sequence of records (mappings of names to values) that are computed or read when they are first asked for.

    Iterating gives each as soon as it is there, and the same ones again the next time; length and places from the end
    need all of them. Equal to any list of the same records. In a notebook it shows a line for each metric. An error on
    the way is raised, and again whenever somebody comes to that place.
    """

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, records: Iterable[Record]) -> None:
        self._held: list[Record] = []
        self._coming = iter(records)
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[Record]:
        place = 0
        while place < len(self._held) or self._drawn():
            yield self._held[place]
            place += 1

    def __len__(self) -> int:
        return len(self._all())

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | slice) -> "Record | Records":
        if isinstance(index, slice):
            return Records(self._all()[index])
        while index >= len(self._held) and self._drawn():
            pass
        return (self._held if index >= 0 else self._all())[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Records | list):
            return NotImplemented
        return self._all() == list(other)

    def __repr__(self) -> str:
        return f"<{len(self._held)} records read so far; list() reads and shows all of them>"

    def _repr_html_(self) -> str:
        records = self._all()
        splits = list(dict.fromkeys(record.get("split") for record in records))
        names = _metrics(records)
        known = {entry.name: entry for entry in entries_in(records)}
        header = ["metric", *(f"{split or ''} {what}".strip() for split in splits for what in ("", "first", "last"))]
        rows = [_row(name, known.get(name), records, splits) for name in names[:MOST_ROWS]]
        more = f"; {len(names) - MOST_ROWS} more metrics in to_dataframe(records)" if len(names) > MOST_ROWS else ""
        return table(f"{_told(records)}{more}", [*header, "at collapse"], rows)

    def _all(self) -> list[Record]:
        while self._drawn():
            pass
        return self._held

    def _drawn(self) -> bool:
        """Take the next record from where they come; whether there was one."""
        if isinstance(self._error, Exception):
            raise self._error
        if self._error is not None:
            raise DataError("interrupted before all records were read; read them again")
        try:
            self._held.append(next(self._coming))
        except StopIteration:
            return False
        except BaseException as error:
            # What comes from an iterator that has failed ends there, and would pass for all there is.
            self._error = error
            raise
        return True


def read_records(path: Path | str) -> Records:
    """The records of a file of JSON Lines: those of `analyze`, of paths, of a run's metrics; blank lines are none.

    Raises DataError, naming file and line, where it cannot be read or a line is no JSON object.
    """
    return Records(read_lines(path))


def _metrics(records: Sequence[Record]) -> list[str]:
    """Names of numbers, those that matter most first."""
    priority = {entry.name: entry.priority for entry in entries_in(records)}
    return sorted(metric_names(records), key=lambda name: priority.get(name, LAST))


def _row(name: str, entry: Entry | None, records: Sequence[Record], splits: Sequence[Any]) -> list[str]:
    label = f"{entry.label} ({name})" if entry and entry.label != name else name
    cells = [text(f"{label}, {entry.unit}" if entry and entry.unit else label)]
    for split in splits:
        values = [_number(record.get(name)) for record in records if record.get("split") == split]
        first, last = (_shown(values[place] if values else None) for place in (0, -1))
        cells += [sparkline(values, f"{name} {split or ''}: {first} to {last}") if len(values) > 1 else ""]
        cells += [text(first), text(last)]
    return [*cells, text(_reference(entry, records))]


def _reference(entry: Entry | None, records: Sequence[Record]) -> str:
    values = [] if entry is None else references_of(entry, records)
    return f"{values[0]:.4g}" if len(values) == 1 and values[0] is not None else ""


def _told(records: Sequence[Record]) -> str:
    steps = [step for record in records if (step := _number(record.get("step"))) is not None]
    span = f", step {min(steps):g} to {max(steps):g}" if steps else ""
    return f"{len(records)} records{span}"


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
