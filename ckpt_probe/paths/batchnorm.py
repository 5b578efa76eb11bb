"""Batch-norm statistics of weights that were not trained: estimated from training samples, or those of each batch."""

import math
from itertools import pairwise

import torch
from torch import nn

from ckpt_probe.data import Split, ready_parts, split_lengths
from ckpt_probe.errors import UsageError
from ckpt_probe.models import call, on_device
from ckpt_probe.paths.options import SAMPLES

BATCH = 256


def has_batchnorm(model: nn.Module) -> bool:
    """Return whether a model has running statistics."""
    return bool(_layers(model))


def recompute(model: nn.Module, split: Split, *, samples: int = SAMPLES) -> None:
    """Estimate all running statistics in place, as averages over batches of the first training samples.

    Batches have nearly equal sizes, which weight them. All other layers run in evaluation mode, without dropout
    (Izmailov et al. 2018).

    Args:
        model: The network.
        split: Training split.
        samples: Largest number of samples.

    Raises:
        UsageError: If there is only one sample, which has no variance.
    """
    count = min(samples, len(split))
    if count < 2:
        raise UsageError("one sample has no batch-norm statistics; use more samples, or interpolate them")
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
        with ready_parts(split, [slice(start, end) for start, end in pairwise(ends)]) as parts:
            for inputs, labels in parts:
                seen += len(labels)
                for layer in layers:
                    layer.momentum = len(labels) / seen
                call(model, on_device(split_lengths(inputs)[0], parameter.device, parameter.dtype))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()


def drop_statistics(model: nn.Module) -> None:
    """Make a model's normalisation layers use the statistics of each batch, also in evaluation mode."""
    for layer in _layers(model):
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None


def _layers(model: nn.Module) -> list[nn.modules.batchnorm._NormBase]:
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    return [layer for layer in layers if layer.track_running_stats]
