"""Paths between two checkpoints and planes through three, evaluated position by position; names load when used."""

from typing import TYPE_CHECKING

from ckpt_probe.lazy import lazy_names

if TYPE_CHECKING:
    from ckpt_probe.paths.evaluate import PathResult, evaluate_path
    from ckpt_probe.paths.options import PlaneOptions
    from ckpt_probe.paths.plane import PlaneResult, evaluate_plane
    from ckpt_probe.paths.series import barriers

__all__ = ["PathResult", "PlaneOptions", "PlaneResult", "barriers", "evaluate_path", "evaluate_plane"]

__getattr__ = lazy_names(
    __name__,
    {
        "PathResult": "evaluate",
        "evaluate_path": "evaluate",
        "PlaneOptions": "options",
        "PlaneResult": "plane",
        "evaluate_plane": "plane",
        "barriers": "series",
    },
)
