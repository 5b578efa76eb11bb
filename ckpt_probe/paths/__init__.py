"""Two checkpoints → what lies between them."""

from ckpt_probe.paths.barrier import Barrier, barrier
from ckpt_probe.paths.evaluate import PathResult, evaluate_path
from ckpt_probe.paths.linear import InterpolationSummary, interpolate, linear

__all__ = ["Barrier", "InterpolationSummary", "PathResult", "barrier", "evaluate_path", "interpolate", "linear"]
