"""A path evaluated point by point: one model, loaded in place; nothing written but the records."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_probe.analysis import Record, in_order, read_blocks
from ckpt_probe.errors import DataError
from ckpt_probe.extraction import Block, Subject, forward_blocks
from ckpt_probe.paths.barrier import barrier
from ckpt_probe.paths.batchnorm import recompute
from ckpt_probe.paths.linear import linear
from ckpt_probe.paths.place import PathPlace
from ckpt_probe.paths.slerp import slerp
from ckpt_probe.progress import Progress, Task

PATHS = {"linear": linear, "slerp": slerp}
"""A path: (state dict a, state dict b, α) → the state dict there."""

Ends = tuple[Mapping[str, Any], Mapping[str, Any]]
"""State dicts of both ends."""

CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Walk:
    """A path being evaluated, and the records so far; batchnorm: "recompute", "interpolate" or "none"."""

    ends: tuple[Path, Path]
    tensors: Ends
    path: str
    subject: Subject
    splits: tuple[str, ...]
    batchnorm: str
    batchnorm_samples: int
    batch_size: int
    place: PathPlace
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
        if self.batchnorm == "recompute" and alpha not in (0, 1):
            splits = self.subject.data.splits
            recompute(self.subject.model, splits.get("train", splits[self.splits[0]]), samples=self.batchnorm_samples)
        for name in self.splits:
            record = evaluate_point(self.subject, name, self.batch_size, progress)
            self.records.append(in_order({"alpha": alpha, "split": name, "batchnorm": self.batchnorm, **record}))


def evaluate_point(subject: Subject, split: str, batch_size: int, progress: Progress) -> Record:
    """The record of the weights that a subject's model has now, on one split; features are held where they fit."""
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


def barriers(records: Sequence[Record], split: str, batchnorm: str) -> Record:
    """The barriers of loss and error of a split between 0 and 1, with the α of each and the mean excess."""
    of_split = [r for r in records if r["split"] == split and 0 <= r["alpha"] <= 1]
    alphas = [record["alpha"] for record in of_split]
    summary: Record = {"split": split, "points": len(alphas), "batchnorm": batchnorm}
    quantities = {"loss": [r["loss"] for r in of_split], "error": [1 - r["accuracy"] for r in of_split]}
    for quantity, values in quantities.items():
        found = None if any(value is None for value in values) else barrier(alphas, values)
        summary[f"barrier.{quantity}"] = found.value if found else None
        summary[f"barrier.{quantity}_alpha"] = found.alpha if found else None
        summary[f"barrier.{quantity}_mean"] = found.mean if found else None
    return summary
