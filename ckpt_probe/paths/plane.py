"""Every metric on a grid in a plane of weights: through three checkpoints, around one, or along a trajectory."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_probe.analysis import Record
from ckpt_probe.checkpoints import Member, open_series
from ckpt_probe.errors import DataError, UsageError, error_context
from ckpt_probe.extraction import Setup
from ckpt_probe.extraction.config import request_of
from ckpt_probe.files import distinct_names
from ckpt_probe.keywords import from_arguments
from ckpt_probe.merging import check_match
from ckpt_probe.models import unwrapped
from ckpt_probe.paths.ledger import Ledger
from ckpt_probe.paths.options import MARGIN, RADIUS, SAMPLES, PlaneOptions
from ckpt_probe.paths.shapes import Plane, plane_through, random_plane, trajectory_plane
from ckpt_probe.paths.survey import Job, StateAt, Survey, opened, visit
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.remote import resolve
from ckpt_probe.scheduling import Workers
from ckpt_probe.trajectories.layout import WeightOptions
from ckpt_probe.trajectories.series import measured_series

PlaneJob = Job[PlaneOptions]


@dataclass(frozen=True)
class PlaneResult:
    """Results of a plane.

    Attributes:
        points: Records of the grid, with x, y and split.
        marks: Records of the checkpoints, with name, x, y and split.
        summary: For each split the lowest loss on the grid, its position, and the number of positions without a loss.
        axes: Distances and angle of three checkpoints, lengths and cosine of random directions, or shares of variance
            of the main directions of a trajectory and of a random walk.
        xs: Coordinates of the grid along x.
        ys: Coordinates of the grid along y.
    """

    points: list[Record]
    marks: list[Record]
    summary: list[Record]
    axes: Record
    xs: list[float]
    ys: list[float]


def plane(
    a: Path | str,
    b: Path | str | None = None,
    c: Path | str | None = None,
    *,
    out: Path | str,
    grid: int | tuple[int, int] = 15,
    margin: float = MARGIN,
    directions: str | None = None,
    seed: int = 0,
    radius: float = RADIUS,
    batchnorm: str = "recompute",
    batchnorm_samples: int = SAMPLES,
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
    resume: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> PlaneResult:
    """Compute loss, accuracy and every metric on a grid in a plane of weights.

    The plane goes through checkpoints a, b and c, or through a alone along random directions, or it is that of the
    trajectory of the series a.

    Writes `out`/points.jsonl position by position and `out`/plane.json at the end. An interrupted call continues after
    the last position. If another process evaluates the same plane, this one waits for it.

    Args:
        a: First checkpoint, which names model and data if `model` and `data` are None; with "pca" the directory of a
            series of at least three.
        b: Second checkpoint; None with directions.
        c: Third checkpoint; None with directions.
        out: Directory of the results.
        grid: Number of positions along each axis, or (along x, along y).
        margin: Extent of the grid beyond the checkpoints, as a share of their own extent.
        directions: "random" for filter-normalised directions around one checkpoint, "pca" for the two main directions
            of the trajectory of a series; None for three checkpoints.
        seed: Seed of the random directions.
        radius: Largest coordinate along random directions.
        batchnorm: "recompute" to estimate running statistics at each position, "interpolate" to interpolate them.
        batchnorm_samples: Number of training samples for the estimates.
        errors: Whether to add standard errors and biases to the record of every position.
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
        resume: Return a finished plane with the same settings from its records.
        workers: Number of processes, each of which evaluates one position at a time.
        scheduler: Address of a Dask cluster that evaluates the positions instead.
        progress: Receives messages and bars.

    Raises:
        UsageError: As extraction does, and if the directory contains other results.
        DataError: As extraction does, and if the checkpoints have different tensors, two are equal, or all three lie
            on one line.
    """
    setup, settings = from_arguments(Setup, locals()), from_arguments(PlaneOptions, locals())
    progress, staff = progress or NullProgress(), Workers(workers, scheduler)
    named = tuple(resolve(file) for file in (a, b, c) if file is not None)
    if directions is None and len(named) != 3:
        raise UsageError("a plane needs three checkpoints A, B and C, or one checkpoint A with directions random")
    if directions is not None and len(named) != 1:
        raise UsageError("directions need one argument A, a checkpoint or a series: omit B and C, or the directions")
    files = named
    if directions == "pca":
        files = tuple(member.path for member in open_series(named[0], state_key=state_key, base=setup.base))
        if len(files) < 3:
            raise UsageError(f"{named[0]}: `directions='pca'` needs a series of at least three, found {len(files)}")
    job = PlaneJob(files, setup, settings, Ledger(Path(out), "plane"))
    request = request_of(named, job.ledger.path, setup, settings)
    with opened(job, overwrite=overwrite, resume=resume, progress=progress) as survey:
        spanned = _plane(survey, progress)
        job.ledger.prepare(_plan(survey), request=request, overwrite=overwrite)
        if not job.ledger.finished:
            _evaluate(survey, spanned, staff, progress)
        summary, records = job.ledger.summary(), job.ledger.points()
    return PlaneResult(records, *(summary[name] for name in ("marks", "summary", "axes", "xs", "ys")))


evaluate_plane = plane
"""Older name of `plane`."""


def _evaluate(survey: Survey, plane: Plane, staff: Workers, progress: Progress) -> None:
    ledger, splits = survey.job.ledger, survey.splits
    records, (xs, ys) = ledger.points(splits), _grid(plane, survey.job.options)
    marks, grid = _marks(survey, plane, progress), [(x, y) for y in ys for x in xs]
    visit(survey, plane.at, grid, records, title="points", reopened=_reopened, workers=staff, progress=progress)
    checkpoints = dict(zip((name for name, _, _ in plane.marks), distinct_names(survey.job.files), strict=True))
    summary = [_lowest(ledger.sorted(records), name) for name in splits]
    axes = {"axes": plane.axes, "xs": xs, "ys": ys}
    ledger.finish(records, {"checkpoints": checkpoints, **axes, "marks": marks, "summary": summary})
    for note in (*survey.subject.notes, *_positions_without_loss(summary, records)):
        progress.message(note)


def _reopened(survey: Survey) -> StateAt:
    """Read the checkpoints in a worker process."""
    return _plane(survey, NullProgress()).at


def _marks(survey: Survey, plane: Plane, progress: Progress) -> list[Record]:
    """Compute the checkpoints' own records with their own statistics, one for each checkpoint and split."""
    records, files = list[Record](), survey.job.files
    for file, label, (name, x, y) in zip(files, distinct_names(files), plane.marks, strict=True):
        with survey.job.setup.open(file) as checkpoint:
            batchnorm = survey.load(checkpoint.state_dict(), str(file), keep_batchnorm=True)
        for split in survey.splits:
            with error_context(f"{file}: {split}: "):
                record = survey.record(split, progress)
            position = {"name": name, "checkpoint": label, "x": x, "y": y}
            records.append({**position, "split": split, "batchnorm": batchnorm, **record})
    return records


def _plane(survey: Survey, progress: Progress) -> Plane:
    job, model = survey.job, survey.subject.model
    files, options, names = job.files, job.options, set(model.state_dict())
    if options.directions == "pca":
        return _of_trajectory(job, names)
    with job.setup.open(files[0]) as first:
        for file in files[1:]:
            with job.setup.open(file) as checkpoint:
                check_match(first, checkpoint, progress, converted=True)
    states = job.states(names)
    with error_context(f"{', '.join(map(str, files))}: "):
        return random_plane(states[0], model, options.seed) if options.directions else plane_through(*states)


def _of_trajectory(job: PlaneJob, names: set[str]) -> Plane:
    """Return the plane of a series; its parameters are read twice, for their distances and for the directions."""
    files, setup = job.files, job.setup
    members = [Member(file, file.stem, None) for file in files]
    options = WeightOptions(parts=("motion",), state_key=setup.state_key, base=setup.base)
    series = measured_series(members, options, NullProgress())
    outside = [failure.message for failure in series.failed.values()]
    outside += [f"{name} is of another network" for name in series.parameters.excluded]
    if outside or series.trajectory is None:
        reason = outside[0] if outside else "the checkpoints have the same weights"
        raise DataError(f"{files[0].parent}: no plane of the trajectory: {reason}")

    def states() -> Iterator[Any]:
        for file in files:
            with setup.open(file) as checkpoint:
                yield unwrapped(checkpoint.state_dict(), names)

    with error_context(f"{files[0].parent}: "):
        return trajectory_plane(states(), series.trajectory)


def _grid(plane: Plane, options: PlaneOptions) -> tuple[list[float], list[float]]:
    if options.directions == "random":
        ends = [(-options.radius, options.radius)] * 2
    else:
        spans = [x for _, x, _ in plane.marks], [y for _, _, y in plane.marks]
        ends = [(min(span), max(span)) for span in spans]
        ends = [(low - options.margin * (high - low), high + options.margin * (high - low)) for low, high in ends]
    xs, ys = (
        # The ends and the middle are exact, so that a checkpoint there is a position of the grid.
        [low * (1 - i / (count - 1)) + high * (i / (count - 1)) for i in range(count)]
        for (low, high), count in zip(ends, options.shape, strict=True)
    )
    return xs, ys


def _plan(survey: Survey) -> Record:
    job, options, random = survey.job, survey.job.options, survey.job.options.directions == "random"
    contents = [job.setup.content_hash(file) for file in job.files]
    if options.directions == "pca":
        contents = [hashlib.sha256(" ".join(contents).encode()).hexdigest()]
    hashes = dict(zip("abc", contents, strict=False))
    return {
        "directions": options.directions or "checkpoints",
        **{name: hashes.get(name) for name in "abc"},
        "grid": list(options.shape),
        "margin": None if random else options.margin,
        "radius": options.radius if random else None,
        "seed": options.seed if random else None,
        **survey.plan(),
        "errors": options.errors or None,
    }


def _lowest(points: Sequence[Record], split: str) -> Record:
    of_split = [point for point in points if point["split"] == split]
    known = [point for point in of_split if point["loss"] is not None]
    lowest = min(known, key=lambda point: point["loss"], default={"loss": None, "x": None, "y": None})
    where = {f"lowest.{name}": lowest[name] for name in ("loss", "loss_stderr", "x", "y") if name in lowest}
    counts = {"points": len(of_split), "without_loss": len(of_split) - len(known)}
    return {"split": split, **counts, "batchnorm": of_split[0]["batchnorm"], **where}


def _positions_without_loss(summaries: Sequence[Record], records: Sequence[Record]) -> list[str]:
    notes = []
    for summary in summaries:
        if summary["without_loss"]:
            of_split = [record for record in records if record["split"] == summary["split"]]
            reason = next(record.get("missing") for record in of_split if record["loss"] is None)
            count = f"{summary['without_loss']} of {summary['points']}"
            notes.append(f"{summary['split']}: {count} points have no loss ({reason})")
    return notes
