"""Every number along the line between two checkpoints: one model, built once, nothing written but the records."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_probe.analysis import Record, in_order, read_blocks
from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import Block, Subject, Wanted, forward_blocks, open_subject
from ckpt_probe.files import content_hash, write_text
from ckpt_probe.paths.barrier import barrier
from ckpt_probe.paths.batchnorm import has_batchnorm, recompute
from ckpt_probe.paths.linear import linear
from ckpt_probe.paths.matching import check_match
from ckpt_probe.progress import Progress, Silent, Task

CACHE_BYTES = 2**30
POINTS_FILE = "points.jsonl"
PATH_FILE = "path.json"
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class PathResult:
    """Records of the points, one for each α and split, and the barriers, one record for each split."""

    points: list[Record]
    summary: list[Record]


def evaluate_path(
    a: Path | str,
    b: Path | str,
    out: Path | str,
    *,
    points: int = 11,
    splits: Sequence[str] | None = None,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    data: str | None = None,
    data_arguments: Mapping[str, Any] | None = None,
    classifier: str | None = None,
    batchnorm: str = "recompute",
    batch_size: int = 256,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PathResult:
    """Loss, accuracy and every metric at `points` positions on the line from checkpoint a to b, on every split.

    Writes `out`/points.jsonl as the points come and `out`/path.json at the end; an interrupted call goes on after the
    last point. `batchnorm`: "recompute" estimates running statistics anew at each interior point, "interpolate" takes
    those on the line. Raises UsageError and DataError as extraction does; DataError where the checkpoints differ.
    """
    progress = progress or Silent()
    if points < 3 or batchnorm not in {"recompute", "interpolate"}:
        raise UsageError("a path needs at least 3 points, and batchnorm is recompute or interpolate")
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
    place.prepare(_plan(ends, subject, chosen, points, handling), overwrite=overwrite)
    records = place.points()
    with progress.task("points", points, "points") as bar:
        bar.advance(len({record["alpha"] for record in records}))
        for number in range(points):
            alpha = number / (points - 1)
            if any(record["alpha"] == alpha for record in records):
                continue
            try:
                state = linear(tensors[0], tensors[1], alpha)
            except DataError as error:
                raise DataError(f"{ends[0]}, {ends[1]}: {error}") from error
            subject.load(state, str(ends[0]))
            if handling == "recompute" and 0 < alpha < 1:
                recompute(subject.model, subject.data.splits.get("train", subject.data.split(chosen[0])))
            for name in chosen:
                record = _point(subject, name, batch_size, progress)
                records.append(in_order({"alpha": alpha, "split": name, "batchnorm": handling, **record}))
            place.keep(records)
            bar.advance()
    summary = [_barriers(records, name, handling) for name in chosen]
    place.finish(ends, summary)
    return PathResult(records, summary)


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
    of_split = sorted((r for r in records if r["split"] == split), key=lambda r: r["alpha"])
    alphas = [record["alpha"] for record in of_split]
    summary: Record = {"split": split, "points": len(alphas), "batchnorm": handling}
    quantities = {"loss": [r["loss"] for r in of_split], "error": [1 - r["accuracy"] for r in of_split]}
    for quantity, values in quantities.items():
        found = None if any(value is None for value in values) else barrier(alphas, values)
        summary[f"barrier.{quantity}"] = found.value if found else None
        summary[f"barrier.{quantity}_alpha"] = found.alpha if found else None
        summary[f"barrier.{quantity}_mean"] = found.mean if found else None
    return summary


def _plan(ends: tuple[Path, Path], subject: Subject, splits: tuple[str, ...], points: int, handling: str) -> Record:
    return {
        "a": content_hash(ends[0]),
        "b": content_hash(ends[1]),
        "path": "linear",
        "points": points,
        "splits": list(splits),
        "model": subject.model_name,
        "model_arguments": subject.model_arguments,
        "data": subject.data.name,
        "data_arguments": subject.data.arguments,
        "classifier": subject.classifier,
        "batchnorm": handling,
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
            for name in (PATH_FILE, POINTS_FILE, PLAN_FILE):
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

    def finish(self, ends: tuple[Path, Path], summary: Sequence[Record]) -> None:
        plan = json.loads((self.path / PLAN_FILE).read_text())
        told = {"from": ends[0].name, "to": ends[1].name, "plan": plan, "summary": list(summary)}
        write_text(self.path / PATH_FILE, json.dumps(told, indent=2, allow_nan=False) + "\n", overwrite=True)

    def _require_same(self, plan: Record) -> None:
        earlier = json.loads((self.path / PLAN_FILE).read_text())
        changed = [f"{key} {earlier.get(key)!r} / {plan[key]!r}" for key in plan if earlier.get(key) != plan[key]]
        if changed:
            told = "; ".join(changed)
            raise UsageError(
                f"{self.path}: holds points of another path (there / now): {told}; --overwrite replaces them"
            )
