"""Merge checkpoints into one, block by block, without model, data or torch."""

from ckpt_probe.merging.matching import check_averaged, check_match
from ckpt_probe.merging.streaming import InterpolationSummary, average, interpolate
