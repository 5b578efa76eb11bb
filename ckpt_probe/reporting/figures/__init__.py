"""Plots drawn by matplotlib, for a paper: SVG, PNG or PDF."""

from ckpt_probe.reporting.figures.line_figure import draw

__all__ = ["draw"]
