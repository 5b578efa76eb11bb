"""Dumps and features → records."""

from ckpt_probe.analysis.entries import ENTRIES, Entry
from ckpt_probe.analysis.records import Blocks, Record, analyze_blocks, analyze_features, in_order
from ckpt_probe.analysis.series import analyze_dump, analyze_series

__all__ = [
    "ENTRIES",
    "Blocks",
    "Entry",
    "Record",
    "analyze_blocks",
    "analyze_dump",
    "analyze_features",
    "analyze_series",
    "in_order",
]
