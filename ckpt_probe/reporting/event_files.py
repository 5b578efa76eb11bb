"""Export of records to event files of TensorBoard: a run per condition and split, a scalar per metric and step."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ckpt_probe.analysis.entries import POSITION
from ckpt_probe.analysis.records import metric_names, number
from ckpt_probe.errors import DataError
from ckpt_probe.files import refuse_existing, replacing_directory
from ckpt_probe.moments.registry import metrics_in, values_at_collapse
from ckpt_probe.plugins import require_extra
from ckpt_probe.progress import NullProgress, Progress

Record = Mapping[str, Any]
Points = dict[tuple[str, int], float]
"""The values of one run by metric and step."""

AT_COLLAPSE = "at-collapse"
"""Name of the run with the values at neural collapse, which TensorBoard draws as a line in each chart."""


def write_event_files(
    series: Mapping[str, Sequence[Record]],
    directory: Path | str,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[int, list[str]]:
    """Write records into event files of TensorBoard below a directory, atomically.

    A run is named CONDITION/SPLIT, or SPLIT if there is one condition. Dots in the names of metrics become slashes
    (class/mir), by which TensorBoard groups its charts.

    Args:
        series: Records of each condition.
        directory: Directory to create.
        overwrite: Whether to replace an existing directory.
        progress: Progress to report to.

    Returns:
        The number of written values, and notes on omitted records.

    Raises:
        UsageError: If tensorboard is not installed, or the directory exists.
        DataError: If no record has a step, or a metric has two values at one step of one run.
    """
    directory = Path(directory)
    refuse_existing(directory, overwrite=overwrite)
    require_extra("tensorboard", "tensorboard")
    runs, notes = _runs(series)
    from torch.utils.tensorboard import SummaryWriter

    with (
        replacing_directory(directory, overwrite=overwrite) as temporary,
        (progress or NullProgress()).task("event files", sum(map(len, runs.values())), "values") as bar,
    ):
        for run, points in runs.items():
            with closing(SummaryWriter(temporary / run)) as writer:
                for (name, step), value in points.items():
                    writer.add_scalar(name.replace(".", "/"), value, step)
                    bar.advance()
    return sum(len(points) for run, points in runs.items() if not run.endswith(AT_COLLAPSE)), notes


def _runs(series: Mapping[str, Sequence[Record]]) -> tuple[dict[str, Points], list[str]]:
    runs: dict[str, Points] = {}
    notes = []
    for condition, records in series.items():
        prefix = [condition] if len(series) > 1 else []
        metrics = metric_names(records, errors=True)
        stepped = [record for record in records if number(record, "step", condition) is not None]
        if len(stepped) < len(records):
            notes.append(f"{condition}: {len(records) - len(stepped)} of {len(records)} records have no step, left out")
        absent = 0
        for record in stepped:
            run = _path([*prefix, *_run_parts(record)])
            for name in metrics:
                value = number(record, name, condition) if name in record else None
                absent += name in record and value is None
                if value is not None:
                    _put(runs.setdefault(run, {}), (name, int(record["step"])), value, run)
        if absent:
            notes.append(f"{condition}: {absent} values are missing")
        at_collapse = dict(_at_collapse(stepped))
        if at_collapse:
            runs[_path([*prefix, AT_COLLAPSE])] = at_collapse
    if not runs:
        raise DataError("no record has a step and a number: there is nothing to export")
    return runs, notes


def _run_parts(record: Record) -> list[str]:
    others = [name for name in POSITION if name not in {"checkpoint", "step", "split"} and record.get(name) is not None]
    split = record.get("split")
    return [*([] if split is None else [str(split)]), *(f"{name}-{record[name]}" for name in others)]


def _put(points: Points, key: tuple[str, int], value: float, run: str) -> None:
    if key in points:
        name, step = key
        raise DataError(f"{run}: {name} has several values at step {step}; name the files apart (NAME=FILE)")
    points[key] = value


def _at_collapse(records: Sequence[Record]) -> Iterator[tuple[tuple[str, int], float]]:
    for metric in metrics_in(records):
        for record in records:
            for value in values_at_collapse(metric, [record]):
                if value is not None:
                    yield (metric.name, int(record["step"])), value


def _path(parts: Sequence[str]) -> str:
    # Names come from untrusted files and must not lead out of the directory.
    return "/".join(re.sub(r"[^\w=+.-]", "_", part).lstrip(".") or "_" for part in parts) or "records"
