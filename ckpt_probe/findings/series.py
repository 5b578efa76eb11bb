"""Series of checkpoints: the values of every metric of a run by training step, from records or dumps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_probe.analysis.entries import BIAS, bias_is_reliable
from ckpt_probe.analysis.records import RECORD_FILES, RECORD_SUFFIXES, finite, grouped_by, metric_names
from ckpt_probe.analysis.series import read_series, records_of, without_failed
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.dumps import has_dumps
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.groups import Sources, find_runs, seed_names
from ckpt_probe.moments.selection import find_metrics
from ckpt_probe.progress import DeduplicatedProgress, Progress

SUBJECT = ("split", "layer", "class", "alpha")
"""Entries of a record by which its numbers belong to different series of one run."""

NOT_SUBJECT = frozenset(
    {"checkpoint", "missing", "audit.findings", "route", "route_reason", "class_name", "group", "seed"}
)
OF_A_METRIC = ("_bias", "_stderr", "_computing_error")
"""Endings of names of numbers that belong to a metric: its bias by sample size, and its errors."""

EXPECTED = "records (.jsonl, .csv or .parquet) or dumps"

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Series:
    """A metric of one run by training step.

    Attributes:
        group: Name of the group of runs; the name of the run itself where it belongs to none.
        seed: Name of the run in its group.
        subject: Split, layer and other entries that tell series of one metric apart, by name.
        metric: Name of the metric.
        steps: Training steps (n,) in ascending order.
        values: Values (n,), corrected for sample size if all records have a reliable bias.
        absent: Number of steps without a value.
        grain: Size of one sample in a metric that is a share of samples, such as accuracy; else 0.
    """

    group: str
    seed: str
    subject: Mapping[str, str]
    metric: str
    steps: np.ndarray
    values: np.ndarray
    absent: int = 0
    grain: float = 0.0

    @property
    def name(self) -> str:
        """Name of the metric with its subject, such as "test class.mir"."""
        return " ".join([*self.subject.values(), self.metric])


def read_runs(sources: Sources, groups: Sources, progress: Progress) -> dict[tuple[str, str], list[Record]]:
    """Read the records of every run by group and seed; a run outside a group is its own group.

    Args:
        sources: Runs, directories with a run per seed, and NAME=PATTERN, as `find_runs` takes them.
        groups: Further groups, by the name of the group.
        progress: Receives messages and a bar.
    """
    members = [
        run for named in (sources, groups) if named for run in find_runs(named, _is_run, EXPECTED, progress.message)
    ]
    runs: dict[tuple[str, str], list[Record]] = {}
    with progress.task("runs", len(members), "runs") as bar:
        for run in members:
            name = run.group or seed_names([run.path])[0]
            records = _records_of(Path(run.path), progress)
            if without := sum(finite(record.get("step")) is None for record in records):
                progress.message(f"{run.path}: {without} of {len(records)} records have no step and are left out")
            for record in records:
                group = record.get("group") or name
                seed = next((each for each in (record.get("seed"), run.seed) if each is not None), group)
                runs.setdefault((str(group), str(seed)), []).append(record)
            bar.advance()
    return runs


def series_of(
    records: Iterable[Record],
    *,
    metrics: Sequence[str] = (),
    splits: Sequence[str] = (),
    group: str = "",
    seed: str = "",
) -> list[Series]:
    """Return the series of a run, one for each subject and metric, ordered by subject, then by metric.

    Args:
        records: Records of the run.
        metrics: Names, labels or patterns of metrics, those that the run has; all if empty.
        splits: Splits; all if empty.
        group: Name of the group.
        seed: Name of the run.

    Raises:
        DataError: If no record has a step, or two records of one subject have the same step.
        UsageError: If no record is of a requested split.
    """
    stepped = [record for record in records if finite(record.get("step")) is not None]
    label = seed if seed == group or not group else f"{group}: {seed}"
    if not stepped:
        raise DataError(f"{label}: no record has a step; expected a number called step in each")
    if splits and not any(record.get("split") in splits for record in stepped):
        existing = sorted({str(record["split"]) for record in stepped if record.get("split") is not None})
        known = f"there are: {listed(existing)}" if existing else "no record has a split"
        raise UsageError(f"{label}: `splits={list(splits)!r}`: no such record; {known}")
    stepped = [record for record in stepped if not splits or record.get("split") in splits]
    existing = names_in(stepped)
    names = [name for name in find_metrics(metrics, existing) if name in existing] if metrics else existing
    result = []
    for subject, rows in _by_subject(stepped, label).items():
        rows = sorted(rows, key=lambda record: float(record["step"]))
        for name in names:
            values = _corrected(rows, name)
            kept_rows = [(row["step"], value) for row, value in zip(rows, values, strict=True) if value is not None]
            if kept_rows:
                steps, numbers = np.array(kept_rows, dtype=float).T
                absent, samples = len(rows) - len(steps), finite(rows[0].get("samples")) or 0
                counts = numbers * samples
                is_share = samples > 0 and bool(np.allclose(counts, counts.round(), rtol=0, atol=1e-6))
                grain = 1 / samples if is_share else 0.0
                result.append(Series(group, seed, dict(subject), name, steps, numbers, absent, grain))
    return result


def names_in(records: Iterable[Record]) -> list[str]:
    """Return the names of the metrics of records, without those of their errors."""
    return [name for name in metric_names(list(records)) if not name.endswith(OF_A_METRIC) and name != "seed"]


def _records_of(path: Path, progress: Progress) -> list[Record]:
    if has_dumps(path):
        readings = read_series(path, Settings(layers=False), cache=True, progress=_Bars(progress))
        return [reading.record for reading in without_failed(readings, progress)[0]]
    records: list[Record] = list(records_of(path))
    if not any("step" in record for record in records):
        names = listed(list(dict.fromkeys(name for record in records for name in record)))
        raise DataError(f"{path}: no column step; there are: {names}")
    return records


class _Bars(DeduplicatedProgress):
    """Bars of another progress without messages, such as those about the cache, which `analyze` has options for."""

    def message(self, text: str) -> None:
        """Drop the message."""


def _is_run(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix.lower() in RECORD_SUFFIXES or has_dumps(path)
    if has_dumps(path) or any((path / name).is_file() for name in RECORD_FILES):
        return True
    return sum(file.suffix == ".jsonl" for file in path.iterdir()) == 1 and not any(map(Path.is_dir, path.iterdir()))


def _by_subject(records: Sequence[Record], label: str) -> dict[tuple[tuple[str, str], ...], list[Record]]:
    """Divide records into those of one subject each; texts tell them apart where split, layer and class do not.

    Records of different metrics at one step, or equal ones, become one record.
    """
    texts = dict.fromkeys(name for record in records for name, value in record.items() if isinstance(value, str))
    further = [name for name in texts if name not in NOT_SUBJECT and name not in SUBJECT]
    for names in (SUBJECT, (*SUBJECT, *further)):
        divided = grouped_by(
            records, lambda each, names=names: tuple((n, str(each[n])) for n in names if each.get(n) is not None)
        )
        if all(len({float(row["step"]) for row in rows}) == len(rows) for rows in divided.values()):
            break
    return {subject: _merged(rows, label) for subject, rows in divided.items()}


def _merged(rows: Sequence[Record], label: str) -> list[Record]:
    """Return one record for each step, of all numbers of its records; raise DataError if two have other values."""
    by_step: dict[float, dict[str, Any]] = {}
    for row in rows:
        record = by_step.setdefault(step := float(row["step"]), {})
        values = {name: value for name, value in row.items() if value is not None}
        if any(finite(value) is not None and record.get(name, value) != value for name, value in values.items()):
            raise DataError(f"{label}: several records at step {step:g} of one split; keep one run in a file")
        record |= values
    return [*by_step.values()]


def _corrected(rows: Sequence[Record], name: str) -> list[float | None]:
    """Return the values of a metric less their biases if all biases are reliable: a mixture would jump."""
    pairs = [(finite(record.get(name)), finite(record.get(f"{name}{BIAS}"))) for record in rows]
    reliable = all(
        value is None or (bias is not None and bias_is_reliable(record, name))
        for record, (value, bias) in zip(rows, pairs, strict=True)
    )
    return [value - bias if reliable and value is not None and bias is not None else value for value, bias in pairs]
