"""Create the optimizer of a configuration."""

from collections.abc import Iterable

import torch
from torch import nn

from ckpt_probe.config import OptimizerSettings


def build_optimizer(settings: OptimizerSettings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return SGD or AdamW with the settings of the configuration."""
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
