"""Merge checkpoints into one, block by block, without model, data or torch."""

from ckpt_probe.merging.merge import average, check_match, interpolate
from ckpt_probe.merging.streaming import InterpolationSummary, check_averaged
