"""One position of a path or a plane: batch-norm statistics and record of the weights that a model has, and its dump."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from ckpt_probe.analysis import Record, Settings, empty_record, settled
from ckpt_probe.analysis.dump import TRAIN
from ckpt_probe.analysis.entries import BIAS, STDERR
from ckpt_probe.analysis.record import Context, accumulate, compute_from_blocks
from ckpt_probe.checkpoints import State
from ckpt_probe.data import Split, ready_parts, split_lengths
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import Block, Storage, StoreWriter, Subject, is_scored
from ckpt_probe.metrics.rows import double
from ckpt_probe.models import call, on_device
from ckpt_probe.moments.errors import RecordWithErrors
from ckpt_probe.moments.quality import Quality, Scored
from ckpt_probe.moments.registry import INFINITE_LOGITS
from ckpt_probe.paths.options import SAMPLES, PathOptions, PlaneOptions
from ckpt_probe.progress import Progress

CACHE_BYTES = 2**30
OF_LOGITS = ("accuracy", "nc4.disagreement", "nc4.disagreement_train_means")
"""Metrics without a value if logits overflow."""

BATCH = 256


@dataclass
class PointEvaluation:
    """Evaluates one set of weights after another with the same model and data.

    Attributes:
        subject: Model and data.
        options: Source of the batch-norm statistics between checkpoints, and whether records have standard errors.
        train_means: Class means (C, D) of the training split under the present weights, or None.
    """

    subject: Subject
    options: PathOptions | PlaneOptions
    train_means: Tensor | None = field(default=None, init=False)

    @property
    def splits(self) -> list[str]:
        """Splits in the order of their evaluation: the training split first, whose class means the others need."""
        return sorted(self.subject.splits, key=lambda split: split != TRAIN)

    @property
    def batchnorm(self) -> str:
        """ "recompute", "interpolate", or "none" for a model without running statistics."""
        return self.options.batchnorm if has_batchnorm(self.subject.model) else "none"

    def plan(self) -> Record:
        """Return the settings that all positions share."""
        subject = self.subject
        return {
            "splits": list(subject.splits),
            "model": subject.model_name,
            "model_arguments": subject.model_arguments,
            "data": subject.data.name,
            "data_arguments": subject.data.arguments,
            "classifier": subject.classifier,
            "batchnorm": self.batchnorm,
            "batchnorm_samples": self.options.batchnorm_samples if self.batchnorm == "recompute" else None,
        }

    def load(self, state: State, source: str, *, keep_batchnorm: bool = False) -> str:
        """Load weights into the model, in place.

        Args:
            state: The weights.
            source: Name of the weights in messages.
            keep_batchnorm: Whether to keep the batch-norm statistics in `state`, which are those of a trained network.

        Returns:
            The source of the batch-norm statistics: "own", "recompute", "interpolate" or "none".

        Raises:
            DataError: If the weights do not fit the model.
        """
        self.train_means = None
        self.subject.load(state, source)
        if keep_batchnorm and self.batchnorm != "none":
            return "own"
        if self.batchnorm == "recompute":
            splits = self.subject.data.splits
            split = splits.get(TRAIN, splits[self.subject.splits[0]])
            recompute(self.subject.model, split, samples=self.options.batchnorm_samples)
        return self.batchnorm

    def record(self, split: str, progress: Progress, *, writer: StoreWriter | None = None) -> RecordWithErrors:
        """Compute the record of the model's present weights on one split.

        Features and logits are kept in memory between passes if they fit into 1 GiB, else computed again.

        Args:
            split: Name of the split.
            progress: Receives messages and a bar.
            writer: Writer of a dump to which the split is added.

        Raises:
            DataError: If the features have no record.
        """
        samples = self.subject.rows_of(split, None) or len(self.subject.data.split(split))
        weights, bias = self.subject.parameters()
        scored = is_scored(self.subject.head, len(weights))
        fits = samples * sum(weights.shape) * 4 <= CACHE_BYTES
        passes = 1 if fits else 2 if writer is None else 3
        # Every forward pass is closed on leaving, which ends the thread behind it.
        with progress.task(split, samples * passes, "samples") as bar, ExitStack() as stack:

            def forward() -> Iterable[Block]:
                return stack.enter_context(closing(self.subject.forward(split, progress=progress, bar=bar)))

            blocks = list(forward()) if fits else None
            if writer is not None:
                writer.write_split(split, blocks or forward(), rows=samples, scores="scored" if scored else "logits")
            rows, settings = _RowsOfBlocks(lambda: blocks or forward()), Settings(errors=self.options.errors)
            first = accumulate(rows, weights, bias, settings)
            if split == TRAIN:
                self.train_means = double(first.moments.means_of_classes(settings.min_samples))
            context = Context(training=split == TRAIN, train_means=None if split == TRAIN else self.train_means)
            detailed = compute_from_blocks(rows, weights, bias, settings, context, first)
            return RecordWithErrors(detailed.record, detailed.influences)

    def explained_record(
        self, split: str, progress: Progress, *, writer: StoreWriter | None = None
    ) -> RecordWithErrors:
        """Compute `record` for weights that nobody trained, where dead or exploding features are no error.

        Returns:
            The record; if the features have none, loss and accuracy alone, with the reason in `missing`.
        """
        try:
            return _without_overflow(self.record(split, progress, writer=writer))
        except DataError as error:
            reason = str(error)
        quality = Quality()
        with closing(self.subject.forward(split, progress=progress)) as blocks:
            for block in blocks:
                quality.update_scores(block.scores, block.labels)
        if quality.loss is None:
            reason = f"{reason}; loss: {INFINITE_LOGITS}"
        values = {"samples": quality.samples, "accuracy": quality.accuracy, "loss": quality.loss, "missing": reason}
        return _without_overflow(RecordWithErrors(settled({**empty_record(), **values}), None))


@dataclass
class _RowsOfBlocks:
    """A pass over blocks, which knows the documents of the rows that it yielded last.

    Attributes:
        blocks: Starts the pass.
        start: Index of the first row.
        latest: Documents of the block that was yielded last, (n,), or None.
    """

    blocks: Callable[[], Iterable[Block]]
    start: int = 0
    latest: Tensor | None = None

    def __call__(self) -> Iterator[tuple[Tensor, Tensor, Tensor | Scored | None]]:
        for block in self.blocks():
            self.latest = block.documents
            yield block.features, block.labels, block.scores

    def documents(self, start: int, stop: int) -> Tensor | None:
        """Return the documents (n,) of the rows `start` … `stop`, those of the last block, or None."""
        return self.latest


def point_writer(path: Path, name: str, coordinate: float, subject: Subject) -> StoreWriter:
    """Return a writer of the dump of the weights that a model has now, for a `with` block.

    The weights are in no file, so the provenance has the size and the hash of the tensors. The number in a dump's name
    would be taken for its step, so the step is stored: the coordinate in millionths, which sorts dumps along the path.

    Args:
        path: The dump.
        name: Name of the position, for the provenance.
        coordinate: Position on the path.
        subject: Model and data.
    """
    tensors = {key: entry for key, entry in subject.model.state_dict().items() if isinstance(entry, Tensor)}
    size, digest = 0, hashlib.sha256()
    for key, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        size += tensor.nbytes
        digest.update(key.encode())
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    step = round(coordinate * 1e6)
    provenance = subject.provenance(name, size, digest.hexdigest(), step=step, epoch=None, storage=Storage())
    weights, bias = subject.parameters()
    # A position with a dump but no record is evaluated again.
    names = subject.data.class_names
    return StoreWriter(path, provenance, Storage(), weights, bias, class_names=names, overwrite=True)


def has_batchnorm(model: nn.Module) -> bool:
    """Return whether a model has running statistics."""
    return bool(_layers(model))


def recompute(model: nn.Module, split: Split, *, samples: int = SAMPLES) -> None:
    """Estimate all running statistics in place, as averages over batches of the first training samples.

    Batches have nearly equal sizes, which weight them. All other layers run in evaluation mode, without dropout
    (Izmailov et al. 2018).

    Args:
        model: The network.
        split: Training split.
        samples: Largest number of samples.

    Raises:
        UsageError: If there is only one sample, which has no variance.
    """
    count = min(samples, len(split))
    if count < 2:
        raise UsageError(
            "batch-norm statistics cannot be computed from one sample; use more samples, or interpolate them"
        )
    layers = _layers(model)
    momenta = [layer.momentum for layer in layers]
    parameter = next(model.parameters())
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
    batches = math.ceil(count / BATCH)
    ends = [count * number // batches for number in range(batches + 1)]
    with torch.no_grad():
        seen = 0
        with ready_parts(split, [slice(start, end) for start, end in pairwise(ends)]) as parts:
            for inputs, labels in parts:
                seen += len(labels)
                for layer in layers:
                    layer.momentum = len(labels) / seen
                call(model, on_device(split_lengths(inputs)[0], parameter.device, parameter.dtype))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()


def drop_statistics(model: nn.Module) -> None:
    """Make a model's normalisation layers use the statistics of each batch, also in evaluation mode."""
    for layer in _layers(model):
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None


def _without_overflow(record: RecordWithErrors) -> RecordWithErrors:
    # Logits of an untrained network that are not finite say nothing about its predictions.
    if record["loss"] is not None:
        return record
    undefined = [name for name in record if name.removesuffix(STDERR).removesuffix(BIAS) in OF_LOGITS]
    reason = f"{', '.join(undefined)}: the logits overflow to infinity or NaN"
    values = {**record, **dict.fromkeys(undefined), "missing": f"{record['missing']}; {reason}"}
    return RecordWithErrors(values, record.influences)


def _layers(model: nn.Module) -> list[nn.modules.batchnorm._NormBase]:
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    return [layer for layer in layers if layer.track_running_stats]
