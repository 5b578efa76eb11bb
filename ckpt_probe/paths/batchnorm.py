"""Batch-norm statistics of a point on a path: an average of two networks' is not that of the network between them."""

import math
from itertools import pairwise

import torch
from torch import nn

from ckpt_probe.data import Split, ready_parts, taken_apart
from ckpt_probe.errors import UsageError
from ckpt_probe.models import call, on_device
from ckpt_probe.paths.options import SAMPLES

BATCH = 256


def has_batchnorm(model: nn.Module) -> bool:
    """Whether a model keeps running statistics."""
    return bool(_layers(model))


def recompute(model: nn.Module, split: Split, *, samples: int = SAMPLES) -> None:
    """Estimate all running statistics anew, in place, as averages over batches of the first training samples.

    Batches are of nearly one size, and count by it. Everything but the batch-norm layers runs in evaluation mode
    (Izmailov et al. 2018; no dropout). Raises UsageError where there is but one sample, which has no variance.
    """
    count = min(samples, len(split))
    if count < 2:
        raise UsageError(
            "batch-norm statistics cannot be computed from one sample; use more samples, or interpolate them"
        )
    layers = _layers(model)
    momenta = [layer.momentum for layer in layers]
    parameter = next(model.parameters())
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
    batches = math.ceil(count / BATCH)
    ends = [count * number // batches for number in range(batches + 1)]
    with torch.no_grad():
        seen = 0
        with ready_parts(split, [slice(start, end) for start, end in pairwise(ends)]) as found:
            for inputs, labels in found:
                seen += len(labels)
                for layer in layers:
                    layer.momentum = len(labels) / seen
                call(model, on_device(taken_apart(inputs)[0], parameter.device, parameter.dtype))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()


def drop_statistics(model: nn.Module) -> None:
    """Have a model's batch-norm layers take the statistics of each batch at all times, and keep none."""
    for layer in _layers(model):
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None


def _layers(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    found = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [module for module in found if module.track_running_stats]
