"""Every number along a path between two checkpoints: one model, built once, nothing written but the records."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_probe.analysis import Record
from ckpt_probe.checkpoints import State
from ckpt_probe.errors import UsageError
from ckpt_probe.extraction import Setup, Subject, open_subject
from ckpt_probe.extraction.request import request_of
from ckpt_probe.files import content_hash, distinct_names
from ckpt_probe.models import unwrapped
from ckpt_probe.paths.distance import distances, length
from ckpt_probe.paths.ends import Aligning, Ends, aligned, check_ends, read_ends
from ckpt_probe.paths.midpoint import CurveTraining, read_midpoint, trained_midpoint
from ckpt_probe.paths.options import PathOptions
from ckpt_probe.paths.place import PathPlace
from ckpt_probe.paths.point import Evaluation
from ckpt_probe.paths.positions import FIRST, evenly, refined
from ckpt_probe.paths.shapes import path_of
from ckpt_probe.paths.walk import Walk, barriers
from ckpt_probe.progress import Progress, Silent
from ckpt_probe.scheduling import Workers, claimed_in_turn, made_once


@dataclass(frozen=True)
class PathResult:
    """Records, one for each α and split; barriers, one for each split; ‖θ_B − θ_A‖; the path's length.

    alignment: where B was aligned, to what and how, ‖θ_B − θ_A‖ before and after, and how far B's outputs moved.
    """

    points: list[Record]
    summary: list[Record]
    distance: float
    length: float
    alignment: Record | None = None


def evaluate_path(
    a: Path | str,
    b: Path | str,
    out: Path | str,
    *,
    overwrite: bool = False,
    resume: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> PathResult:
    """Loss, accuracy and every metric at positions on a path from checkpoint a to b, on every split.

    options: those of `Setup` (model and data, by default those that a names) and of `PathOptions`. Writes
    `out`/points.jsonl point by point and `out`/path.json at the end; with `align` also `out`/aligned.safetensors, which
    is b in the order of a; for a curve also `out`/curve, the run that trains its midpoint, and
    `out`/midpoint.safetensors; with `keep_dumps` also `out`/dumps. An interrupted call continues after the last point;
    with `resume` a finished path with the same settings is returned from its stored records. workers: so many points at
    a time, each in a process of its own; scheduler: the address of a Dask cluster that evaluates them instead. Where
    another process is at the same path, it is waited for. Raises UsageError and DataError as extraction does, and
    DataError if the checkpoints have different tensors or cannot be aligned.
    """
    progress, setup, staff = progress or Silent(), Setup.taken_from(options), Workers(workers, scheduler)
    order = _Order((Path(a), Path(b)), setup, PathOptions(**options), PathPlace(Path(out)))
    if overwrite and resume:
        raise UsageError("overwrite and resume exclude each other")
    check_ends(order.ends, setup)
    with claimed_in_turn(order.place.path, progress.message) as waited:
        resume = resume or (waited and not overwrite)
        return _evaluated(order, staff, overwrite=overwrite, resume=resume, progress=progress)


def _evaluated(order: "_Order", staff: Workers, *, overwrite: bool, resume: bool, progress: Progress) -> PathResult:
    ends, how, place = order.ends, order.how, order.place
    alphas = evenly(FIRST if how.points is None else how.points, how.span)
    evaluation = Evaluation(open_subject(ends[0], order.setup), how.statistics)
    read = [*ends, *(Path(file) for file in (how.midpoint, how.align_spec) if file is not None)]
    request = request_of(ends, place.path, order.setup, how)
    plan = _plan(ends, evaluation, how)
    place.prepare(plan, request=request, inputs=read, overwrite=overwrite, resume=resume)
    if place.ledger.finished:
        return _stored(place)
    route = _route(place, ends, evaluation.subject, how, overwrite=overwrite, progress=progress)
    elsewhere = None if staff.alone else order.run
    known = place.ledger.points(evaluation.subject.splits)
    walk = Walk(ends, route.state_at, evaluation, place, known, how.keep_dumps, staff=staff, elsewhere=elsewhere)
    with progress.task("points", len(alphas), "points") as bar:
        walk.visit(alphas, bar, progress)
    while how.points is None and (more := refined(*walk.curves())):
        with progress.task("points between", len(more), "points") as bar:
            walk.visit(more, bar, progress)
    splits = evaluation.subject.splits
    for note in evaluation.subject.notes:
        progress.message(note)
    summary = [barriers(walk.in_order(), name, evaluation.batchnorm) for name in splits]
    between = dict(zip(("from", "to"), distinct_names(ends), strict=True))
    place.ledger.finish({**between, "summary": summary, **route.told})
    return _stored(place)


@dataclass(frozen=True)
class _Order:
    """What is asked for every point of a path."""

    ends: tuple[Path, Path]
    setup: Setup
    how: PathOptions
    place: PathPlace

    def run(self, alpha: float) -> list[Record]:
        """Evaluate a position in a worker, which builds the path once, from what was aligned and trained before."""
        return made_once(self, self._walk).evaluated(alpha, Silent())

    def _walk(self) -> Walk:
        evaluation = Evaluation(open_subject(self.ends[0], self.setup), self.how.statistics)
        route = _route(self.place, self.ends, evaluation.subject, self.how, overwrite=False, progress=Silent())
        return Walk(self.ends, route.state_at, evaluation, self.place, [], self.how.keep_dumps)


@dataclass(frozen=True)
class _Route:
    """A path as a function α → state dict, and what is said of it as a whole."""

    state_at: Callable[[float], State]
    told: Record


def _route(
    place: PathPlace,
    ends: tuple[Path, Path],
    subject: Subject,
    how: PathOptions,
    *,
    overwrite: bool,
    progress: Progress,
) -> _Route:
    names, told = set(subject.model.state_dict()), {}
    first, second = (unwrapped(state, names) for state in read_ends(ends, subject.setup))
    tensors: Ends = first, second
    if how.align is not None:
        spec = None if how.align_spec is None else Path(how.align_spec)
        aligning = Aligning(how.align, how.align_samples, spec)
        tensors, told["alignment"] = aligned(place, ends, tensors, subject, aligning, progress)
        ends = ends[0], place.aligned
    middle = None
    if how.midpoint is not None:
        middle = read_midpoint(Path(how.midpoint), subject)
    elif how.curved:
        training = CurveTraining(how.path, how.curve_epochs, how.curve_learning_rate)
        middle = trained_midpoint(place, ends, tensors, subject, training, overwrite=overwrite, progress=progress)
    state_at = path_of(how.path, *tensors, middle)
    apart = distances(*tensors)
    distance = math.sqrt(sum(tensor["distance"] ** 2 for tensor in apart))
    # A line is as long as its ends are apart; only a curve has to be measured piece by piece.
    measured = distance if how.path == "linear" else length(state_at)
    return _Route(state_at, {"length": measured, "distances": apart, "distance": distance, **told})


def _stored(place: PathPlace) -> PathResult:
    told, points = place.ledger.found(), sorted(place.ledger.points(), key=lambda point: point["alpha"])
    return PathResult(points, told["summary"], told["distance"], told["length"], told.get("alignment"))


def _plan(ends: tuple[Path, Path], evaluation: Evaluation, how: PathOptions) -> Record:
    trained = how.curved and how.midpoint is None
    return {
        "a": evaluation.subject.setup.content_hash(ends[0]),
        "b": evaluation.subject.setup.content_hash(ends[1]),
        "path": how.path,
        "points": how.points or "auto",
        "range": list(how.span),
        "align": how.align,
        "align_spec": None if how.align_spec is None else content_hash(how.align_spec),
        "align_samples": how.align_samples if how.align == "activations" else None,
        "midpoint": None if how.midpoint is None else content_hash(how.midpoint),
        "curve_epochs": how.curve_epochs if trained else None,
        "curve_learning_rate": how.curve_learning_rate if trained else None,
        **evaluation.plan(),
        "dumps": how.keep_dumps or None,
    }
