"""A grid in the plane of three checkpoints, or along random directions from one."""

from ckpt_probe.planes.evaluate import PlaneOptions, PlaneResult, evaluate_plane

__all__ = ["PlaneOptions", "PlaneResult", "evaluate_plane"]
