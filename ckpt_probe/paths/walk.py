"""A path evaluated point by point: one model, loaded in place; nothing written but the records."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ckpt_probe.analysis import Record, in_order, read_blocks
from ckpt_probe.dumps import DumpWriter
from ckpt_probe.errors import DataError
from ckpt_probe.extraction import Block, Subject, forward_blocks
from ckpt_probe.paths.barrier import barrier
from ckpt_probe.paths.batchnorm import recompute
from ckpt_probe.paths.place import PathPlace
from ckpt_probe.paths.point_dumps import point_writer
from ckpt_probe.progress import Progress, Task

CACHE_BYTES = 2**30
PAUSE = 20
"""Records are written again after so many times as long as the last writing took, which so never costs much."""


@dataclass(frozen=True)
class Walk:
    """A path being evaluated, and the records so far.

    state_at: α → the state dict there. batchnorm: "recompute", "interpolate" or "none". dumps: whether each point's
    features are kept.
    """

    ends: tuple[Path, Path]
    state_at: Callable[[float], Mapping[str, Tensor]]
    subject: Subject
    splits: tuple[str, ...]
    batchnorm: str
    batchnorm_samples: int
    batch_size: int
    place: PathPlace
    records: list[Record]
    dumps: bool = False

    def visit(self, alphas: Sequence[float], bar: Task, progress: Progress) -> None:
        """Evaluate the positions that have no record yet; what is evaluated is kept whatever stops it."""
        due = 0.0
        try:
            for alpha in alphas:
                if not any(record["alpha"] == alpha for record in self.records):
                    self.records.extend(self._evaluate(alpha, progress))
                    due = self._keep() if time.monotonic() >= due else due
                bar.advance()
        finally:
            if self.records:
                self._keep()

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

    def _keep(self) -> float:
        """Write the records; returns when it is time to do so again."""
        started = time.monotonic()
        self.place.keep(self.records)
        now = time.monotonic()
        return now + PAUSE * (now - started)

    def _evaluate(self, alpha: float, progress: Progress) -> list[Record]:
        try:
            state = self.state_at(alpha)
        except DataError as error:
            raise DataError(f"{self.ends[0]}, {self.ends[1]}: {error}") from error
        self.subject.load(state, str(self.ends[0]))
        if self.batchnorm == "recompute" and alpha not in (0, 1):
            splits = self.subject.data.splits
            recompute(self.subject.model, splits.get("train", splits[self.splits[0]]), samples=self.batchnorm_samples)
        place, records = {"alpha": alpha, "batchnorm": self.batchnorm}, []
        path, name = self.place.dump(alpha), f"{self.ends[0].stem} to {self.ends[1].stem}, alpha {alpha:g}"
        with point_writer(path, name, alpha, self.subject, self.splits) if self.dumps else nullcontext() as writer:
            for split in self.splits:
                try:
                    record = evaluate_point(self.subject, split, self.batch_size, progress, writer=writer)
                except DataError as error:
                    raise DataError(f"{self.ends[0]}, {self.ends[1]}: alpha {alpha:g}, {split}: {error}") from error
                records.append(in_order({**place, "split": split, **record}))
        return records


def evaluate_point(
    subject: Subject, split: str, batch_size: int, progress: Progress, *, writer: DumpWriter | None = None
) -> Record:
    """The record of the weights that a subject's model has now, on one split; features are held where they fit.

    writer: a dump that gets the split as well.
    """
    samples = subject.data.split(split)
    layer: Any = subject.model.get_submodule(subject.classifier)
    bias = None if layer.bias is None else layer.bias.detach()
    fits = len(samples) * layer.in_features * 4 <= CACHE_BYTES
    passes = 1 if fits else 2 if writer is None else 3
    with progress.task(split, len(samples) * passes, "samples") as bar:

        def forward(bar: Task = bar) -> Iterable[Block]:
            options = {"batch_size": batch_size, "device": subject.device, "progress": progress, "bar": bar}
            return forward_blocks(subject.model, subject.classifier, samples, **options)

        held = list(forward()) if fits else None
        if writer is not None:
            writer.start_split(split, len(samples))
            for block in held or forward():
                writer.append(split, block.features, block.labels, block.logits)
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
