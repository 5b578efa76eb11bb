"""Every number along a path between two checkpoints: one model, built once, nothing written but the records."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_probe.analysis import Record
from ckpt_probe.checkpoints import open_checkpoint, save_checkpoint
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import Subject, Wanted, open_subject
from ckpt_probe.files import content_hash
from ckpt_probe.models import unwrapped
from ckpt_probe.paths.alignment import Alignment, align, read_spec
from ckpt_probe.paths.batchnorm import SAMPLES, has_batchnorm
from ckpt_probe.paths.distance import distances, length
from ckpt_probe.paths.matching import check_match
from ckpt_probe.paths.place import ALIGNED_FILE, PathPlace
from ckpt_probe.paths.positions import FIRST, evenly, refined
from ckpt_probe.paths.symmetry import trace_symmetry
from ckpt_probe.paths.walk import PATHS, Ends, Walk, barriers
from ckpt_probe.progress import Progress, Silent

PROVED_ON = 64
"""Samples on which an alignment has to leave the outputs as they are."""


@dataclass(frozen=True)
class PathOptions:
    """How a path is evaluated.

    path: "linear" or "slerp". points: spaced evenly over `span`, 0 and 1 always among them; None adds positions where
    the curves of loss and error bend until their barriers are known to 1 %. splits: all where empty. batchnorm:
    "recompute" estimates running statistics anew at each point between or beyond the ends, from `batchnorm_samples`
    training samples, "interpolate" takes those on the path. align: "permutation" first puts b's hidden channels in a's
    order, over groups derived from the model, or those of the file `align_spec`.
    """

    path: str = "linear"
    points: int | None = 11
    span: tuple[float, float] = (0.0, 1.0)
    splits: Sequence[str] | None = None
    batchnorm: str = "recompute"
    batchnorm_samples: int = SAMPLES
    align: str | None = None
    align_spec: Path | str | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.path not in PATHS or self.batchnorm not in {"recompute", "interpolate"} or self.batchnorm_samples < 1:
            known = ", ".join(PATHS)
            raise UsageError(f"path is one of {known}; batchnorm is recompute or interpolate, from at least one sample")
        if self.align not in {None, "permutation"} or (self.align_spec is not None and self.align is None):
            raise UsageError(f"align is permutation or left out, and align_spec goes with it; found {self.align}")


@dataclass(frozen=True)
class PathResult:
    """Records, one for each α and split; barriers, one for each split; ‖θ_B − θ_A‖; length; how B was aligned."""

    points: list[Record]
    summary: list[Record]
    distance: float
    length: float
    alignment: Alignment | None = None


def evaluate_path(
    a: Path | str,
    b: Path | str,
    out: Path | str,
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    data: str | None = None,
    data_arguments: Mapping[str, Any] | None = None,
    classifier: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> PathResult:
    """Loss, accuracy and every metric at positions on a path from checkpoint a to b, on every split.

    options: those of `PathOptions`. Writes `out`/points.jsonl as the points come and `out`/path.json at the end, and
    with `align` `out`/aligned.safetensors, b in a's order; an interrupted call goes on after the last point. Raises
    UsageError and DataError as extraction does; DataError where the checkpoints differ or cannot be aligned.
    """
    progress, how = progress or Silent(), PathOptions(**options)
    alphas = evenly(FIRST if how.points is None else how.points, how.span)
    wanted = Wanted(model, model_arguments, data, data_arguments, classifier, device)
    walk, alignment = _started((Path(a), Path(b)), Path(out), how, wanted, overwrite, progress)
    with progress.task("points", len(alphas), "points") as bar:
        walk.visit(alphas, bar, progress)
    while how.points is None and (more := refined(*walk.curves())):
        with progress.task("points between", len(more), "points") as bar:
            walk.visit(more, bar, progress)
    records = walk.in_order()
    summary = [barriers(records, name, walk.batchnorm) for name in walk.splits]
    apart = distances(*walk.tensors)
    distance = math.sqrt(sum(tensor["distance"] ** 2 for tensor in apart))
    # A line is as long as its ends are apart; only a curve has to be measured piece by piece.
    measured = distance if how.path == "linear" else length(PATHS[how.path], *walk.tensors)
    shape: Record = {"length": measured, "distances": apart, "distance": distance}
    if alignment is not None:
        shape["alignment"] = {"before": alignment.before, "after": alignment.after, "output_change": alignment.error}
    walk.place.finish(walk.ends, {"summary": summary, **shape})
    return PathResult(records, summary, distance, measured, alignment)


def _started(
    ends: tuple[Path, Path], out: Path, how: PathOptions, wanted: Wanted, overwrite: bool, progress: Progress
) -> tuple[Walk, Alignment | None]:
    with open_checkpoint(ends[0]) as first, open_checkpoint(ends[1]) as second:
        check_match(first, second)
        tensors: Ends = first.state_dict(), second.state_dict()
    subject = open_subject(ends[0], wanted)
    splits = tuple(how.splits) if how.splits else tuple(subject.data.splits)
    for name in splits:
        subject.data.split(name)
    batchnorm = how.batchnorm if has_batchnorm(subject.model) else "none"
    place, alignment = PathPlace(out), None
    place.prepare(_plan(ends, subject, splits, how, batchnorm), overwrite=overwrite)
    if how.align is not None:
        tensors, alignment = _aligned(ends, tensors, subject, how.align_spec, progress)
        save_checkpoint(place.path / ALIGNED_FILE, alignment.state, overwrite=True)
    walk = Walk(
        ends,
        tensors,
        how.path,
        subject,
        splits,
        batchnorm,
        how.batchnorm_samples,
        how.batch_size,
        place,
        place.points(),
    )
    return walk, alignment


def _aligned(
    ends: tuple[Path, Path], tensors: Ends, subject: Subject, spec: Path | str | None, progress: Progress
) -> tuple[Ends, Alignment]:
    names = set(subject.model.state_dict())
    a, b = (unwrapped(state, names) for state in tensors)
    subject.load(b, str(ends[1]))
    inputs, _ = next(iter(subject.data.splits.values())).batch(slice(0, PROVED_ON))
    inputs = inputs.to(subject.device)
    symmetry = trace_symmetry(subject.model.eval(), inputs) if spec is None else read_spec(Path(spec), a)
    try:
        found = align(a, b, symmetry, subject.model, inputs, progress=progress)
    except DataError as error:
        raise DataError(f"{ends[0]}, {ends[1]}: {error}") from error
    return (a, found.state), found


def _plan(
    ends: tuple[Path, Path], subject: Subject, splits: tuple[str, ...], how: PathOptions, batchnorm: str
) -> Record:
    return {
        "a": content_hash(ends[0]),
        "b": content_hash(ends[1]),
        "path": how.path,
        "points": how.points or "auto",
        "range": list(how.span),
        "align": how.align,
        "splits": list(splits),
        "model": subject.model_name,
        "model_arguments": subject.model_arguments,
        "data": subject.data.name,
        "data_arguments": subject.data.arguments,
        "classifier": subject.classifier,
        "batchnorm": batchnorm,
        "batchnorm_samples": how.batchnorm_samples if batchnorm == "recompute" else None,
    }
