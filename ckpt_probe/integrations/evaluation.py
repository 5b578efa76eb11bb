"""Accumulate one evaluation batch by batch, over all processes of a run, and compute its record."""

from typing import Any

import torch
from torch import Tensor

from ckpt_probe.analysis import FirstPass, Record, Settings, compute_from_moments, in_order
from ckpt_probe.errors import CkptProbeError, UsageError
from ckpt_probe.extraction import labels_of_rows, score_logits
from ckpt_probe.integrations.ranks import gathered, is_first, on_first, rank_and_size
from ckpt_probe.integrations.tap import Tap
from ckpt_probe.metrics.rows import as_labels
from ckpt_probe.models import is_scored
from ckpt_probe.moments.quality import Gathering, Quality

Share = tuple[dict[str, Tensor], dict[str, Any]]
"""Moments by name, and numbers of quality."""


DURING_TRAINING = Settings(exact_limit=1024, tolerance=1e-2, probes=32)
"""Default settings of probes, which avoid eigensolves that would delay the training by minutes."""


def checked_settings(settings: Settings | None) -> Settings:
    """Return the settings of a probe, the default ones for None; raise UsageError for another object."""
    if settings is not None and not isinstance(settings, Settings):
        raise UsageError(f"`settings={settings!r}`: expected a `Settings` object")
    return settings or DURING_TRAINING


class Evaluation:
    """Class moments of one evaluation, from the rows of a tap and their labels.

    An error is raised at the end, in every process, so that no process waits for one that has ended.

    Attributes:
        record: Record of the evaluation; None before its end.

    Args:
        tap: Tap on the model.
        settings: Settings of the record.
        limit: Number of rows of this process that are used; later ones repeat rows of other processes.
    """

    def __init__(self, tap: Tap, settings: Settings, limit: int | None = None) -> None:
        self.record: Record | None = None
        self._tap = tap
        self._settings = settings
        self._remaining = limit
        self._gathering: Gathering | None = None
        self._parameters: tuple[Tensor, Tensor | None] | None = None
        self._error: CkptProbeError | None = None
        self._samples = 0

    def update(self, labels: Tensor, used: int | None = None) -> None:
        """Add the labels of the batch that has just run.

        Args:
            labels: Class indices, shape (n,), or (n, positions) if every position of a sample is a row; rows labelled
                −100 are left out.
            used: Number of leading samples that are used; all if None.
        """
        if self._error is None:
            try:
                self._add(labels, used)
            except CkptProbeError as error:
                self._error = error

    def finish(self, checkpoint: str, step: int, split: str, epoch: float | None = None) -> Record:
        """Compute the record over all processes, the same in each.

        Args:
            checkpoint: Name of the checkpoint.
            step: Training step.
            split: Name of the split.
            epoch: Epoch, if known.

        Raises:
            CkptProbeError: If one was raised in any process.
        """
        origin = {"checkpoint": checkpoint, "step": step, "split": split, **({} if epoch is None else {"epoch": epoch})}
        if self._gathering is not None and self._error is None:
            try:
                self._gathering.finish()
            except CkptProbeError as error:
                self._error = error
        others = gathered(None if is_first() else self._error or share_of(self._gathering))[1:]
        self.record = on_first(lambda: in_order({**origin, **self._read(others)}))
        return self.record

    def _add(self, labels: Tensor, used: int | None) -> None:
        classes = labels if isinstance(labels, Tensor) else as_labels(labels)
        count = classes.shape[0] if classes.ndim else 0  # len() of a tensor takes longer than a small product
        if classes.ndim not in (1, 2) or classes.is_floating_point():
            kind = str(classes.dtype).removeprefix("torch.")
            raise UsageError(f"labels: expected whole numbers (n,), found {tuple(classes.shape)} of {kind}")
        head, rows = self._tap.take(count, positions=self._tap.named and classes.ndim == 2)
        samples = min(limit for limit in (count, used, self._remaining) if limit is not None)
        if self._remaining is not None:
            self._remaining -= samples
        row_labels, mask = labels_of_rows(head, rows.features.shape[0], classes)
        features, logits = rows.features, rows.logits.float()
        documents = self._documents(count, len(features)) if classes.ndim == 2 else None
        if mask is not None or samples < count:
            mask = torch.ones_like(row_labels, dtype=torch.bool) if mask is None else mask
            mask[samples * (len(row_labels) // count) :] = False
            on_device = mask.to(features.device)
            features, logits, row_labels = features[on_device], logits[on_device], row_labels[mask]
            documents = None if documents is None else documents[mask.cpu()]
        if self._gathering is None:
            # At the end of the evaluation, a callback that averages weights may have put others into the model.
            self._parameters = self._tap.parameters()
            rank, ranks = rank_and_size()
            self._gathering = Gathering(self._settings.moments(len(self._parameters[0])), rank=rank, ranks=ranks)
        row_labels = row_labels.to(features.device)
        scores = score_logits(logits, row_labels) if is_scored(head, logits.shape[1]) else logits
        self._gathering.add(features, row_labels, scores, documents)

    def _documents(self, samples: int, rows: int) -> Tensor:
        """Return the sample of each row (m,), numbered over all processes, for samples whose positions are rows."""
        rank, ranks = rank_and_size()
        numbers = torch.arange(self._samples, self._samples + samples)
        self._samples += samples
        return (rank + ranks * numbers).repeat_interleave(rows // samples)

    def _read(self, others: list[Any]) -> Record:
        """Compute the record from this process and the errors or shares of the others."""
        for rank, error in enumerate([self._error, *others]):
            if isinstance(error, CkptProbeError):
                raise type(error)(f"rank {rank}: {error}") if others else error
        weights, bias = self._parameters or self._tap.parameters()
        total = self._gathering or Gathering(self._settings.moments(len(weights)))
        for share in filter(None, others):
            merge_share(total, share, self._settings)
        return compute_from_moments(
            FirstPass(total.moments, total.quality), weights, bias, settings=self._settings
        ).record


def share_of(gathering: Gathering | None) -> Share | None:
    """Return moments on the CPU and quality of the samples of this process, to be sent to another; None without any."""
    if gathering is not None:
        gathering.finish()
    if gathering is None or not gathering.moments.samples:
        return None
    state = {name: tensor.cpu() for name, tensor in gathering.moments.state_dict().items()}
    return state, gathering.quality.to_numbers()


def merge_share(gathering: Gathering, share: Share, settings: Settings) -> None:
    """Add moments and quality from `share_of` to those of an evaluation."""
    state, numbers = share
    part = settings.moments(gathering.moments.classes)
    part.load_state_dict(state)
    gathering.moments.merge(part)
    gathering.quality.merge(Quality.from_numbers(numbers))
