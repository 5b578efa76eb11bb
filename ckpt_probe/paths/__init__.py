"""Two checkpoints → the path between them, evaluated point by point."""

from ckpt_probe.paths.evaluate import PathResult, evaluate_path
from ckpt_probe.paths.series import evaluate_series

__all__ = ["PathResult", "evaluate_path", "evaluate_series"]
