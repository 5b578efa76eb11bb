"""Layers of a model: their choice, and their outputs in a forward pass as rows."""

from ckpt_probe.models.layers.choice import choose_taps
from ckpt_probe.models.layers.description import describe_layers, format_layers
from ckpt_probe.models.layers.pooling import POOLINGS
from ckpt_probe.models.layers.taps import PENULTIMATE, Tap, Taps

__all__ = ["PENULTIMATE", "POOLINGS", "Tap", "Taps", "choose_taps", "describe_layers", "format_layers"]
