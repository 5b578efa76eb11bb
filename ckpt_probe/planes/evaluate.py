"""Every number on a grid in a plane of weights: through three checkpoints, or around one along random directions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_probe.analysis import Record
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import Setup, Subject, open_subject
from ckpt_probe.extraction.request import request_of
from ckpt_probe.files import distinct_names
from ckpt_probe.merging.matching import check_match
from ckpt_probe.models import unwrapped
from ckpt_probe.paths.ledger import Ledger
from ckpt_probe.paths.options import SAMPLES, Statistics
from ckpt_probe.paths.point import Evaluation
from ckpt_probe.planes.directions import Plane, plane_through, random_plane
from ckpt_probe.planes.survey import Point, Survey
from ckpt_probe.progress import Progress, Silent
from ckpt_probe.scheduling import Workers, claimed_in_turn, made_once

MARGIN = 0.2
RADIUS = 1.0


@dataclass(frozen=True)
class PlaneOptions:
    """How a plane is evaluated.

    grid: points along each axis, or (along x, along y). margin: how far the grid goes beyond the three checkpoints, as
    a share of their extent. directions: "random" for filter-normalised ones around one checkpoint, drawn from `seed`,
    coordinates from −radius to radius. batchnorm: "recompute" estimates running statistics
    anew at each grid point from `batchnorm_samples` training samples, "interpolate" takes those in the plane.
    """

    grid: int | tuple[int, int] = 15
    margin: float = MARGIN
    directions: str | None = None
    seed: int = 0
    radius: float = RADIUS
    batchnorm: str = "recompute"
    batchnorm_samples: int = SAMPLES

    def __post_init__(self) -> None:
        if min(self.shape) < 2:
            raise UsageError(f"grid: expected at least 2 points along each axis, found {self.grid}")
        _ = self.statistics
        if self.directions not in {None, "random"}:
            raise UsageError(f"directions: expected random or None, found {self.directions}")
        if self.directions is None and (self.seed, self.radius) != (0, RADIUS):
            raise UsageError("seed and radius need directions random")
        if self.directions is not None and self.margin != MARGIN:
            raise UsageError("margin needs three checkpoints; use radius for random directions")
        if not (0 <= self.margin < math.inf and 0 < self.radius < math.inf and 0 <= self.seed < 2**63):
            raise UsageError("expected a margin of at least 0, a radius above 0, and an integer seed of at least 0")

    @property
    def shape(self) -> tuple[int, int]:
        """Points along x and along y."""
        return (self.grid, self.grid) if isinstance(self.grid, int) else self.grid

    @property
    def statistics(self) -> Statistics:
        """Where batch-norm statistics come from. Raises UsageError where they can't be had so."""
        return Statistics(self.batchnorm, self.batchnorm_samples)


@dataclass(frozen=True)
class PlaneResult:
    """Records of the grid (x, y, split, …) and of the checkpoints (name, x, y, split, …), and what they say together.

    summary: for each split the lowest loss on the grid and where, and how many points have none. axes: distances and
    angle of three checkpoints, or lengths and cosine of random directions. xs, ys: the grid.
    """

    points: list[Record]
    marks: list[Record]
    summary: list[Record]
    axes: Record
    xs: list[float]
    ys: list[float]


def evaluate_plane(
    a: Path | str,
    b: Path | str | None = None,
    c: Path | str | None = None,
    *,
    out: Path | str,
    overwrite: bool = False,
    resume: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> PlaneResult:
    """Loss, accuracy and every metric on a grid in the plane through checkpoints a, b, c, or around a alone.

    options: those of `Setup` (model and data, by default those that a names) and of `PlaneOptions`; without b and c,
    directions="random". Writes `out`/points.jsonl point by point and `out`/plane.json at the end. An interrupted call
    continues after the last point, and another process at the same plane is waited for; with `resume` a finished plane
    is returned from its stored records. workers: so many points at a time, each in a process of its own; scheduler: the
    address of a Dask cluster that evaluates them. Raises UsageError and DataError as extraction does, and DataError if
    the checkpoints have different tensors, two are equal, or all three lie on one line.
    """
    progress, setup = progress or Silent(), Setup.taken_from(options)
    how = PlaneOptions(**options)
    files = tuple(Path(file) for file in (a, b, c) if file is not None)
    if how.directions is None and len(files) != 3:
        raise UsageError("a plane needs three checkpoints A, B and C, or one checkpoint A with directions random")
    if how.directions is not None and len(files) != 1:
        raise UsageError("random directions need one checkpoint A: omit B and C, or the directions")
    if overwrite and resume:
        raise UsageError("overwrite and resume exclude each other")
    staff, order = Workers(workers, scheduler), _Order(files, setup, how)
    with claimed_in_turn(Path(out), progress.message) as waited:
        resume = resume or (waited and not overwrite)
        return _evaluated(order, Path(out), staff, overwrite=overwrite, resume=resume, progress=progress)


def _evaluated(
    order: "_Order", out: Path, staff: Workers, *, overwrite: bool, resume: bool, progress: Progress
) -> PlaneResult:
    files, setup, how = order.files, order.setup, order.how
    ledger = Ledger(out, "plane")
    ledger.require_free(overwrite=overwrite, resume=resume)
    evaluation = Evaluation(open_subject(files[0], setup), how.statistics)
    plane = _plane(files, how, evaluation.subject)
    plan = _plan(files, evaluation, how)
    if overwrite:
        for file in ledger.files:
            file.unlink(missing_ok=True)
    ledger.follow(plan, begun=ledger.begun, request=request_of(files, out, setup, how))
    if ledger.finished:
        return _stored(ledger)
    elsewhere = None if staff.alone else order.run
    known = ledger.points(evaluation.subject.splits)
    survey = Survey(files, plane, evaluation, ledger, known, staff, elsewhere)
    _finish(survey, *_grid(plane, how), progress)
    for note in evaluation.subject.notes:
        progress.message(note)
    result = _stored(ledger)
    _tell(result, progress)
    return result


@dataclass(frozen=True)
class _Order:
    """What is asked for every point of a plane."""

    files: tuple[Path, ...]
    setup: Setup
    how: PlaneOptions

    def run(self, point: Point) -> list[Record]:
        """Evaluate a point in a worker, which builds the plane once."""
        return made_once(self, self._survey).evaluated(point, Silent())

    def _survey(self) -> Survey:
        evaluation = Evaluation(open_subject(self.files[0], self.setup), self.how.statistics)
        plane = _plane(self.files, self.how, evaluation.subject)
        return Survey(self.files, plane, evaluation, Ledger(Path(), "plane"), [])


def _plane(files: tuple[Path, ...], how: PlaneOptions, subject: Subject) -> Plane:
    names = set(subject.model.state_dict())
    states: list[Any] = []
    with subject.setup.open(files[0]) as first:
        for file in files:
            with subject.setup.open(file) as checkpoint:
                check_match(first, checkpoint)
                states.append(unwrapped(checkpoint.state_dict(), names))
    try:
        return random_plane(states[0], subject.model, how.seed) if how.directions else plane_through(*states)
    except DataError as error:
        raise DataError(f"{', '.join(str(file) for file in files)}: {error}") from error


def _grid(plane: Plane, how: PlaneOptions) -> tuple[list[float], list[float]]:
    if how.directions is not None:
        ends = [(-how.radius, how.radius)] * 2
    else:
        spans = [x for _, x, _ in plane.marks], [y for _, _, y in plane.marks]
        ends = [(min(span), max(span)) for span in spans]
        ends = [(low - how.margin * (high - low), high + how.margin * (high - low)) for low, high in ends]
    xs, ys = (
        # The ends and the middle are exact, so that a checkpoint there is met and not missed by a hair.
        [low * (1 - i / (count - 1)) + high * (i / (count - 1)) for i in range(count)]
        for (low, high), count in zip(ends, how.shape, strict=True)
    )
    return xs, ys


def _plan(files: tuple[Path, ...], evaluation: Evaluation, how: PlaneOptions) -> Record:
    random = how.directions is not None
    hashes = {name: evaluation.subject.setup.content_hash(file) for name, file in zip("abc", files, strict=False)}
    return {
        "directions": how.directions or "checkpoints",
        **{name: hashes.get(name) for name in "abc"},
        "grid": list(how.shape),
        "margin": None if random else how.margin,
        "radius": how.radius if random else None,
        "seed": how.seed if random else None,
        **evaluation.plan(),
    }


def _lowest(points: Sequence[Record], split: str) -> Record:
    of_split = [point for point in points if point["split"] == split]
    known = [point for point in of_split if point["loss"] is not None]
    lowest = min(known, key=lambda point: point["loss"], default={"loss": None, "x": None, "y": None})
    where = {f"lowest.{name}": lowest[name] for name in ("loss", "x", "y")}
    counts = {"points": len(of_split), "without_loss": len(of_split) - len(known)}
    return {"split": split, **counts, "batchnorm": of_split[0]["batchnorm"], **where}


def _finish(survey: Survey, xs: list[float], ys: list[float], progress: Progress) -> None:
    marks = survey.marks(progress)
    survey.visit([(x, y) for y in ys for x in xs], progress)
    points = survey.in_order()
    survey.ledger.keep(points)
    survey.ledger.finish(
        {
            "checkpoints": dict(zip("ABC", distinct_names(survey.files), strict=False)),
            "axes": survey.plane.axes,
            "xs": xs,
            "ys": ys,
            "marks": marks,
            "summary": [_lowest(points, name) for name in survey.evaluation.subject.splits],
        }
    )


def _stored(ledger: Ledger) -> PlaneResult:
    told = ledger.found()
    return PlaneResult(ledger.points(), *(told[name] for name in ("marks", "summary", "axes", "xs", "ys")))


def _tell(result: PlaneResult, progress: Progress) -> None:
    for summary in result.summary:
        if summary["without_loss"]:
            of_split = [point for point in result.points if point["split"] == summary["split"]]
            reason = next(point.get("missing") for point in of_split if point["loss"] is None)
            progress.message(
                f"{summary['split']}: {summary['without_loss']} of {summary['points']} points have no loss ({reason})"
            )
