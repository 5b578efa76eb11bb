"""Two checkpoints → what lies between them. Names load when they are used: a written point needs no torch."""

from typing import TYPE_CHECKING

from ckpt_probe.lazy import lazy_names

if TYPE_CHECKING:
    from ckpt_probe.paths.evaluate import PathResult, evaluate_path
    from ckpt_probe.paths.plane import PlaneResult, evaluate_plane
    from ckpt_probe.paths.series import evaluate_series
    from ckpt_probe.paths.streaming import InterpolationSummary, average, interpolate

_HOME_OF = {
    "InterpolationSummary": "streaming",
    "PathResult": "evaluate",
    "PlaneResult": "plane",
    "average": "streaming",
    "evaluate_path": "evaluate",
    "evaluate_plane": "plane",
    "evaluate_series": "series",
    "interpolate": "streaming",
}

__all__ = [
    "InterpolationSummary",
    "PathResult",
    "PlaneResult",
    "average",
    "evaluate_path",
    "evaluate_plane",
    "evaluate_series",
    "interpolate",
]


__getattr__ = lazy_names(__name__, _HOME_OF)
