"""Barriers as a function of the training step: between two runs at equal steps, or between neighbours within one."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ckpt_probe.analysis import Record
from ckpt_probe.checkpoints import open_series
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import Setup
from ckpt_probe.files import write_text
from ckpt_probe.paths.evaluate import evaluate_path
from ckpt_probe.paths.options import SAMPLES, PathOptions
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.remote import resolve
from ckpt_probe.scheduling import Busy, Workers, claimed, in_turn, results
from ckpt_probe.series import Member

BARRIERS_FILE = "barriers.jsonl"
PATH_KEYWORDS = frozenset(field.name for kind in (Setup, PathOptions) for field in fields(kind))


def barriers(
    a: Path | str,
    b: Path | str | None = None,
    *,
    out: Path | str,
    path: str = "linear",
    points: int | None = 11,
    span: tuple[float, float] = (0.0, 1.0),
    batchnorm: str = "recompute",
    batchnorm_samples: int = SAMPLES,
    align: str | None = None,
    align_spec: Path | str | None = None,
    align_samples: int = 1024,
    curve_epochs: float = 20.0,
    curve_learning_rate: float | None = None,
    midpoint: Path | str | None = None,
    keep_dumps: bool = False,
    errors: bool = False,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    data: str | None = None,
    data_arguments: Mapping[str, Any] | None = None,
    classifier: str | None = None,
    state_key: str | None = None,
    base: Path | str | None = None,
    splits: str | Sequence[str] | None = None,
    batch_size: int = 256,
    device: str = "auto",
    data_workers: int | None = None,
    overwrite: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """Compute barriers of every pair of checkpoints, by training step.

    With b, pairs are the checkpoints of both runs at equal steps (instability analysis, Frankle et al. 2020); without,
    neighbours within a. Each path has a directory below `out`, and the barriers are in `out`/barriers.jsonl. Another
    call computes missing pairs and reads finished ones; two calls at the same time share the pairs.

    Args:
        a: First run.
        b: Second run; None for neighbours within a.
        out: Directory of the results.
        path: "linear", "slerp", or a curve over a trained midpoint, "bezier" or "polychain".
        points: Number of positions, evenly spaced over `span`, and always 0 and 1; None to add positions where the
            curves of loss and error bend until their barriers are known to 1 %.
        span: First and last position.
        batchnorm: "recompute" to estimate running statistics at each position between or beyond the ends,
            "interpolate" to interpolate them.
        batchnorm_samples: Number of training samples for the estimates.
        align: Method that first puts b's hidden channels in a's order: "permutation" by weights, "activations" by the
            correlation of activations; None for none.
        align_spec: File with the groups of channels for "permutation"; None to derive them from the model.
        align_samples: Number of training samples for "activations".
        curve_epochs: Number of passes over the training data to train the midpoint.
        curve_learning_rate: Learning rate of that training; None for that of a's own training.
        midpoint: File with a midpoint trained before.
        keep_dumps: Whether to write a dump of every position.
        errors: Whether to add standard errors and biases to the record of every position, and errors to the barriers.
        model: Name of the model; that in the checkpoint's metadata if None.
        model_arguments: Arguments of the model, which replace those in the metadata.
        data: Name of the data; that in the checkpoint's metadata if None.
        data_arguments: Arguments of the data, which replace those in the metadata.
        classifier: Name of the last linear layer; found by running the model if None.
        state_key: Key of the weights in a pickled checkpoint.
        base: Checkpoint onto which an adapter is merged.
        splits: Names of splits; all if None.
        batch_size: Number of samples per forward pass.
        device: "auto", "cpu", "cuda[:n]" or "mps".
        data_workers: Number of processes that read images, which does not change the results; chosen by the number of
            free cores if None.
        overwrite: Replace earlier results.
        workers: Number of processes, each of which evaluates one pair at a time.
        scheduler: Address of a Dask cluster that evaluates the pairs instead.
        progress: Receives messages and bars.

    Returns:
        One record for each pair and split, in the order of their steps. Pairs that cannot be evaluated, such as those
        with a checkpoint of NaN, are left out, with a message.

    Raises:
        UsageError: If no two steps are equal, or a has only one checkpoint.
        DataError: As `evaluate_path` if no pair can be evaluated, and if a run has a step twice.
    """
    options = {name: value for name, value in locals().items() if name in PATH_KEYWORDS}
    options |= {"overwrite": overwrite, "resume": not overwrite}
    progress, directory = progress or NullProgress(), Path(out)
    pairs, alone = _pairs(a, b, {"state_key": state_key, "base": resolve(base)})
    names = [first.name if b is not None else f"{first.name}--{second.name}" for first, second in pairs]
    staff, records, failed = Workers(workers, scheduler), list[Record](), dict[str, DataError]()
    work = partial(_summary, options=options, progress=progress if staff.alone else NullProgress())
    items = [(first.path, second.path, directory / name) for (first, second), name in zip(pairs, names, strict=True)]
    tasks = results(work, items, names=names, workers=staff, say=progress.message)
    with progress.task("pairs", len(pairs), "pairs") as bar, closing(tasks):
        for (first, second), name, summary in zip(pairs, names, in_turn(tasks), strict=True):
            bar.advance()
            if isinstance(summary, DataError):
                failed[name] = summary
                continue
            steps = {"step": first.step, **({"to_step": second.step} if b is None else {})}
            records += [{**steps, **record} for record in summary]
    if len(failed) == len(pairs):
        raise failed[names[0]]
    for name, error in failed.items():
        progress.message(f"left out: {name}: {error}")
    write_text(directory / BARRIERS_FILE, "".join(json.dumps(record) + "\n" for record in records), overwrite=True)
    if alone:
        progress.message(f"{alone} checkpoints have no counterpart at the same step and were left out")
    return records


def _summary(
    pair: tuple[Path, Path, Path], *, options: dict[str, Any], progress: Progress
) -> list[Record] | Busy | DataError:
    """Compute the barriers of (a, b, directory of the path).

    Returns:
        The barriers, `Busy` if another process evaluates the pair, or the error of a pair that cannot be evaluated.
    """
    a, b, directory = pair
    with claimed(directory.with_name(f"{directory.name}.pair")) as claim:
        if isinstance(claim, Busy):
            return claim
        try:
            return evaluate_path(a, b, directory, progress=progress, **options).summary
        except DataError as error:
            return error


def _pairs(a: Path | str, b: Path | str | None, named: dict[str, Any]) -> tuple[Sequence[tuple[Member, Member]], int]:
    first = open_series(resolve(a), **named)
    if b is None:
        if len(first) < 2:
            raise UsageError(f"{a}: only one checkpoint; barriers within a run need at least two")
        return list(pairwise(first)), 0
    second = open_series(resolve(b), **named)
    by_step = {member.step: member for member in second if member.step is not None}
    if len(by_step) < len(second) or len({member.step for member in first}) < len(first):
        raise DataError(f"{a}, {b}: two checkpoints of one run have the same step, or one has no step")
    pairs = [(member, by_step[member.step]) for member in first if member.step in by_step]
    if not pairs:
        raise UsageError(f"{a}, {b}: the runs have no checkpoints at the same step")
    return pairs, len(first) + len(second) - 2 * len(pairs)
