"""Accuracy and mean cross-entropy of logits that come block by block, or of a classifier that gives them."""

import math
from collections.abc import Iterable, Mapping
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
"""Logits of a block: what a processor's cache holds."""

CLASSES_OF_DEVICE = 2**14
"""Classes of a block off the CPU, where few large products cost less than many small ones."""


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

    @staticmethod
    def of_rows(rows: Tensor, labels: Tensor, weights: Tensor, bias: Tensor | None) -> "Scored":
        """Of rows (n, D) with labels (n,) under weights (C, D) and a bias (C,) where there is one, all on one device.

        Logits are at hand for some rows and some classes at a time, so that each of them is used while in the cache.
        """
        at_once, classes = _rows_at_once(FEW_CLASSES), classes_at_once(rows.device)
        starts = range(0, len(weights), classes)
        heads = [(weights[s : s + classes], None if bias is None else bias[s : s + classes]) for s in starts]
        parts = zip(rows.split(at_once), labels.split(at_once), strict=True)
        found = [Scored.of_logits((F.linear(part, *head) for head in heads), numbers) for part, numbers in parts]
        predictions = torch.cat([as_tensor(each.prediction) for each in found])
        return Scored(predictions, torch.cat([as_tensor(each.loss) for each in found]))

    @staticmethod
    def of_logits(blocks: Iterable[Tensor], labels: Tensor) -> "Scored":
        """Of rows with labels (n,) whose logits (n, c) come some classes at a time, in order; half precision as single.

        Of equal logits the first is predicted. What a label outside the classes gets for a loss means nothing.
        """
        prediction, start = torch.zeros_like(labels), 0
        highest = total = own = torch.empty(0)
        for logits in blocks:
            logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
            if not start:
                highest = logits.new_full((len(labels),), torch.finfo(logits.dtype).min)
                total, own = torch.zeros_like(highest), torch.zeros_like(highest)
            inside = (labels - start).clamp(0, logits.shape[1] - 1)
            mine = (labels >= start) & (labels < start + logits.shape[1])
            own = torch.where(mine, logits.gather(1, inside[:, None])[:, 0], own)
            best, place = logits.max(dim=1)
            prediction = torch.where(best > highest, place + start, prediction)
            before, highest = highest, torch.maximum(highest, best)
            # Sums are relative to the highest logit so far, as exponentials of large ones overflow.
            total = total * (before - highest).exp() + (logits - highest[:, None]).exp_().sum(dim=1)
            start += logits.shape[1]
        return Scored(prediction, highest + total.log() - own)


@dataclass(frozen=True)
class Head:
    """The classifier, float64 on the CPU: weights (C, D) and bias (C,) where there is one."""

    weights: Tensor
    bias: Tensor | None

    @staticmethod
    def of(weights: Array | None, bias: Array | None) -> "Head | None":
        """Return the head of these arrays, None where there are no weights."""
        if weights is None:
            return None
        return Head(double(weights, "classifier weights"), None if bias is None else double(bias, "classifier bias"))

    def logits(self, features: Array) -> Tensor:
        """Return W z + b of features (n, D), (n, C)."""
        return F.linear(double(features, "features"), self.weights, self.bias)

    def decision(self) -> LinearDecision:
        """Predictions without the logits."""
        return LinearDecision(self.weights, self.bias)

    def scored(self, features: Array, labels: Tensor) -> Scored:
        """Prediction and loss of features (n, D) with labels (n,), never with the logits of all classes at hand."""
        return Scored.of_rows(double(features, "features"), labels, self.weights, self.bias)


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
        rows, at_once = as_tensor(features, "features"), _rows_at_once(classes)
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


def classes_at_once(device: torch.device) -> int:
    """Classes of which a block of logits on a device has those of its rows."""
    return FEW_CLASSES if device.type == "cpu" else CLASSES_OF_DEVICE


def _rows_at_once(classes: int) -> int:
    return max(1, LOGITS_AT_ONCE // classes)


def double(values: Array, name: str = "logits") -> Tensor:
    """An array as a float64 tensor on the CPU, without gradient; `name` is what an error calls it."""
    return as_tensor(values, name).detach().cpu().to(torch.float64)
