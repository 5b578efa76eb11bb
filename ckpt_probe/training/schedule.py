"""When: how many steps, the learning rate at each, and after which ones a checkpoint is kept."""

import math

from ckpt_probe.config import CheckpointSettings, ScheduleSettings, TrainingSettings


def steps_per_epoch(settings: TrainingSettings, samples: int) -> int:
    """Optimizer steps in one pass over the samples; the last batch of a pass may be smaller."""
    return 1 if settings.batch_size == "full" else math.ceil(samples / settings.batch_size)


def total_steps(settings: TrainingSettings, per_epoch: int) -> int:
    """Optimizer steps of the whole run, at least one."""
    if settings.steps is not None:
        return settings.steps
    return max(1, round((settings.epochs or 0) * per_epoch))


def learning_rate_factor(settings: ScheduleSettings, step: int, total: int) -> float:
    """What the base learning rate is multiplied with for the update that follows `step` updates of `total`."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.name == "constant":
        return 1.0
    if settings.name == "step":
        return settings.factor ** sum(step >= milestone * total for milestone in settings.milestones)
    after_warmup = max(1, total - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * (step - settings.warmup_steps) / after_warmup))


def checkpoint_steps(settings: CheckpointSettings, start: int, total: int, per_epoch: int) -> list[int]:
    """Numbers of updates after which a checkpoint is kept, in order; `start` and `total` are always among them."""
    if settings.every_steps is not None:
        chosen = list(range(0, total, settings.every_steps))
    elif settings.log_spaced is not None:
        # Evenly spaced in log(1 + step), so that the first steps, where most happens, are seen closely.
        share = math.log1p(total) / (settings.log_spaced - 1)
        chosen = [round(math.expm1(share * number)) for number in range(settings.log_spaced)]
    elif settings.steps is not None:
        chosen = settings.steps
    else:
        part = per_epoch / (settings.per_epoch or 1)
        chosen = [round(part * number) for number in range(math.ceil(total / part))]
    return sorted({start, total, *(step for step in chosen if start <= step <= total)})
