"""One point of a path or a plane: the record of the weights that a model has now, with a reason for what it lacks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ckpt_probe.analysis import Record, empty_record, read_blocks, settled
from ckpt_probe.dumps import DumpWriter
from ckpt_probe.errors import DataError
from ckpt_probe.extraction import Block, Subject, forward_blocks
from ckpt_probe.moments.quality import Quality, double
from ckpt_probe.paths.batchnorm import recompute
from ckpt_probe.progress import Progress, Task

CACHE_BYTES = 2**30
OF_LOGITS = ("accuracy", "nc4.disagreement")
"""What says nothing where logits overflow."""


def point_plan(subject: Subject, splits: Sequence[str], batchnorm: str, samples: int) -> Record:
    """What is the same at every point of a path or a plane, as its plan tells it."""
    return {
        "splits": list(splits),
        "model": subject.model_name,
        "model_arguments": subject.model_arguments,
        "data": subject.data.name,
        "data_arguments": subject.data.arguments,
        "classifier": subject.classifier,
        "batchnorm": batchnorm,
        "batchnorm_samples": samples if batchnorm == "recompute" else None,
    }


def load_point(
    subject: Subject, state: Mapping[str, Tensor], source: str, splits: Sequence[str], *, samples: int | None
) -> None:
    """Put the weights of a point into a subject's model, in place.

    samples: running statistics are estimated anew from so many of "train", or of the first of `splits` where there is
    none; None: those of the point stay. Raises DataError naming `source` where the weights don't fit.
    """
    subject.load(state, source)
    if samples is not None:
        held = subject.data.splits
        recompute(subject.model, held.get("train", held[splits[0]]), samples=samples)


def evaluate_point(
    subject: Subject, split: str, batch_size: int, progress: Progress, *, writer: DumpWriter | None = None
) -> Record:
    """The record of a model's present weights on one split; features and logits are held where they fit.

    writer: a dump that gets the split as well. Raises DataError where the features have no record.
    """
    samples = subject.data.split(split)
    layer: Any = subject.model.get_submodule(subject.classifier)
    bias = None if layer.bias is None else layer.bias.detach()
    fits = len(samples) * (layer.in_features + layer.out_features) * 4 <= CACHE_BYTES
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


def explained_point(
    subject: Subject, split: str, batch_size: int, progress: Progress, *, writer: DumpWriter | None = None
) -> Record:
    """As `evaluate_point`, but between or beyond trained networks a dead or exploding one is no error.

    Where the features have no record, loss and accuracy alone, and `missing` says why; every name is there.
    """
    try:
        return _overflown(evaluate_point(subject, split, batch_size, progress, writer=writer))
    except DataError as error:
        reason = str(error)
    quality, samples = Quality(), subject.data.split(split)
    options = {"batch_size": batch_size, "device": subject.device, "progress": progress}
    for block in forward_blocks(subject.model, subject.classifier, samples, **options):
        quality.update(double(block.logits), block.labels)
    found = {"samples": len(samples), "accuracy": quality.accuracy, "loss": quality.loss, "missing": reason}
    return _overflown(settled({**empty_record(), **found}, scored=True))


def _overflown(record: Record) -> Record:
    # Of a network that nobody trained, logits that are not finite are no deliberate ones: what they say is nothing.
    if record["loss"] is not None:
        return record
    reason = f"{', '.join(OF_LOGITS)}: the logits overflow to infinity or NaN"
    return {**record, **dict.fromkeys(OF_LOGITS), "missing": f"{record['missing']}; {reason}"}
