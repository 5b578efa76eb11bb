"""Dumps, features, or classifier weights → records."""

from ckpt_probe.analysis.collection import Records, read_records
from ckpt_probe.analysis.comparison import Comparison, compare
from ckpt_probe.analysis.entries import ENTRIES, Entry, Record, empty_record, entries_in, in_order, settled
from ckpt_probe.analysis.record import Blocks, analyze_features, read_blocks, read_moments
from ckpt_probe.analysis.series import analyze, read_series
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.analysis.similarity import Similarity, similarity
from ckpt_probe.analysis.weights import weights_record

__all__ = [
    "ENTRIES",
    "Blocks",
    "Comparison",
    "Entry",
    "Record",
    "Records",
    "Settings",
    "Similarity",
    "analyze",
    "analyze",
    "analyze_features",
    "compare",
    "empty_record",
    "entries_in",
    "in_order",
    "read_blocks",
    "read_moments",
    "read_records",
    "read_series",
    "settled",
    "similarity",
    "weights_record",
]
