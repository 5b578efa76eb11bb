"""Paths between two checkpoints and planes through three, evaluated position by position; names load when used."""

from ckpt_probe.paths.evaluate import evaluate_path as evaluate_path
from ckpt_probe.paths.plane import PlaneResult as PlaneResult
from ckpt_probe.paths.plane import evaluate_plane as evaluate_plane
from ckpt_probe.paths.series import barriers as barriers
