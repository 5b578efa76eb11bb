"""Every number along the line between two checkpoints: one model, built once, nothing written but the records."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_probe.analysis import Record, in_order, read_blocks
from ckpt_probe.checkpoints import open_checkpoint, save_checkpoint
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import Block, Subject, Wanted, forward_blocks, open_subject
from ckpt_probe.files import content_hash, write_text
from ckpt_probe.models import unwrapped
from ckpt_probe.paths.alignment import Alignment, read_spec
from ckpt_probe.paths.alignment import align as find_alignment
from ckpt_probe.paths.barrier import barrier
from ckpt_probe.paths.batchnorm import SAMPLES, has_batchnorm, recompute
from ckpt_probe.paths.distance import distances, length
from ckpt_probe.paths.linear import linear
from ckpt_probe.paths.matching import check_match
from ckpt_probe.paths.positions import FIRST, evenly, refined
from ckpt_probe.paths.slerp import slerp
from ckpt_probe.paths.symmetry import trace_symmetry
from ckpt_probe.progress import Progress, Silent, Task

PATHS = {"linear": linear, "slerp": slerp}
"""A path: (state dict a, state dict b, α) → the state dict there."""

CACHE_BYTES = 2**30
POINTS_FILE = "points.jsonl"
PATH_FILE = "path.json"
PLAN_FILE = "plan.json"
ALIGNED_FILE = "aligned.safetensors"
PROVED_ON = 64
"""Samples on which an alignment has to leave the outputs as they are."""


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
    points: int | None = 11,
    path: str = "linear",
    span: tuple[float, float] = (0.0, 1.0),
    splits: Sequence[str] | None = None,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    data: str | None = None,
    data_arguments: Mapping[str, Any] | None = None,
    classifier: str | None = None,
    batchnorm: str = "recompute",
    batchnorm_samples: int = SAMPLES,
    align: str | None = None,
    align_spec: Path | str | None = None,
    batch_size: int = 256,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PathResult:
    """Loss, accuracy and every metric at `points` positions on a path from checkpoint a to b, on every split.

    path: "linear" or "slerp". points: spaced evenly over `span`, 0 and 1 always among them; None adds positions where
    the curves of loss and error bend until their barriers are known to 1 %. Writes `out`/points.jsonl as the points
    come and `out`/path.json at the end; an interrupted call goes on after the last point. `batchnorm`: "recompute"
    estimates running statistics anew at each point between or beyond the ends, from `batchnorm_samples` training
    samples, "interpolate" takes those on the path. `align` "permutation" first puts b's hidden channels in a's order
    (written as `out`/aligned.safetensors), over groups derived from the model, or those of `align_spec`. Raises
    UsageError and DataError as extraction does; DataError where the checkpoints differ or cannot be aligned.
    """
    progress = progress or Silent()
    if path not in PATHS or batchnorm not in {"recompute", "interpolate"} or batchnorm_samples < 1:
        known = ", ".join(PATHS)
        raise UsageError(f"path is one of {known}; batchnorm is recompute or interpolate, from at least one sample")
    if align not in {None, "permutation"} or (align_spec is not None and align is None):
        raise UsageError(f"align is permutation or left out, and align_spec goes with it; found {align}")
    alphas = evenly(FIRST if points is None else points, span)
    ends = (Path(a), Path(b))
    with open_checkpoint(a) as first, open_checkpoint(b) as second:
        check_match(first, second)
        tensors = first.state_dict(), second.state_dict()
    subject = open_subject(ends[0], Wanted(model, model_arguments, data, data_arguments, classifier, device))
    chosen = tuple(splits) if splits else tuple(subject.data.splits)
    for name in chosen:
        subject.data.split(name)
    handling = batchnorm if has_batchnorm(subject.model) else "none"
    place = _Place(Path(out))
    plan = {**_plan(ends, subject, chosen, handling, batchnorm_samples), "align": align}
    place.prepare({**plan, "path": path, "points": points or "auto", "range": list(span)}, overwrite=overwrite)
    alignment = None
    if align is not None:
        alignment = _aligned(ends, tensors, subject, align_spec, progress)
        tensors = tensors[0], alignment.state
        save_checkpoint(place.path / ALIGNED_FILE, alignment.state, overwrite=True)
    walk = _Walk(ends, tensors, path, subject, chosen, handling, batchnorm_samples, batch_size, place, place.points())
    with progress.task("points", len(alphas), "points") as bar:
        walk.visit(alphas, bar, progress)
    while points is None and (more := refined(*walk.curves())):
        with progress.task("points between", len(more), "points") as bar:
            walk.visit(more, bar, progress)
    records = walk.in_order()
    summary = [_barriers(records, name, handling) for name in chosen]
    shape = {"length": length(PATHS[path], *tensors), "distances": distances(*tensors)}
    shape["distance"] = math.sqrt(sum(tensor["distance"] ** 2 for tensor in shape["distances"]))
    if alignment is not None:
        shape["alignment"] = {"before": alignment.before, "after": alignment.after, "output_change": alignment.error}
    place.finish(ends, {"summary": summary, **shape})
    return PathResult(records, summary, shape["distance"], shape["length"], alignment)


def _aligned(
    ends: tuple[Path, Path],
    tensors: tuple[Mapping[str, Any], Mapping[str, Any]],
    subject: Subject,
    spec: Path | str | None,
    progress: Progress,
) -> Alignment:
    names = set(subject.model.state_dict())
    a, b = (unwrapped(state, names) for state in tensors)
    subject.load(b, str(ends[1]))
    inputs, _ = next(iter(subject.data.splits.values())).batch(slice(0, PROVED_ON))
    inputs = inputs.to(subject.device)
    symmetry = trace_symmetry(subject.model.eval(), inputs) if spec is None else read_spec(Path(spec), a)
    try:
        return find_alignment(a, b, symmetry, subject.model, inputs, progress=progress)
    except DataError as error:
        raise DataError(f"{ends[0]}, {ends[1]}: {error}") from error


@dataclass(frozen=True)
class _Walk:
    """A path being evaluated, and the records so far."""

    ends: tuple[Path, Path]
    tensors: tuple[Mapping[str, Any], Mapping[str, Any]]
    path: str
    subject: Subject
    splits: tuple[str, ...]
    handling: str
    batchnorm_samples: int
    batch_size: int
    place: "_Place"
    records: list[Record]

    def visit(self, alphas: Sequence[float], bar: Task, progress: Progress) -> None:
        """Evaluate the positions that have no record yet, and keep each."""
        for alpha in alphas:
            if not any(record["alpha"] == alpha for record in self.records):
                self._evaluate(alpha, progress)
                self.place.keep(self.records)
            bar.advance()

    def curves(self) -> tuple[list[float], list[list[float]]]:
        """Positions from 0 to 1, and loss and error of every split at each, where they are known."""
        inside = [record for record in self.in_order() if 0 <= record["alpha"] <= 1]
        alphas = sorted({record["alpha"] for record in inside})
        found = []
        for split in self.splits:
            mine = [record for record in inside if record["split"] == split]
            losses, rights = [r["loss"] for r in mine], [r["accuracy"] for r in mine]
            found += [losses] if None not in losses else []
            found += [[1 - right for right in rights]] if None not in rights else []
        return alphas, found

    def in_order(self) -> list[Record]:
        """The records by position."""
        return sorted(self.records, key=lambda record: record["alpha"])

    def _evaluate(self, alpha: float, progress: Progress) -> None:
        try:
            state = PATHS[self.path](*self.tensors, alpha)
        except DataError as error:
            raise DataError(f"{self.ends[0]}, {self.ends[1]}: {error}") from error
        self.subject.load(state, str(self.ends[0]))
        if self.handling == "recompute" and alpha not in (0, 1):
            splits = self.subject.data.splits
            recompute(self.subject.model, splits.get("train", splits[self.splits[0]]), samples=self.batchnorm_samples)
        for name in self.splits:
            record = _point(self.subject, name, self.batch_size, progress)
            self.records.append(in_order({"alpha": alpha, "split": name, "batchnorm": self.handling, **record}))


def _point(subject: Subject, split: str, batch_size: int, progress: Progress) -> Record:
    samples = subject.data.split(split)
    layer: Any = subject.model.get_submodule(subject.classifier)
    bias = None if layer.bias is None else layer.bias.detach()
    fits = len(samples) * layer.in_features * 4 <= CACHE_BYTES
    with progress.task(split, len(samples) * (1 if fits else 2), "samples") as bar:

        def forward(bar: Task = bar) -> Iterable[Block]:
            options = {"batch_size": batch_size, "device": subject.device, "progress": progress, "bar": bar}
            return forward_blocks(subject.model, subject.classifier, samples, **options)

        held = list(forward()) if fits else None
        return read_blocks(
            lambda: ((block.features, block.labels, block.logits) for block in held or forward()),
            layer.weight.detach().cpu(),
            None if bias is None else bias.cpu(),
        ).record


def _barriers(records: Sequence[Record], split: str, handling: str) -> Record:
    of_split = [r for r in records if r["split"] == split and 0 <= r["alpha"] <= 1]
    alphas = [record["alpha"] for record in of_split]
    summary: Record = {"split": split, "points": len(alphas), "batchnorm": handling}
    quantities = {"loss": [r["loss"] for r in of_split], "error": [1 - r["accuracy"] for r in of_split]}
    for quantity, values in quantities.items():
        found = None if any(value is None for value in values) else barrier(alphas, values)
        summary[f"barrier.{quantity}"] = found.value if found else None
        summary[f"barrier.{quantity}_alpha"] = found.alpha if found else None
        summary[f"barrier.{quantity}_mean"] = found.mean if found else None
    return summary


def _plan(
    ends: tuple[Path, Path], subject: Subject, splits: tuple[str, ...], handling: str, batchnorm_samples: int
) -> Record:
    return {
        "a": content_hash(ends[0]),
        "b": content_hash(ends[1]),
        "splits": list(splits),
        "model": subject.model_name,
        "model_arguments": subject.model_arguments,
        "data": subject.data.name,
        "data_arguments": subject.data.arguments,
        "classifier": subject.classifier,
        "batchnorm": handling,
        "batchnorm_samples": batchnorm_samples if handling == "recompute" else None,
    }


@dataclass(frozen=True)
class _Place:
    """The directory of a path: its plan, the points so far, and the summary once it is finished."""

    path: Path

    def prepare(self, plan: Record, *, overwrite: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path}: a file, where the path's directory is to be")
        if (self.path / PATH_FILE).exists() and not overwrite:
            raise UsageError(f"{self.path}: holds a finished path; --overwrite replaces it, or choose another name")
        if overwrite:
            for name in (PATH_FILE, POINTS_FILE, PLAN_FILE, ALIGNED_FILE):
                (self.path / name).unlink(missing_ok=True)
        if (self.path / PLAN_FILE).exists():
            self._require_same(plan)
            return
        if (self.path / POINTS_FILE).exists():
            raise UsageError(f"{self.path}: holds points of an unknown path; --overwrite replaces them")
        write_text(self.path / PLAN_FILE, json.dumps(plan, indent=2) + "\n")

    def points(self) -> list[Record]:
        file = self.path / POINTS_FILE
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def keep(self, records: Sequence[Record]) -> None:
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        write_text(self.path / POINTS_FILE, text, overwrite=True)

    def finish(self, ends: tuple[Path, Path], found: Record) -> None:
        plan = json.loads((self.path / PLAN_FILE).read_text())
        told = {"from": ends[0].name, "to": ends[1].name, "plan": plan, **found}
        write_text(self.path / PATH_FILE, json.dumps(told, indent=2, allow_nan=False) + "\n", overwrite=True)

    def _require_same(self, plan: Record) -> None:
        earlier = json.loads((self.path / PLAN_FILE).read_text())
        changed = [f"{key} {earlier.get(key)!r} / {plan[key]!r}" for key in plan if earlier.get(key) != plan[key]]
        if changed:
            told = "; ".join(changed)
            raise UsageError(
                f"{self.path}: holds points of another path (there / now): {told}; --overwrite replaces them"
            )
