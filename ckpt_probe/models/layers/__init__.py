"""Layers of a model: their choice, and their outputs in a forward pass as rows."""

from ckpt_probe.models.layers.taps import PENULTIMATE, LayerTap, Taps, choose_taps

__all__ = ["PENULTIMATE", "LayerTap", "Taps", "choose_taps"]
