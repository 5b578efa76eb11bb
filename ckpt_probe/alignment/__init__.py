"""Alignment of network B to A: permutation symmetries traced from the model, matched by weights or activations."""

from ckpt_probe.alignment.by_activations import match_activations
from ckpt_probe.alignment.by_weights import Alignment, match_weights, proved, read_spec
from ckpt_probe.alignment.symmetry import Symmetry, trace_symmetry

__all__ = [
    "Alignment",
    "Symmetry",
    "match_activations",
    "match_weights",
    "proved",
    "read_spec",
    "trace_symmetry",
]
