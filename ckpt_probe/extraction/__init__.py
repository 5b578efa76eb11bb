"""Checkpoint and data → dump."""

from ckpt_probe.extraction.extract import ExtractionSummary, extract, extract_series
from ckpt_probe.extraction.forward import Block, forward_blocks
from ckpt_probe.extraction.subject import Subject, Wanted, open_subject

__all__ = [
    "Block",
    "ExtractionSummary",
    "Subject",
    "Wanted",
    "extract",
    "extract_series",
    "forward_blocks",
    "open_subject",
]
