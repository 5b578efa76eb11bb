"""What a classifier says of each row, block by block, where its logits would be larger than all the rest."""

import torch
from torch import Tensor, nn

from ckpt_probe.data.samples import UNLABELLED
from ckpt_probe.metrics.arrays import as_tensor
from ckpt_probe.models import Backbone, Head
from ckpt_probe.moments.quality import Scored, classes_at_once

Parameters = tuple[Tensor, Tensor | None]
"""A head's weights (C, D) and bias (C,)."""


def is_scored(head: Head | Backbone, classes: int) -> bool:
    """Whether predictions and losses are kept in place of logits.

    That is where every position of a sample is a row, and logits would be wider than the features that they come from.
    """
    return head.positions == "every" and classes > sum(part.width for part in head.parts)


def score_rows(features: Tensor, labels: Tensor, parameters: Parameters) -> Scored:
    """Prediction and loss (nats) of rows (m, D) with labels (m,), on their device; a few logits at a time."""
    return _of_labelled(Scored.of_rows(features, labels, *parameters), labels)


def score_logits(logits: Tensor, labels: Tensor) -> Scored:
    """The same of logits (m, C) that are there."""
    return _of_labelled(Scored.of_logits(logits.split(classes_at_once(logits.device), dim=1), labels), labels)


def parameters_of(head: Head | Backbone, model: nn.Module) -> Parameters:
    """A head's weights and bias as the model has them, in its own dtype and on its device."""
    weights, bias = head.parameters(model)
    return weights.detach(), None if bias is None else bias.detach()


def _of_labelled(scored: Scored, labels: Tensor) -> Scored:
    """The same, with no loss where there is no label."""
    loss = as_tensor(scored.loss, "losses").float()
    return Scored(scored.prediction, loss.masked_fill(labels == UNLABELLED, torch.nan))
