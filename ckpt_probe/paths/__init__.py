"""Two checkpoints → what lies between them. Names load when they are used: a written point needs no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
