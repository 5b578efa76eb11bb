"""Blocks of rows that a forward pass yields, with logits, or with numbers of each row in place of large logits."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ckpt_probe.data import UNLABELLED
from ckpt_probe.metrics.rows import as_tensor
from ckpt_probe.moments.quality import Scored, classes_at_once

FEATURES, LABELS, LOGITS, LAYER = "features", "labels", "logits", "layer/"
PREDICTION, LOSS, CONFIDENCE = "prediction", "loss", "confidence"
DOCUMENTS, POSITIONS = "documents", "positions"
"""Names of the tensors of a block; the rows of a layer are called LAYER and its name."""


@dataclass(frozen=True)
class Block:
    """A block of rows.

    Attributes:
        features: Inputs of the classifier, shape (n, D).
        labels: Class indices, shape (n,); −1 for rows without a label.
        scores: Outputs of the classifier, shape (n, C), or `Scored`, or None without a classifier.
        layers: Rows of other layers by name, shape (n, D) each.
        documents: Index of the document of each row, shape (n,), or None if rows are independent.
        positions: Position of each row in its document, shape (n,), or None if a row is more than one position.
    """

    features: Tensor
    labels: Tensor
    scores: Tensor | Scored | None = None
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    documents: Tensor | None = None
    positions: Tensor | None = None

    def to_tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name; `from_tensors` is the inverse."""
        tensors = {FEATURES: self.features, LABELS: self.labels}
        if isinstance(self.scores, Scored):
            tensors[PREDICTION] = as_tensor(self.scores.prediction, "predictions")
            tensors[LOSS] = as_tensor(self.scores.loss, "losses")
            if self.scores.confidence is not None:
                tensors[CONFIDENCE] = as_tensor(self.scores.confidence, "confidences")
        elif self.scores is not None:
            tensors[LOGITS] = self.scores
        tensors |= {} if self.documents is None else {DOCUMENTS: self.documents}
        tensors |= {} if self.positions is None else {POSITIONS: self.positions}
        return tensors | {f"{LAYER}{name}": rows for name, rows in self.layers.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Block":
        """Return the block of the tensors that `to_tensors` returned."""
        scores = tensors.get(LOGITS)
        if PREDICTION in tensors:
            scores = Scored(tensors[PREDICTION], tensors[LOSS], tensors.get(CONFIDENCE))
        layers = {name.removeprefix(LAYER): rows for name, rows in tensors.items() if name.startswith(LAYER)}
        return cls(tensors[FEATURES], tensors[LABELS], scores, layers, tensors.get(DOCUMENTS), tensors.get(POSITIONS))


def score_rows(features: Tensor, labels: Tensor, parameters: tuple[Tensor, Tensor | None]) -> Scored:
    """Compute prediction, loss and confidence of rows, a few logits at a time.

    Args:
        features: Rows, shape (m, D).
        labels: Class indices, shape (m,).
        parameters: Weights (C, D) and bias (C,) of the classifier.

    Returns:
        The numbers, losses in nats, on the device of the features.
    """
    return _of_labelled(Scored.of_rows(features, labels, *parameters), labels)


def score_logits(logits: Tensor, labels: Tensor) -> Scored:
    """Compute prediction, loss in nats and confidence of logits (m, C) with labels (m,)."""
    return _of_labelled(Scored.of_logits(logits.split(classes_at_once(logits.device), dim=1), labels), labels)


def _of_labelled(scored: Scored, labels: Tensor) -> Scored:
    """Return the scores with NaN as loss of rows without a label."""
    loss = as_tensor(scored.loss, "losses").float()
    return Scored(scored.prediction, loss.masked_fill(labels == UNLABELLED, torch.nan), scored.confidence)
