"""The optimizer that a configuration asks for."""

from collections.abc import Iterable

import torch
from torch import nn

from ckpt_probe.config import OptimizerSettings


def build_optimizer(settings: OptimizerSettings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD or AdamW with the given settings."""
    if settings.name == "adamw":
        first, second = settings.betas
        return torch.optim.AdamW(
            parameters, lr=settings.learning_rate, betas=(first, second), weight_decay=settings.weight_decay
        )
    return torch.optim.SGD(
        parameters,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )
