"""The straight line between two checkpoints: θ(α) = (1−α) θ_A + α θ_B."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.checkpoints import Checkpoint, CheckpointWriter, open_checkpoint
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.paths.matching import check_match


@dataclass(frozen=True)
class InterpolationSummary:
    """How many tensors were interpolated, and which ones, being whole numbers or booleans, were copied from A."""

    interpolated: int
    copied: tuple[str, ...]


def linear(a: Mapping[str, Tensor], b: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The point at `alpha` between state dicts a (α = 0) and b (α = 1); both ends are exact, bit for bit.

    Computed in float32 (float64 for float64 tensors) and rounded to the tensor's dtype; tensors of whole numbers or
    booleans are a's, but at α = 1. Raises DataError where a number is NaN or infinite, naming the tensor.
    """
    return {name: between(name, tensor, b[name], alpha) for name, tensor in a.items()}


def between(name: str, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """One tensor of `linear`."""
    for tensor in (a, b):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"tensor {name!r} holds NaN or infinity: there is no line through it")
    if alpha == 0 or alpha == 1:
        return b if alpha == 1 else a
    if not a.is_floating_point():
        return a
    exact = torch.float64 if a.dtype == torch.float64 else torch.float32
    return torch.add(a.to(exact) * (1 - alpha), b.to(exact), alpha=alpha).to(a.dtype)


def interpolate(
    a: Path | str, b: Path | str, *, alpha: float, out: Path | str, overwrite: bool = False
) -> InterpolationSummary:
    """Write the checkpoint at `alpha` on the line from a to b, tensor by tensor; needs neither model nor data.

    Keeps a's metadata but its step and metrics, and names both ends. Raises DataError where the tensors of a and b
    differ in name, shape or dtype (all listed) or are not finite; UsageError where `alpha` is no finite number, or
    `out` exists and `overwrite` is false, or is one of the two.
    """
    if not math.isfinite(alpha):
        raise UsageError(f"alpha must be a finite number, found {alpha}")
    if Path(out).exists() and any(Path(out).samefile(end) for end in (a, b) if Path(end).exists()):
        raise UsageError(f"{out}: is one of the two checkpoints; choose another name")
    with open_checkpoint(a) as first, open_checkpoint(b) as second:
        check_match(first, second)
        layout = {name: (first.dtype(name), first.shape(name)) for name in first.names}
        copied = []
        with CheckpointWriter(out, layout, _metadata(first, second, alpha), overwrite=overwrite) as writer:
            for name in layout:
                tensor = first.read(name)
                writer.write(name, between(name, tensor, second.read(name), alpha))
                if not tensor.is_floating_point():
                    copied.append(name)
    return InterpolationSummary(len(layout) - len(copied), tuple(copied))


def _metadata(a: Checkpoint, b: Checkpoint, alpha: float) -> dict[str, str]:
    ends: dict[str, Any] = {"a": a.path.name, "b": b.path.name, "alpha": alpha, "path": "linear"}
    dropped = {"ckpt_probe.step", "ckpt_probe.epoch", "ckpt_probe.metrics", "ckpt_probe.seed"}
    kept = {name: value for name, value in a.raw_metadata.items() if name not in dropped}
    return {**kept, "ckpt_probe.path": json.dumps(ends)}
