"""Reduce logits to prediction and loss of each row, if storing the logits would take more memory than the features."""

import torch
from torch import Tensor, nn

from ckpt_probe.data.samples import UNLABELLED
from ckpt_probe.metrics.arrays import as_tensor
from ckpt_probe.models import Backbone, Head
from ckpt_probe.moments.quality import Scored, classes_at_once

Parameters = tuple[Tensor, Tensor | None]
"""A head's weights (C, D) and bias (C,)."""


def is_scored(head: Head | Backbone, classes: int) -> bool:
    """Return whether predictions and losses are stored in place of logits.

    That is the case if every position of a sample is a row, and there are more logits than features per row.
    """
    return head.positions == "every" and classes > sum(part.width for part in head.parts)


def score_rows(features: Tensor, labels: Tensor, parameters: Parameters) -> Scored:
    """Compute prediction and loss of rows, a few logits at a time.

    Args:
        features: Rows, shape (m, D).
        labels: Class indices, shape (m,).
        parameters: Weights (C, D) and bias (C,) of the classifier.

    Returns:
        Prediction and loss in nats, on the device of the features.
    """
    return _of_labelled(Scored.of_rows(features, labels, *parameters), labels)


def score_logits(logits: Tensor, labels: Tensor) -> Scored:
    """Compute prediction and loss in nats of logits (m, C) with labels (m,)."""
    return _of_labelled(Scored.of_logits(logits.split(classes_at_once(logits.device), dim=1), labels), labels)


def parameters_of(head: Head | Backbone, model: nn.Module) -> Parameters:
    """Return a head's weights and bias in the dtype and on the device of the model."""
    weights, bias = head.parameters(model)
    return weights.detach(), None if bias is None else bias.detach()


def _of_labelled(scored: Scored, labels: Tensor) -> Scored:
    """Return the scores with NaN as loss of rows without a label."""
    loss = as_tensor(scored.loss, "losses").float()
    return Scored(scored.prediction, loss.masked_fill(labels == UNLABELLED, torch.nan))
