"""One point of a path or a plane: the record of the weights that a model has now, with a reason for what it lacks."""

from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass

from ckpt_probe.analysis import Record, empty_record, read_blocks, settled
from ckpt_probe.checkpoints import State
from ckpt_probe.dumps import DumpWriter
from ckpt_probe.errors import DataError
from ckpt_probe.extraction import Block, Subject
from ckpt_probe.extraction.scoring import is_scored
from ckpt_probe.moments.quality import Quality
from ckpt_probe.paths.batchnorm import has_batchnorm, recompute
from ckpt_probe.paths.options import Statistics
from ckpt_probe.progress import Progress

CACHE_BYTES = 2**30
OF_LOGITS = ("accuracy", "nc4.disagreement")
"""What says nothing where logits overflow."""


@dataclass(frozen=True)
class Evaluation:
    """A subject evaluated at one set of weights after another.

    statistics: where batch-norm statistics between checkpoints come from.
    """

    subject: Subject
    statistics: Statistics

    @property
    def batchnorm(self) -> str:
        """As records tell it: "recompute", "interpolate", or "none" where the model keeps no running statistics."""
        return self.statistics.batchnorm if has_batchnorm(self.subject.model) else "none"

    def plan(self) -> Record:
        """What is the same at every point, as the plan of a path or a plane tells it."""
        subject = self.subject
        return {
            "splits": list(subject.splits),
            "model": subject.model_name,
            "model_arguments": subject.model_arguments,
            "data": subject.data.name,
            "data_arguments": subject.data.arguments,
            "classifier": subject.classifier,
            "batchnorm": self.batchnorm,
            "batchnorm_samples": self.statistics.samples if self.batchnorm == "recompute" else None,
        }

    def load(self, state: State, source: str, *, own: bool = False) -> str:
        """Put the weights of a point into the model, in place; returns what their batch-norm statistics are called.

        own: the weights are those of a trained network, whose own statistics stay. Raises DataError naming `source`
        where the weights don't fit.
        """
        self.subject.load(state, source)
        if own and self.batchnorm != "none":
            return "own"
        if self.batchnorm == "recompute":
            splits = self.subject.data.splits
            split = splits.get("train", splits[self.subject.splits[0]])
            recompute(self.subject.model, split, samples=self.statistics.samples)
        return self.batchnorm

    def record(self, split: str, progress: Progress, *, writer: DumpWriter | None = None) -> Record:
        """The record of the model's present weights on one split; features and logits are held where they fit.

        writer: a dump that gets the split as well. Raises DataError where the features have no record.
        """
        samples = self.subject.rows_of(split, None) or len(self.subject.data.split(split))
        weights, bias = self.subject.parameters()
        scored = is_scored(self.subject.head, len(weights))
        fits = samples * sum(weights.shape) * 4 <= CACHE_BYTES
        passes = 1 if fits else 2 if writer is None else 3
        # Whatever ends this early, no thread of a forward pass is left behind.
        with progress.task(split, samples * passes, "samples") as bar, ExitStack() as opened:

            def forward() -> Iterable[Block]:
                return opened.enter_context(closing(self.subject.forward(split, progress=progress, bar=bar)))

            held = list(forward()) if fits else None
            if writer is not None:
                writer.start_split(split, samples, logits=not scored, scored=scored)
                rows = 0
                for block in held or forward():
                    writer.append(split, block.features, block.labels, block.scores)
                    rows += len(block.labels)
                writer.leave_out(split, samples - rows)
            return read_blocks(
                lambda: ((block.features, block.labels, block.scores) for block in held or forward()), weights, bias
            ).record

    def explained_record(self, split: str, progress: Progress, *, writer: DumpWriter | None = None) -> Record:
        """As `record`, but between or beyond trained networks a dead or exploding one is no error.

        Where the features have no record, loss and accuracy alone, and `missing` says why; every name is there.
        """
        try:
            return _overflown(self.record(split, progress, writer=writer))
        except DataError as error:
            reason = str(error)
        quality = Quality()
        with closing(self.subject.forward(split, progress=progress)) as blocks:
            for block in blocks:
                quality.update_scores(block.scores, block.labels)
        found = {"samples": quality.samples, "accuracy": quality.accuracy, "loss": quality.loss, "missing": reason}
        return _overflown(settled({**empty_record(), **found}, scored=True))


def _overflown(record: Record) -> Record:
    # Of a network that nobody trained, logits that are not finite are no deliberate ones: what they say is nothing.
    if record["loss"] is not None:
        return record
    reason = f"{', '.join(OF_LOGITS)}: the logits overflow to infinity or NaN"
    return {**record, **dict.fromkeys(OF_LOGITS), "missing": f"{record['missing']}; {reason}"}
