"""What a classifier says of each row, block by block, where its logits would be larger than all the rest."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_probe.data.samples import UNLABELLED
from ckpt_probe.models import Backbone, Head
from ckpt_probe.moments.quality import Scored

LOGITS_AT_ONCE = 2**23
"""Numbers of a block of logits: 32 MiB as float32."""

Parameters = tuple[Tensor, Tensor | None]
"""A head's weights (C, D) and bias (C,)."""


def is_scored(head: Head | Backbone, classes: int) -> bool:
    """Whether predictions and losses are kept in place of logits.

    That is where every position of a sample is a row, and logits would be wider than the features that they come from.
    """
    return head.positions == "every" and classes > sum(part.width for part in head.parts)


def score_rows(features: Tensor, labels: Tensor, parameters: Parameters) -> Scored:
    """Prediction and loss (nats) of rows (m, D) with labels (m,), on their device; logits of a few rows at a time."""
    weights, bias = parameters
    at_once = max(1, LOGITS_AT_ONCE // len(weights))
    return _scored((F.linear(part, weights, bias) for part in features.split(at_once)), labels, at_once)


def score_logits(logits: Tensor, labels: Tensor) -> Scored:
    """The same of logits (m, C) that are there."""
    at_once = max(1, LOGITS_AT_ONCE // logits.shape[1])
    return _scored(iter(logits.split(at_once)), labels, at_once)


def parameters_of(head: Head | Backbone, model: nn.Module) -> Parameters:
    """A head's weights and bias as the model has them, in its own dtype and on its device."""
    weights, bias = head.parameters(model)
    return weights.detach(), None if bias is None else bias.detach()


def _scored(blocks: Iterator[Tensor], labels: Tensor, at_once: int) -> Scored:
    predictions, losses = [], []
    for logits, named in zip(blocks, labels.split(at_once), strict=True):
        highest, prediction = logits.max(dim=1)
        predictions.append(prediction)
        own = logits.gather(1, named.clamp(min=0)[:, None])[:, 0].float()
        # The block's memory is used again: no logit is needed after this.
        exponentials = logits.float().sub_(highest.float()[:, None]).exp_()
        losses.append(highest.float() + exponentials.sum(dim=1).log_() - own)
    if not predictions:
        return Scored(labels.new_zeros(0), torch.zeros(0))
    loss = torch.cat(losses)
    return Scored(torch.cat(predictions), loss.masked_fill(labels == UNLABELLED, torch.nan))
