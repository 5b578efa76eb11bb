"""Checkpoints in, one checkpoint out, block by block; needs neither model nor data, nor torch."""

from ckpt_probe.merging.matching import check_averaged, check_match
from ckpt_probe.merging.streaming import InterpolationSummary, average, interpolate

__all__ = ["InterpolationSummary", "average", "check_averaged", "check_match", "interpolate"]
