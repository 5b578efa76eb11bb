"""Accuracy and mean cross-entropy of logits that come block by block, or of a classifier that gives them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ckpt_probe.metrics.arrays import as_labels, as_tensor
from ckpt_probe.metrics.decisions import LinearDecision
from ckpt_probe.metrics.gram import Array

FEW_CLASSES = 2048
"""Classes up to which logits of a row are taken at once; beyond, class by class in parts of this size."""

LOGITS_AT_ONCE = 2**21


@dataclass(frozen=True)
class Scored:
    """What is known of samples in place of their logits: the predicted class and the cross-entropy (nats) of each.

    prediction: (n,) whole numbers; loss: (n,).
    """

    prediction: Array
    loss: Array

    @property
    def predicted(self) -> Tensor:
        """The predicted classes as whole numbers on the CPU, (n,)."""
        return as_tensor(self.prediction, "predictions").cpu().to(torch.int64)


@dataclass(frozen=True)
class Head:
    """The classifier, float64 on the CPU: weights (C, D) and bias (C,) where there is one."""

    weights: Tensor
    bias: Tensor | None

    @staticmethod
    def of(weights: Array | None, bias: Array | None, dtype: torch.dtype = torch.float64) -> "Head | None":
        """The head of these arrays, None where there are no weights; logits are then in `dtype`."""
        if weights is None:
            return None
        rows = double(weights, "classifier weights").to(dtype)
        return Head(rows, None if bias is None else double(bias, "classifier bias").to(dtype))

    def logits(self, features: Array) -> Tensor:
        """W z + b of features (n, D), (n, C)."""
        return F.linear(double(features, "features").to(self.weights.dtype), self.weights, self.bias)

    def decision(self) -> LinearDecision:
        """Predictions without the logits."""
        return LinearDecision(self.weights, self.bias)

    def scored(self, features: Array, labels: Tensor) -> Scored:
        """Prediction and loss of features (n, D) with labels (n,), never with the logits of all classes at hand."""
        rows = double(features, "features").to(self.weights.dtype)
        parts = zip(rows.split(self._at_once(FEW_CLASSES)), labels.split(self._at_once(FEW_CLASSES)), strict=True)
        found = [self._streamed(part, numbers) for part, numbers in parts]
        return Scored(*(torch.cat(both) for both in zip(*found, strict=True)))

    def _streamed(self, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        highest = rows.new_full((len(rows),), -math.inf)
        prediction, total, own = torch.zeros_like(labels), torch.zeros_like(highest), torch.zeros_like(highest)
        for start in range(0, len(self.weights), FEW_CLASSES):
            part = slice(start, start + FEW_CLASSES)
            logits = F.linear(rows, self.weights[part], None if self.bias is None else self.bias[part])
            mine = (labels >= start) & (labels < start + logits.shape[1])
            own[mine] = logits[mine, labels[mine] - start]
            best, place = logits.max(dim=1)
            prediction = torch.where(best > highest, place + start, prediction)
            before, highest = highest, torch.maximum(highest, best)
            # Sums are relative to the highest logit so far, as exponentials of large ones overflow.
            total = total * (before - highest).exp() + logits.sub_(highest[:, None]).exp_().sum(dim=1)
        return prediction, highest + total.log() - own

    @staticmethod
    def _at_once(classes: int) -> int:
        return max(1, LOGITS_AT_ONCE // classes)


class Quality:
    """How many samples were scored, how many rightly, and their cross-entropy (nats); None until one is scored."""

    def __init__(self, samples: int = 0, right: int = 0, loss: float = 0.0) -> None:
        self.samples = samples
        self.right = right
        self.summed_loss = loss

    def update(self, logits: Tensor | None, labels: Array) -> Tensor | None:
        """Add logits (n, C) and labels (n,), nothing where there are no logits; what they predict, (n,)."""
        if logits is None or not len(logits):
            return None
        numbers = as_labels(labels).to(logits.device, torch.int64)
        prediction = logits.argmax(dim=1)
        self._add(prediction, numbers, float(F.cross_entropy(logits, numbers, reduction="sum")))
        return prediction

    def update_scored(self, scored: Scored, labels: Array) -> Tensor:
        """The same where prediction and loss are known in place of the logits."""
        prediction = scored.predicted
        self._add(prediction, as_labels(labels).cpu().to(torch.int64), float(double(scored.loss).sum()))
        return prediction

    def update_scores(self, scores: Array | Scored | None, labels: Array) -> None:
        """The same of whatever is known of rows: logits (n, C) of any dtype, or prediction and loss; or nothing."""
        if isinstance(scores, Scored):
            self.update_scored(scores, labels)
        elif scores is not None:
            self.update(double(scores), labels)

    def update_head(self, head: Head, features: Array, labels: Array) -> Tensor:
        """The same for features (n, D), by their logits under a head, some rows or some classes at a time."""
        numbers, classes = as_labels(labels).cpu().to(torch.int64), len(head.weights)
        if classes > FEW_CLASSES:
            return self.update_scored(head.scored(features, numbers), numbers)
        rows, at_once = as_tensor(features, "features"), Head._at_once(classes)
        parts = zip(rows.split(at_once), numbers.split(at_once), strict=True)
        found = [self.update(head.logits(part), of_part) for part, of_part in parts if len(part)]
        return torch.cat([part for part in found if part is not None]) if found else numbers

    def merge(self, other: "Quality") -> None:
        """Add what another has seen."""
        self.samples += other.samples
        self.right += other.right
        self.summed_loss += other.summed_loss

    @property
    def accuracy(self) -> float | None:
        """Share of samples predicted right."""
        return self.right / self.samples if self.samples else None

    @property
    def loss(self) -> float | None:
        """Mean cross-entropy; None too where it is infinite."""
        mean = self.summed_loss / self.samples if self.samples else math.inf
        return mean if math.isfinite(mean) else None

    def to_numbers(self) -> dict[str, float]:
        """What `from_numbers` takes back."""
        return {"scored": self.samples, "right": self.right, "summed_loss": self.summed_loss}

    @staticmethod
    def from_numbers(numbers: Mapping[str, float]) -> "Quality":
        """The reverse of `to_numbers`."""
        return Quality(int(numbers["scored"]), int(numbers["right"]), float(numbers["summed_loss"]))

    def _add(self, prediction: Tensor, labels: Tensor, loss: float) -> None:
        self.samples += len(labels)
        self.right += int((prediction == labels).sum())
        self.summed_loss += loss


def double(values: Array, name: str = "logits") -> Tensor:
    """An array as a float64 tensor on the CPU, without gradient; `name` is what an error calls it."""
    return as_tensor(values, name).detach().cpu().to(torch.float64)
