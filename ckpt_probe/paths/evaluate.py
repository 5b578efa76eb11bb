"""Every metric along a path between two checkpoints: one model, built once; only records are written."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.alignment import Alignment, match_activations, match_weights, read_spec, trace_symmetry
from ckpt_probe.analysis import Record
from ckpt_probe.checkpoints import State, open_checkpoint, save_checkpoint
from ckpt_probe.data import Split, one_tensor
from ckpt_probe.errors import error_context
from ckpt_probe.extraction import Setup
from ckpt_probe.extraction.config import request_of
from ckpt_probe.files import content_hash, distinct_names
from ckpt_probe.keywords import from_arguments
from ckpt_probe.merging import check_averaged, check_match
from ckpt_probe.paths.curve import missing_metadata, read_midpoint, trained_midpoint
from ckpt_probe.paths.ledger import Ledger
from ckpt_probe.paths.options import SAMPLES, PathOptions
from ckpt_probe.paths.positions import FIRST, barriers, barriers_with_errors, curves, evenly, refined
from ckpt_probe.paths.shapes import distances, length, path_of, require_finite
from ckpt_probe.paths.survey import Job, StateAt, Survey, opened, visit
from ckpt_probe.progress import NullProgress, Progress, Task
from ckpt_probe.remote import resolve
from ckpt_probe.scheduling import Workers

PathJob = Job[PathOptions]

PROVED_ON = 64
"""Number of samples on which an alignment must leave the outputs unchanged."""

BATCH = 32
"""Number of samples whose activations, all of both networks, are in memory together."""

ALIGNMENT = "ckpt_probe.alignment"


@dataclass(frozen=True)
class PathResult:
    """Results of a path.

    Attributes:
        points: Records, one for each position and split.
        summary: Barriers, one record for each split.
        distance: ‖θ_B − θ_A‖.
        length: Length of the path in weight space.
        alignment: If B was aligned: to what and how, ‖θ_B − θ_A‖ before and after, and the change of B's outputs.
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
    resume: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> PathResult:
    """Compute loss, accuracy and every metric at positions on a path from checkpoint a to b, on every split.

    Writes `out`/points.jsonl position by position and `out`/path.json at the end; with `align` also
    `out`/aligned.safetensors, b in the order of a; for a curve also `out`/curve, the run that trains its midpoint, and
    `out`/midpoint.safetensors; with `keep_dumps` also `out`/dumps. An interrupted call continues after the last
    position. If another process evaluates the same path, this one waits for it.

    Args:
        a: Checkpoint at α = 0, which names model and data if `model` and `data` are None.
        b: Checkpoint at α = 1.
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
        resume: Return a finished path with the same settings from its records.
        workers: Number of processes, each of which evaluates one position at a time.
        scheduler: Address of a Dask cluster that evaluates the positions instead.
        progress: Receives messages and bars.

    Raises:
        UsageError: As extraction does, and if the directory contains other results.
        DataError: As extraction does, and if the checkpoints have different tensors or cannot be aligned.
    """
    setup, options = from_arguments(Setup, locals()), from_arguments(PathOptions, locals())
    progress, staff = progress or NullProgress(), Workers(workers, scheduler)
    job = PathJob((resolve(a), resolve(b)), setup, options, Ledger(Path(out), "path"))
    with setup.open(job.files[0]) as first, setup.open(job.files[1]) as second:
        check_match(first, second, progress, converted=True)
        check_averaged(first)
    inputs = [*job.files, *(Path(file) for file in (midpoint, align_spec) if file is not None)]
    request = request_of(job.files, job.ledger.path, setup, options)
    alphas = evenly(FIRST if points is None else points, span)
    with opened(job, overwrite=overwrite, resume=resume, progress=progress) as survey:
        job.ledger.prepare(_plan(survey), request=request, inputs=inputs, overwrite=overwrite)
        if not job.ledger.finished:
            _evaluate(survey, alphas, staff, overwrite=overwrite, progress=progress)
        summary, records = job.ledger.summary(), job.ledger.sorted(job.ledger.points())
    return PathResult(records, summary["summary"], summary["distance"], summary["length"], summary.get("alignment"))


def _evaluate(survey: Survey, alphas: Sequence[float], staff: Workers, *, overwrite: bool, progress: Progress) -> None:
    job, ledger, splits, title = survey.job, survey.job.ledger, survey.splits, "points"
    state_at, description = _route(survey, overwrite=overwrite, progress=progress)
    records = ledger.points(splits)
    while alphas:
        positions = [(alpha,) for alpha in alphas]
        visit(survey, state_at, positions, records, title=title, reopened=_reopened, workers=staff, progress=progress)
        alphas = refined(*curves(ledger.sorted(records), splits)) if job.options.points is None else []
        title = "points between"
    for note in survey.subject.notes:
        progress.message(note)
    summary = [barriers(ledger.sorted(records), name, survey.batchnorm) for name in splits]
    if job.options.errors:
        summary = barriers_with_errors(summary, ledger.sorted(records), ledger.influences)
    between = dict(zip(("from", "to"), distinct_names(job.files), strict=True))
    ledger.finish(records, {**between, "summary": summary, **description})


def _reopened(survey: Survey) -> StateAt:
    """Build the path in a worker process, from files that were aligned and trained before."""
    return _route(survey, overwrite=False, progress=NullProgress())[0]


def _route(survey: Survey, *, overwrite: bool, progress: Progress) -> tuple[StateAt, Record]:
    """Build the path.

    Returns:
        The function α → state dict, and length, distances and alignment of the path.

    Raises:
        DataError: If a number of a checkpoint is not finite, naming the tensor.
    """
    job, subject, description = survey.job, survey.subject, {}
    options = job.options
    a, b = job.states(set(subject.model.state_dict()))
    for file, state in zip(job.files, (a, b), strict=True):
        with error_context(f"{file}: "):
            for name, tensor in state.items():
                require_finite(name, tensor)
    if options.align is not None:
        b, description["alignment"] = _aligned(survey, a, b, progress)
    middle = None
    if options.midpoint is not None:
        middle = read_midpoint(Path(options.midpoint), subject)
    elif options.curved:
        ends = job if options.align is None else replace(job, files=(job.files[0], job.ledger.aligned))
        middle = trained_midpoint(ends, (a, b), subject, overwrite=overwrite, progress=progress)
    state_at = path_of(options.path, a, b, middle)
    apart = distances(a, b)
    distance = math.sqrt(sum(tensor["distance"] ** 2 for tensor in apart))
    # A line is as long as the distance of its ends; only a curve has to be measured piece by piece.
    measured = distance if options.path == "linear" else length(state_at)
    return state_at, {"length": measured, "distances": apart, "distance": distance, **description}


def _aligned(survey: Survey, a: State, b: State, progress: Progress) -> tuple[State, Record]:
    """Put B's channels in A's order and write the result to aligned.safetensors of the path, unless it exists.

    Returns:
        The state dict of aligned B, and a record with both distances and the change of B's outputs.

    Raises:
        DataError: If B cannot be aligned, naming both files.
    """
    job, subject, options = survey.job, survey.subject, survey.job.options
    file = job.ledger.aligned
    if file.exists():
        with open_checkpoint(file) as checkpoint:
            if ALIGNMENT in checkpoint.raw_metadata:
                return checkpoint.state_dict(), json.loads(checkpoint.raw_metadata[ALIGNMENT])
    splits, model = subject.data.splits, subject.model.eval()
    split = splits.get("train", next(iter(splits.values())))
    with error_context(f"{job.files[0]}, {job.files[1]}: "):
        inputs = one_tensor(split.batch(slice(0, PROVED_ON))[0], "alignment").to(subject.device)
        spec = options.align_spec
        symmetry = trace_symmetry(model, inputs) if spec is None else read_spec(Path(spec), a)
        if options.align == "permutation":
            permutations = match_weights(a, b, symmetry, progress=progress)
        else:
            with progress.task("activations", min(options.align_samples, len(split)), "samples") as bar:
                batches = _batches(split, options.align_samples, subject.device, bar)
                permutations = match_activations(a, b, symmetry, model, batches)
        alignment = Alignment(a, b, symmetry, permutations, model, inputs)
    description: Record = {
        "to": distinct_names(job.files)[0],
        "method": options.align,
        "before": alignment.before,
        "after": alignment.after,
        "output_change": alignment.error,
    }
    with job.setup.open(job.files[1]) as checkpoint:
        added = {**missing_metadata(checkpoint.metadata, subject), ALIGNMENT: json.dumps(description)}
        metadata = {**checkpoint.raw_metadata, **added}
    save_checkpoint(file, alignment.state, metadata, overwrite=True)
    return alignment.state, description


def _batches(split: Split, samples: int, device: torch.device, bar: Task) -> Iterator[Tensor]:
    count = min(samples, len(split))
    for start in range(0, count, BATCH):
        inputs, _ = split.batch(slice(start, min(start + BATCH, count)))
        yield one_tensor(inputs, "alignment").to(device)
        bar.advance(len(inputs))


def _plan(survey: Survey) -> Record:
    job, options = survey.job, survey.job.options
    trained = options.curved and options.midpoint is None
    return {
        "a": job.setup.content_hash(job.files[0]),
        "b": job.setup.content_hash(job.files[1]),
        "path": options.path,
        "points": options.points or "auto",
        "range": list(options.span),
        "align": options.align,
        "align_spec": None if options.align_spec is None else content_hash(options.align_spec),
        "align_samples": options.align_samples if options.align == "activations" else None,
        "midpoint": None if options.midpoint is None else content_hash(options.midpoint),
        "curve_epochs": options.curve_epochs if trained else None,
        "curve_learning_rate": options.curve_learning_rate if trained else None,
        **survey.plan(),
        "dumps": options.keep_dumps or None,
        "errors": options.errors or None,
    }
