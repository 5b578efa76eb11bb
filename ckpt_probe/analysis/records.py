"""Read records from JSON Lines, CSV and Parquet, and keep records as a sequence that notebooks show as a table."""

import csv
import json
import math
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar, overload

from ckpt_probe.analysis.entries import (
    COUNTS,
    COUNTS_IF_ANY,
    FIT_RANGE,
    GROUP_AND_SEED,
    POSITION,
    REFERENCES,
    Record,
    is_uncertainty,
)
from ckpt_probe.budget import Budget
from ckpt_probe.dumps import PENULTIMATE
from ckpt_probe.errors import DataError
from ckpt_probe.files import require_regular
from ckpt_probe.keywords import as_paths
from ckpt_probe.moments.registry import Metric
from ckpt_probe.moments.selection import metrics_in, values_at_collapse
from ckpt_probe.notebook import sparkline, table, text

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)

RECORD_FILES = ("metrics.jsonl", "records.jsonl", "barriers.jsonl")
"""Usual files of records in a directory: of a run, of a probe inside training, of a series of paths."""

RECORD_SUFFIXES = frozenset({".jsonl", ".csv", ".parquet"})
"""Suffixes of files of records."""
TEXTS = frozenset({"checkpoint", "split", "layer", "group"})
"""Names whose cells of a CSV file are texts even if they look like numbers."""

NOT_METRICS = frozenset({*POSITION, *COUNTS, *COUNTS_IF_ANY, *FIT_RANGE, *REFERENCES, "epoch", "seconds", "to_step"})
"""Names of numbers in a record that are no metrics."""

MOST_ROWS, LAST = 12, 1000


class Records(Sequence[Record]):
    """A sequence of records that are computed or read on first access, and then stay in memory.

    Iterating yields each record as soon as it is available; the length and negative indices need all of them. Equal to
    any list of equal records. An error of the source is raised again on every later access beyond it. Notebooks show
    one row per metric.

    Args:
        records: Source of the records.
    """

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, records: Iterable[Record]) -> None:
        self._records: list[Record] = []
        self._source = iter(records)
        self._error: BaseException | None = None
        if isinstance(self._source, Generator):
            # At the end of the process its handlers of errors would find no names any more.
            weakref.finalize(self, self._source.close)

    def __iter__(self) -> Iterator[Record]:
        index = 0
        while index < len(self._records) or self._read_next():
            yield self._records[index]
            index += 1

    def __len__(self) -> int:
        return len(self._all())

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | slice) -> "Record | Records":
        if isinstance(index, slice):
            return Records(self._all()[index])
        while index >= len(self._records) and self._read_next():
            pass
        return (self._records if index >= 0 else self._all())[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Records | list):
            return NotImplemented
        return self._all() == list(other)

    def __repr__(self) -> str:
        return f"<{len(self._records)} records read so far; list() reads and shows all of them>"

    def _repr_html_(self) -> str:
        records = self._all()
        splits = list(dict.fromkeys(record.get("split") for record in records))
        metrics = {metric.name: metric for metric in metrics_in(records)}
        priorities = {name: metric.priority for name, metric in metrics.items()}
        names = sorted(metric_names(records), key=lambda name: priorities.get(name, LAST))
        header = ["metric", *(f"{split or ''} {part}".strip() for split in splits for part in ("", "first", "last"))]
        rows = [_row(name, metrics.get(name), records, splits) for name in names[:MOST_ROWS]]
        steps = [step for record in records if (step := finite(record.get("step"))) is not None]
        caption = f"{len(records)} records" + (f", step {min(steps):g} to {max(steps):g}" if steps else "")
        if len(names) > MOST_ROWS:
            caption += f"; {len(names) - MOST_ROWS} more metrics in to_dataframe(records)"
        return table(caption, [*header, "at collapse"], rows)

    def _all(self) -> list[Record]:
        while self._read_next():
            pass
        return self._records

    def _read_next(self) -> bool:
        """Read the next record from the source; return whether there was another."""
        if isinstance(self._error, Exception):
            raise self._error
        if self._error is not None:
            raise DataError("interrupted before all records were read; read them again")
        try:
            self._records.append(next(self._source))
        except StopIteration:
            return False
        except BaseException as error:
            # A generator that has failed only ends from then on, as if all records had been read.
            self._error = error
            raise
        return True


def read_records(
    source: Path | str | Iterable[Path | str] | Mapping[str, Path | str | Iterable[Path | str]],
) -> Records:
    """Read records from JSON Lines, CSV or Parquet, such as those of `analyze`, of paths, or the metrics of a run.

    Args:
        source: File of records: .csv with a header, .parquet, or else JSON Lines, where blank lines are skipped;
            directory of JSON Lines, of which metrics.jsonl, records.jsonl or barriers.jsonl is read alone; several of
            these; or a mapping from names of groups to these.

    Returns:
        The records in the order of the files, with `group` first if they are from a mapping.

    Raises:
        DataError: If a file cannot be read, or a line is not a record; the message names file and line.
    """
    if isinstance(source, Mapping):
        return Records(
            [
                {"group": name} | record | {"group": name}
                for name, part in source.items()
                for record in read_records(part)
            ]
        )
    files = [file for path in as_paths(source) for file in record_files(Path(path))]
    return Records([record for file in files for record in read_lines(file)])


def record_files(path: Path) -> list[Path]:
    """Return the files of records in a directory, the usual one alone if there is one; or the path of a file itself.

    Raises:
        DataError: If the directory has none.
    """
    if not path.is_dir():
        return [path]
    usual = [path / name for name in RECORD_FILES if (path / name).is_file()]
    files = usual[:1] or [file for file in sorted(path.glob("*.jsonl")) if not file.name.startswith(".")]
    if not files:
        raise DataError(f"{path}: no file of records (.jsonl) in this directory")
    return files


def read_lines(path: Path | str) -> list[Record]:
    """Read the records of a file into a list; see `read_records`."""
    records = _read_lines(Path(path))
    for number, record in enumerate(records, 1):
        for name in {*POSITION, *COUNTS} & record.keys():
            value, count = record[name], name in COUNTS
            if isinstance(value, list | dict) or (count and value is not None and finite(value) is None):
                expected = "a number" if count else "a number or a text"
                raise DataError(f"{path}: record {number}: {name} is {repr(value)[:100]}, expected {expected}")
    return records


def _read_lines(path: Path) -> list[Record]:
    require_regular(path)
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    if path.suffix.lower() == ".parquet":
        from ckpt_probe.data.tables import read_parquet  # torch, which most records do not need

        rows = read_parquet(path, Budget(path, path.stat().st_size)).to_pylist()
        return [{name: None if value != value else value for name, value in row.items()} for row in rows]
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # also a class name may contain U+2028
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file; expected JSON Lines (one record per line)") from error
    return [_parse(line, f"{path}: line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def grouped_by(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Return the items by their key, both in the order of appearance."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def by_run(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str | None, str | None], list[Any]]:
    """Return the records of each group and seed, None for records without them."""
    runs: dict[tuple[str | None, str | None], list[Any]] = {}
    for record in records:
        group, seed = (None if record.get(name) is None else str(record[name]) for name in GROUP_AND_SEED)
        runs.setdefault((group, seed), []).append(record)
    return runs


def of_penultimate(records: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return the records without those of layers before the penultimate one, which belong to no curve of a run."""
    return [record for record in records if record.get("layer") in (None, PENULTIMATE)]


def metric_names(records: Iterable[Mapping[str, Any]], *, errors: bool = False) -> list[str]:
    """Return the names of metrics with a number in at least one record, in order of appearance.

    Args:
        records: The records.
        errors: Whether to include the names of their standard errors and biases.
    """
    names = dict.fromkeys(name for record in records for name, value in record.items() if _is_number(value))
    return [name for name in names if name not in NOT_METRICS and (errors or not is_uncertainty(name, names))]


def number(record: Mapping[str, Any], name: str, source: str) -> float | None:
    """Return a number of a record, or None if it is null or absent.

    Args:
        record: The record.
        name: Name of the number.
        source: Origin of the record, which the error message begins with.

    Raises:
        DataError: If the value is not a finite number.
    """
    value = record.get(name)
    if value is None:
        return None
    if (known := finite(value)) is None:
        raise DataError(f"{source}: {name} is {value!r}, expected a number")
    return known


def _parse(line: str, source: str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source} is not JSON ({error}); expected JSON Lines, one record per line") from error
    if not isinstance(record, dict):
        raise DataError(f'{source} is not a record: expected a JSON object such as {{"step": 880, "split": "test"}}')
    return record


def _read_csv(path: Path) -> list[Record]:
    """Read a CSV file with a header, in which a column `step` may have any case; empty cells are missing values."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            names = ["step" if name.lower() == "step" else name for name in names]
            reader.fieldnames = names
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from error
    if not rows:
        raise DataError(f"{path}: {'a header, but no row' if names else 'is empty'}")
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise DataError(f"{path}: two columns are called {twice}; rename one")
    records = []
    for line, row in rows:
        record = {name: _cell(name, text) for name, text in row.items() if isinstance(text, str | None)}
        if len(record) < len(row):
            raise DataError(f"{path}: line {line} has more cells than the header has columns ({len(names)})")
        if isinstance(record.get("step"), str):
            raise DataError(f"{path}: line {line}: step {row['step']!r}, expected a number")
        records.append(record)
    return records


def _cell(name: str, text: str | None) -> Any:
    if text is None or not text.strip():
        return None
    if name in TEXTS:
        return text
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if value == value else None
    return text


def _row(name: str, metric: Metric | None, records: Sequence[Record], splits: Sequence[Any]) -> list[str]:
    """Return the cells of a metric: its label, for each split a line with first and last value, value at collapse."""
    label = f"{metric.label} ({name})" if metric and metric.label != name else name
    cells = [text(f"{label}, {metric.unit}" if metric and metric.unit else label)]
    for split in splits:
        values = [finite(record.get(name)) for record in records if record.get("split") == split]
        first, last = (_short(values[index] if values else None) for index in (0, -1))
        cells += [sparkline(values, f"{name} {split or ''}: {first} to {last}") if len(values) > 1 else ""]
        cells += [text(first), text(last)]
    references = [] if metric is None else values_at_collapse(metric, records)
    common = references[0] if len(references) == 1 else None
    return [*cells, "" if common is None else text(_short(common))]


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def finite(value: Any) -> float | None:
    """Return a finite number as a float; None for anything else, also for a truth value."""
    try:
        return float(value) if _is_number(value) and math.isfinite(value) else None
    except OverflowError:  # an integer beyond the range of floats
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)  # also numbers of numpy
