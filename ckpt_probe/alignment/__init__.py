"""Alignment of network B to A: permutation symmetries traced from the model, matched by weights or activations."""

from ckpt_probe.alignment.matching import Alignment, match_activations, match_weights, read_spec
from ckpt_probe.alignment.symmetry import Symmetry, trace_symmetry
