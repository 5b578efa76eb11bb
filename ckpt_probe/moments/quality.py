"""Accuracy and mean cross-entropy of logits that come block by block."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ckpt_probe.metrics.arrays import as_labels, as_tensor
from ckpt_probe.metrics.gram import Array


@dataclass(frozen=True)
class Head:
    """The classifier, float64 on the CPU: weights (C, D) and bias (C,) where there is one."""

    weights: Tensor
    bias: Tensor | None

    @staticmethod
    def of(weights: Array | None, bias: Array | None) -> "Head | None":
        """The head of these arrays, None where there are no weights."""
        if weights is None:
            return None
        return Head(double(weights, "classifier weights"), None if bias is None else double(bias, "classifier bias"))

    def logits(self, features: Array) -> Tensor:
        """W z + b of features (n, D), (n, C) float64."""
        return F.linear(double(features, "features"), self.weights, self.bias)


class Quality:
    """How many samples were scored, how many rightly, and their cross-entropy (nats); None until one is scored."""

    def __init__(self, samples: int = 0, right: int = 0, loss: float = 0.0) -> None:
        self.samples = samples
        self.right = right
        self.summed_loss = loss

    def update(self, logits: Tensor | None, labels: Array) -> None:
        """Add logits (n, C) and labels (n,); nothing where there are no logits."""
        if logits is None or not len(logits):
            return
        numbers = as_labels(labels).to(logits.device, torch.int64)
        self.samples += len(numbers)
        self.right += int((logits.argmax(dim=1) == numbers).sum())
        self.summed_loss += float(F.cross_entropy(logits, numbers, reduction="sum"))

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


def double(values: Array, name: str = "logits") -> Tensor:
    """An array as a float64 tensor on the CPU, without gradient; `name` is what an error calls it."""
    return as_tensor(values, name).detach().cpu().to(torch.float64)
