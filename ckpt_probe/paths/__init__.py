"""Paths between two checkpoints and planes through three, evaluated position by position; names load when used."""

from typing import TYPE_CHECKING

from ckpt_probe.lazy import lazy_names

if TYPE_CHECKING:
    from ckpt_probe.paths.evaluate import evaluate_path
    from ckpt_probe.paths.plane import PlaneResult, evaluate_plane
    from ckpt_probe.paths.series import barriers

__all__ = ["PlaneResult", "barriers", "evaluate_path", "evaluate_plane"]

_HOMES = {"PlaneResult": "plane", "barriers": "series", "evaluate_path": "evaluate", "evaluate_plane": "plane"}

__getattr__ = lazy_names(__name__, _HOMES)
