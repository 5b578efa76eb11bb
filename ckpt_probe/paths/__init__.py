"""Two checkpoints → the path between them, evaluated point by point. Names load when used: options need no torch."""

from typing import TYPE_CHECKING

from ckpt_probe.lazy import lazy_names

if TYPE_CHECKING:
    from ckpt_probe.paths.evaluate import PathResult, evaluate_path
    from ckpt_probe.paths.series import evaluate_series

__all__ = ["PathResult", "evaluate_path", "evaluate_series"]


__getattr__ = lazy_names(__name__, {"PathResult": "evaluate", "evaluate_path": "evaluate", "evaluate_series": "series"})
