"""Barriers as a function of the training step: between two runs at equal steps, or between neighbours within one."""

import json
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ckpt_probe.analysis import Record
from ckpt_probe.checkpoints import open_series
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.files import write_text
from ckpt_probe.paths.evaluate import evaluate_path
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.scheduling import Busy, Workers, claimed, in_turn, results
from ckpt_probe.series import Member

BARRIERS_FILE = "barriers.jsonl"


def evaluate_series(
    a: Path | str,
    b: Path | str | None,
    out: Path | str,
    *,
    overwrite: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[Record]:
    """Compute barriers of every pair of checkpoints, by training step.

    With b, pairs are the checkpoints of both runs at equal steps (instability analysis, Frankle et al. 2020); without,
    neighbours within a. Each path has a directory below `out`, and the barriers are in `out`/barriers.jsonl. Another
    call computes missing pairs and reads finished ones; two calls at the same time share the pairs.

    Args:
        a: First run.
        b: Second run; None for neighbours within a.
        out: Directory of the results.
        overwrite: Replace earlier results.
        workers: Number of processes, each of which evaluates one pair at a time.
        scheduler: Address of a Dask cluster that evaluates the pairs instead.
        progress: Receives messages and bars.
        **options: Those of `evaluate_path`.

    Returns:
        One record for each pair and split, in the order of their steps.

    Raises:
        UsageError: If no two steps are equal, or a has only one checkpoint.
        DataError: As `evaluate_path`, and if a run has a step twice.
    """
    progress, directory = progress or NullProgress(), Path(out)
    options |= {"overwrite": overwrite, "resume": options.get("resume", False) or not overwrite}
    named = {name: options.get(name) for name in ("state_key", "base")}
    pairs, alone = _pairs(a, b, named)
    names = [first.name if b is not None else f"{first.name}--{second.name}" for first, second in pairs]
    staff, records = Workers(workers, scheduler), list[Record]()
    work = partial(_summary, options=options, progress=progress if staff.alone else NullProgress())
    items = [(first.path, second.path, directory / name) for (first, second), name in zip(pairs, names, strict=True)]
    tasks = results(work, items, names=names, workers=staff, say=progress.message)
    with progress.task("pairs", len(pairs), "pairs") as bar, closing(tasks):
        for (first, second), summary in zip(pairs, in_turn(tasks), strict=True):
            steps = {"step": first.step, **({"to_step": second.step} if b is None else {})}
            records += [{**steps, **record} for record in summary]
            bar.advance()
    write_text(directory / BARRIERS_FILE, "".join(json.dumps(record) + "\n" for record in records), overwrite=True)
    if alone:
        progress.message(f"{alone} checkpoints have no counterpart at the same step and were left out")
    return records


def _summary(pair: tuple[Path, Path, Path], *, options: dict[str, Any], progress: Progress) -> list[Record] | Busy:
    """Compute the barriers of (a, b, directory of the path); return `Busy` if another process evaluates the pair."""
    a, b, directory = pair
    with claimed(directory.with_name(f"{directory.name}.pair")) as claim:
        if isinstance(claim, Busy):
            return claim
        return evaluate_path(a, b, directory, progress=progress, **options).summary


def _pairs(a: Path | str, b: Path | str | None, named: dict[str, Any]) -> tuple[Sequence[tuple[Member, Member]], int]:
    first = open_series(a, **named)
    if b is None:
        if len(first) < 2:
            raise UsageError(f"{a}: only one checkpoint; --consecutive needs at least two")
        return list(pairwise(first)), 0
    second = open_series(b, **named)
    by_step = {member.step: member for member in second if member.step is not None}
    if len(by_step) < len(second) or len({member.step for member in first}) < len(first):
        raise DataError(f"{a}, {b}: two checkpoints of one run have the same step, or one has no step")
    pairs = [(member, by_step[member.step]) for member in first if member.step in by_step]
    if not pairs:
        raise UsageError(f"{a}, {b}: the runs have no checkpoints at the same step")
    return pairs, len(first) + len(second) - 2 * len(pairs)
