"""A plane evaluated point by point: one model, loaded in place; a point without a value says why."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_probe.analysis import Record
from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.errors import DataError
from ckpt_probe.extraction import Subject, forward_blocks
from ckpt_probe.metrics.quality import Quality, double
from ckpt_probe.paths.batchnorm import recompute
from ckpt_probe.paths.directions import Plane
from ckpt_probe.paths.plane_place import PlanePlace
from ckpt_probe.paths.walk import evaluate_point
from ckpt_probe.progress import Progress

PAUSE = 20
"""Records are written again after so many times as long as the last writing took, which so never costs much."""

OF_LOGITS = ("loss", "accuracy", "nc4.disagreement")
"""What has no value where logits are not finite."""


@dataclass(frozen=True)
class Survey:
    """A plane being evaluated, and the records so far; batchnorm: "recompute", "interpolate" or "none"."""

    files: tuple[Path, ...]
    plane: Plane
    subject: Subject
    splits: tuple[str, ...]
    batchnorm: str
    batchnorm_samples: int
    batch_size: int
    place: PlanePlace
    records: list[Record]

    def marks(self, progress: Progress) -> list[Record]:
        """The checkpoints' own records with their own statistics, one for each checkpoint and split."""
        found: list[Record] = []
        batchnorm = "none" if self.batchnorm == "none" else "own"
        for file, (name, x, y) in zip(self.files, self.plane.marks, strict=True):
            with open_checkpoint(file) as checkpoint:
                self.subject.load(checkpoint.state_dict(), str(file))
            where: Record = {"name": name, "checkpoint": file.name, "x": x, "y": y}
            for split in self.splits:
                try:
                    record = evaluate_point(self.subject, split, self.batch_size, progress)
                except DataError as error:
                    raise DataError(f"{file}: {split}: {error}") from error
                found.append({**where, "split": split, "batchnorm": batchnorm, **record})
        return found

    def visit(self, positions: Sequence[tuple[float, float]], marks: Sequence[Record], progress: Progress) -> None:
        """Evaluate the positions (x, y) that have no record yet; what is evaluated is kept whatever stops it."""
        done = {(record["x"], record["y"], record["split"]) for record in self.records}
        names = {mark["split"]: mark for mark in reversed(marks)}
        due = 0.0
        try:
            with progress.task("points", len(positions), "points") as bar:
                for x, y in positions:
                    waiting = [split for split in self.splits if (x, y, split) not in done]
                    if waiting:
                        self._evaluate(x, y, waiting, names, progress)
                    if waiting and time.monotonic() >= due:
                        due = self._kept()
                    bar.advance()
        finally:
            self._kept()

    def in_order(self) -> list[Record]:
        """The records row by row from the lowest, each from the left, splits in their order."""
        return sorted(self.records, key=lambda r: (r["y"], r["x"], self.splits.index(r["split"])))

    def _evaluate(
        self, x: float, y: float, waiting: Sequence[str], names: Mapping[str, Record], progress: Progress
    ) -> None:
        self.subject.load(self.plane.at(x, y), str(self.files[0]))
        if self.batchnorm == "recompute":
            splits = self.subject.data.splits
            recompute(self.subject.model, splits.get("train", splits[self.splits[0]]), samples=self.batchnorm_samples)
        for split in waiting:
            where: Record = {"x": x, "y": y, "split": split, "batchnorm": self.batchnorm}
            values = _settled(self._values(split, progress))
            absent = {name: None for name in names[split] if name not in {"name", "checkpoint"}}
            self.records.append({**absent, **where, **values})

    def _values(self, split: str, progress: Progress) -> Record:
        """The record of the weights loaded; loss and accuracy alone, with the reason, where the rest has no value."""
        try:
            return evaluate_point(self.subject, split, self.batch_size, progress)
        except DataError as error:
            reason = str(error)
        quality, samples = Quality(), self.subject.data.split(split)
        blocks = forward_blocks(
            self.subject.model,
            self.subject.classifier,
            samples,
            batch_size=self.batch_size,
            device=self.subject.device,
            progress=progress,
        )
        for block in blocks:
            quality.update(double(block.logits), block.labels)
        return {"samples": len(samples), "accuracy": quality.accuracy, "loss": quality.loss, "missing": reason}

    def _kept(self) -> float:
        started = time.monotonic()
        self.place.keep(self.records)
        now = time.monotonic()
        return now + PAUSE * (now - started)


def _settled(record: Record) -> Record:
    """A record without infinities, and without what is read from logits where these overflow."""
    wild = [name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
    record = {**record, **dict.fromkeys(wild)}
    reasons = [record["missing"], f"{', '.join(wild)}: not finite" if wild else None]
    if record["loss"] is None:
        record |= dict.fromkeys(OF_LOGITS)
        reasons.append(f"{', '.join(OF_LOGITS)}: the logits overflow to infinity or NaN")
    return {**record, "missing": "; ".join(reason for reason in reasons if reason) or None}
