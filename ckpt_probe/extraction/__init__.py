"""Run checkpoints on data and write dumps."""

from ckpt_probe.extraction.extract import ExtractionSummary, extract, extract_series
from ckpt_probe.extraction.following import follow_series
from ckpt_probe.extraction.forward import Block, forward_blocks
from ckpt_probe.extraction.inspection import inspect_model
from ckpt_probe.extraction.setup import Setup, Storage
from ckpt_probe.extraction.subject import Subject, open_subject

__all__ = [
    "Block",
    "ExtractionSummary",
    "Setup",
    "Storage",
    "Subject",
    "extract",
    "extract_series",
    "follow_series",
    "forward_blocks",
    "inspect_model",
    "open_subject",
]
