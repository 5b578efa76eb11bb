"""Accuracy, mean cross-entropy and calibration of logits that come in blocks, or that a linear classifier computes."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.decisions import LinearDecision
from ckpt_probe.metrics.rows import Array, as_bias, as_labels, as_tensor, double

if TYPE_CHECKING:
    from ckpt_probe.moments.accumulator import Moments

BINS = 15
"""Bins of equal width of the expected calibration error (Guo et al. 2017)."""

FEW_CLASSES = 2048
"""Up to this number of classes the logits of a row are computed at once; above, in parts of this number of classes."""

LOGITS_AT_ONCE = 2**21
"""Logits of a block, which fit into the processor's cache."""

CLASSES_OF_DEVICE = 2**14
"""Classes of a block on devices other than the CPU, where few large products cost less than many small ones."""

GATHERED_ROWS = 8192
GATHERED_BYTES = 2**26
"""Small blocks are gathered up to this size, because small blocks take far more time per row."""


@dataclass(frozen=True)
class Scored:
    """Predicted classes, losses and confidences of samples, in place of their logits.

    Attributes:
        prediction: Predicted classes, (n,).
        loss: Cross-entropies in nats, (n,).
        confidence: Largest probabilities, (n,), NaN where unknown; None if all are unknown.
    """

    prediction: Array
    loss: Array
    confidence: Array | None = None

    @property
    def predicted(self) -> Tensor:
        """Return the predicted classes as whole numbers on the CPU, (n,)."""
        return as_tensor(self.prediction, "predictions").cpu().to(torch.int64)

    def rows(self, indices: Tensor) -> "Scored":
        """Return the scores of some samples, by their indices (m,)."""
        confidence = None if self.confidence is None else as_tensor(self.confidence, "confidences")[indices]
        prediction, loss = as_tensor(self.prediction, "predictions"), as_tensor(self.loss, "losses")
        return Scored(prediction[indices], loss[indices], confidence)

    @staticmethod
    def of_rows(rows: Tensor, labels: Tensor, weights: Tensor, bias: Tensor | None) -> "Scored":
        """Compute the scores of rows, with the logits of some rows and some classes at a time.

        Args:
            rows: Rows, (n, D), on the device of all other tensors.
            labels: Labels, (n,).
            weights: Classifier weights, (C, D).
            bias: Classifier bias, (C,), or None.
        """
        at_once, classes = _rows_at_once(FEW_CLASSES), classes_at_once(rows.device)
        starts = range(0, len(weights), classes)
        heads = [(weights[s : s + classes], None if bias is None else bias[s : s + classes]) for s in starts]
        parts = zip(rows.split(at_once), labels.split(at_once), strict=True)
        scored = [Scored.of_logits((F.linear(part, *head) for head in heads), numbers) for part, numbers in parts]
        columns = zip(*((each.prediction, each.loss, each.confidence) for each in scored), strict=True)
        return Scored(*(torch.cat([as_tensor(part) for part in column]) for column in columns))

    @staticmethod
    def of_logits(blocks: Iterable[Tensor], labels: Tensor) -> "Scored":
        """Compute scores from logits that come for some classes at a time.

        Of equal logits the first one is predicted. The loss of a label outside the classes is meaningless.

        Args:
            blocks: Logits (n, c) of consecutive classes; half precision is converted to float32.
            labels: Labels, (n,).
        """
        prediction, start = torch.zeros_like(labels), 0
        highest = total = labelled = torch.empty(0)
        for logits in blocks:
            logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
            if not start:
                highest = logits.new_full((len(labels),), torch.finfo(logits.dtype).min)
                total, labelled = torch.zeros_like(highest), torch.zeros_like(highest)
            inside = (labels - start).clamp(0, logits.shape[1] - 1)
            in_block = (labels >= start) & (labels < start + logits.shape[1])
            labelled = torch.where(in_block, logits.gather(1, inside[:, None])[:, 0], labelled)
            best, index = logits.max(dim=1)
            prediction = torch.where(best > highest, index + start, prediction)
            before, highest = highest, torch.maximum(highest, best)
            # Sums are relative to the highest logit so far, as exponentials of large ones overflow.
            total = total * (before - highest).exp() + (logits - highest[:, None]).exp_().sum(dim=1)
            start += logits.shape[1]
        return Scored(prediction, highest + total.log() - labelled, total.reciprocal())


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier in float64 on the CPU.

    Attributes:
        weights: Weights, (C, D).
        bias: Bias, (C,), or None.
    """

    weights: Tensor
    bias: Tensor | None

    @staticmethod
    def of(weights: Array | None, bias: Array | None) -> "LinearHead | None":
        """Return the classifier of these arrays, or None without weights.

        Raises:
            DataError: If the shapes of weights and bias do not match, or the bias contains NaN.
        """
        if weights is None:
            return None
        W = double(weights, "classifier weights")
        if W.ndim != 2:
            raise DataError(f"classifier weights: expected shape (classes, features), found {tuple(W.shape)}")
        return LinearHead(W, None if bias is None else double(as_bias(bias, len(W))))

    def logits(self, features: Array) -> Tensor:
        """Return the logits W z + b of features (n, D), (n, C)."""
        return F.linear(self._rows(features), self.weights, self.bias)

    def decision(self) -> LinearDecision:
        """Return an object that predicts classes without computing all logits."""
        return LinearDecision(self.weights, self.bias)

    def scored(self, features: Array, labels: Tensor) -> Scored:
        """Return the scores of features (n, D) with labels (n,), without the logits of all classes."""
        return Scored.of_rows(self._rows(features), labels, self.weights, self.bias)

    def _rows(self, features: Array) -> Tensor:
        rows = double(features, "features")
        if rows.shape[-1] != self.weights.shape[1]:
            expected, actual = f"(classes, {rows.shape[-1]})", tuple(self.weights.shape)
            raise DataError(f"classifier weights: expected shape {expected}, found {actual}")
        return rows


class Quality:
    """Counts of scored and correctly predicted samples, their summed cross-entropy in nats, and their calibration.

    Attributes:
        samples: Number of scored samples.
        right: Number of correctly predicted samples.
        summed_loss: Sum of their cross-entropies.
        unpredicted: Number of samples without a prediction, because logits are NaN or all −∞.
        confident: Number of samples with a known confidence, which is the largest probability.
        gaps: Sums of confidence minus correctness over the samples in each of `BINS` bins of confidence, (BINS,).
    """

    def __init__(self, samples: int = 0, right: int = 0, loss: float = 0.0) -> None:
        self.samples = samples
        self.right = right
        self.summed_loss = loss
        self.unpredicted = 0
        self.confident = 0
        self.gaps = torch.zeros(BINS, dtype=torch.float64)

    def update(self, logits: Tensor | None, labels: Tensor) -> Tensor | None:
        """Add logits (n, C) and labels (n,); return the predicted classes (n,), or None without logits."""
        if logits is None or not len(logits):
            return None
        numbers = labels.to(logits.device, torch.int64)
        prediction = logits.argmax(dim=1)
        losses = F.cross_entropy(logits, numbers, reduction="none")
        # The loss of a label is −log of its probability, so that of the prediction needs no second softmax, except
        # where the label has probability zero, as that of a masked class.
        highest, labelled = (logits.gather(1, classes[:, None])[:, 0] for classes in (prediction, numbers))
        confidence = (highest - labelled - losses).exp()
        if bool((masked := labelled == -math.inf).any()):
            confidence[masked] = logits[masked].softmax(dim=1).amax(dim=1)
        # NaN counts as the largest number.
        self.unpredicted += len(highest) - int((highest > -math.inf).sum())
        self._add(prediction, numbers, float(losses.sum()), confidence)
        return prediction

    def update_scored(self, scored: Scored, labels: Array) -> Tensor:
        """Add predictions and losses of samples with labels (n,); return the predicted classes (n,)."""
        prediction = scored.predicted
        confidence = None if scored.confidence is None else double(scored.confidence)
        losses, numbers = double(scored.loss), as_labels(labels).cpu().to(torch.int64)
        self.unpredicted += int((losses.isnan() & (numbers >= 0)).sum())
        self._add(prediction, numbers, float(losses.sum()), confidence)
        return prediction

    def update_scores(self, scores: Array | Scored | None, labels: Array) -> Tensor | None:
        """Add samples with logits (n, C) of any dtype, or with predictions and losses; nothing without scores.

        Returns:
            Predicted classes, (n,); None without scores.
        """
        if isinstance(scores, Scored):
            return self.update_scored(scores, labels)
        return None if scores is None else self.update(double(scores), as_labels(labels))

    def update_head(self, head: LinearHead, features: Array, labels: Array) -> Tensor:
        """Add features (n, D), whose logits a classifier computes for some rows or classes at a time.

        Returns:
            Predicted classes, (n,).
        """
        numbers, classes = as_labels(labels).cpu().to(torch.int64), len(head.weights)
        if classes > FEW_CLASSES:
            return self.update_scored(head.scored(features, numbers), numbers)
        rows, at_once = as_tensor(features, "features"), _rows_at_once(classes)
        parts = zip(rows.split(at_once), numbers.split(at_once), strict=True)
        predictions = [self.update(head.logits(part), of_part) for part, of_part in parts if len(part)]
        return torch.cat([part for part in predictions if part is not None]) if predictions else numbers

    def merge(self, other: "Quality") -> None:
        """Add the samples of another object."""
        self.samples += other.samples
        self.right += other.right
        self.summed_loss += other.summed_loss
        self.unpredicted += other.unpredicted
        self.confident += other.confident
        self.gaps = self.gaps + other.gaps

    @property
    def accuracy(self) -> float | None:
        """Return the share of correctly predicted samples; None without scored samples, or if one has no prediction."""
        return self.right / self.samples if self.samples and not self.unpredicted else None

    @property
    def loss(self) -> float | None:
        """Return the mean cross-entropy; None without scored samples, or if it is not finite."""
        mean = self.summed_loss / self.samples if self.samples else math.inf
        return mean if math.isfinite(mean) else None

    @property
    def calibration_error(self) -> Tensor | None:
        """Return the expected calibration error (Guo et al. 2017), 0-d; None if a confidence is unknown.

        Σ_b (n_b/N) |mean confidence − accuracy| over bins b of equal width in which the confidence lies.
        """
        return self.gaps.abs().sum() / self.samples if self.samples and self.confident == self.samples else None

    def to_numbers(self) -> dict[str, Any]:
        """Return counts and sums by name, for `from_numbers`."""
        numbers = {"scored": self.samples, "right": self.right, "summed_loss": self.summed_loss}
        numbers["unpredicted"] = self.unpredicted
        return {**numbers, "confident": self.confident, "confidence_gaps": self.gaps.tolist()}

    @staticmethod
    def from_numbers(numbers: Mapping[str, Any]) -> "Quality":
        """Return the object with the numbers of `to_numbers`; those of earlier versions have no calibration."""
        quality = Quality(int(numbers["scored"]), int(numbers["right"]), float(numbers["summed_loss"]))
        quality.unpredicted = int(numbers.get("unpredicted", 0))
        gaps = torch.as_tensor(numbers.get("confidence_gaps", ()), dtype=torch.float64)
        if gaps.shape == (BINS,):
            quality.gaps, quality.confident = gaps, int(numbers["confident"])
        return quality

    def _add(self, prediction: Tensor, labels: Tensor, loss: float, confidence: Tensor | None = None) -> None:
        correct = prediction == labels
        self.samples += len(labels)
        self.right += int(correct.sum())
        self.summed_loss += loss
        if confidence is not None:
            known = confidence.isfinite()
            confidence, correct = confidence[known], correct[known].to(torch.float64)
            gaps = torch.zeros(BINS, dtype=torch.float64, device=confidence.device)
            changes = confidence.to(torch.float64) - correct
            self.gaps = self.gaps + gaps.index_add(0, bins_of(confidence), changes).cpu()
            self.confident += len(confidence)


class Gathering:
    """Accumulates class moments, accuracy and loss from blocks of any size; `finish` adds the last blocks.

    Args:
        moments: Accumulator of the class moments.
        head: Classifier that computes the logits of blocks without scores, or None.
        rank: Number of this process among those that see every other row.
        ranks: Number of these processes; row i of this one has the index rank + i · ranks.

    Attributes:
        quality: Accuracy and loss.
    """

    def __init__(self, moments: "Moments", head: LinearHead | None = None, *, rank: int = 0, ranks: int = 1) -> None:
        self.moments = moments
        self.quality = Quality()
        self._head = head
        self._waiting: list[tuple[Tensor, Tensor, Tensor | Scored | None, Tensor | None]] = []
        self._rows = self._bytes = 0
        self._rank, self._ranks = rank, ranks
        self._seen = 0

    def add(
        self,
        features: Tensor,
        labels: Tensor,
        scores: Tensor | Scored | None = None,
        documents: Tensor | None = None,
    ) -> None:
        """Add a block, whose tensors must not change afterwards.

        Args:
            features: Features, (n, D).
            labels: Labels, (n,).
            scores: Logits (n, C), or predictions and losses, or None.
            documents: Documents of the rows, (n,), or None.

        Raises:
            DataError: As `Moments.update`; possibly for an earlier block.
        """
        self._waiting.append((features, labels, scores, documents))
        self._rows += len(labels)
        self._bytes += features.nbytes
        if self._rows >= GATHERED_ROWS or self._bytes >= GATHERED_BYTES:
            self.finish()

    def finish(self) -> None:
        """Add the gathered blocks to the moments."""
        if not self._waiting:
            return
        waiting, self._waiting, self._rows, self._bytes = self._waiting, [], 0, 0
        features, labels = torch.cat([block[0] for block in waiting]), torch.cat([block[1] for block in waiting])
        documents = [block[3] for block in waiting if block[3] is not None]
        indices = self._rank + self._ranks * torch.arange(self._seen, self._seen + len(labels))
        self.moments.update(features, labels, indices, torch.cat(documents) if documents else None)
        self._seen += len(labels)
        logits = [block[2] for block in waiting if isinstance(block[2], Tensor)]
        scored = [(block[2], block[1]) for block in waiting if isinstance(block[2], Scored)]
        for scores, numbers in scored:
            self.quality.update_scores(scores, numbers)
        if logits:
            self.quality.update(double(torch.cat(logits)), labels)
        elif self._head is not None and not scored:
            self.quality.update(self._head.logits(features), labels)


def bins_of(confidence: Tensor) -> Tensor:
    """Return the bin of each confidence (n,): bin b contains those above b/15 and up to (b + 1)/15."""
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=confidence.device)[1:-1]
    return torch.bucketize(confidence.to(torch.float64), edges)


def classes_at_once(device: torch.device) -> int:
    """Return the number of classes of a block of logits on a device."""
    return FEW_CLASSES if device.type == "cpu" else CLASSES_OF_DEVICE


def _rows_at_once(classes: int) -> int:
    return max(1, LOGITS_AT_ONCE // classes)
