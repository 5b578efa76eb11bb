"""Create the optimizer of a run, and compute its number of steps, learning rates and steps with a checkpoint."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from ckpt_probe.config import CheckpointSettings, OptimizerSettings, ScheduleSettings, TrainingSettings


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


def steps_per_epoch(settings: TrainingSettings, samples: int) -> int:
    """Return the number of optimizer steps in one pass over the samples; the last batch may be smaller."""
    return 1 if settings.batch_size == "full" else math.ceil(samples / settings.batch_size)


def total_steps(settings: TrainingSettings, per_epoch: int) -> int:
    """Return the number of optimizer steps of the run, at least one."""
    if settings.steps is not None:
        return settings.steps
    return max(1, round((settings.epochs or 0) * per_epoch))


def learning_rate_factor(settings: ScheduleSettings, step: int, total: int) -> float:
    """Return the factor of the base learning rate for the update that follows `step` updates of `total`."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.name == "constant":
        return 1.0
    if settings.name == "step":
        return settings.factor ** sum(step >= milestone * total for milestone in settings.milestones)
    after_warmup = max(1, total - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * (step - settings.warmup_steps) / after_warmup))


def checkpoint_steps(settings: CheckpointSettings, start: int, total: int, per_epoch: int) -> list[int]:
    """Return the numbers of updates after which a checkpoint is written, in order, including `start` and `total`."""
    if settings.every_steps is not None:
        chosen = list(range(0, total, settings.every_steps))
    elif settings.log_spaced is not None:
        # Evenly spaced in log(1 + step), because most changes happen in the first steps.
        share = math.log1p(total) / (settings.log_spaced - 1)
        chosen = [round(math.expm1(share * number)) for number in range(settings.log_spaced)]
    elif settings.steps is not None:
        chosen = settings.steps
    else:
        part = per_epoch / (settings.per_epoch or 1)
        chosen = [round(part * number) for number in range(math.ceil(total / part))]
    return sorted({start, total, *(step for step in chosen if start <= step <= total)})
