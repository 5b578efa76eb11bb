"""Run checkpoints on data and write dumps."""

from ckpt_probe.extraction.blocks import Block, score_logits
from ckpt_probe.extraction.building import open_subject
from ckpt_probe.extraction.config import Setup, Storage
from ckpt_probe.extraction.forward import forward_blocks, labels_of_rows
from ckpt_probe.extraction.series import ExtractionSummary, extract_series
from ckpt_probe.extraction.single import extract
from ckpt_probe.extraction.subject import Subject
from ckpt_probe.extraction.writer import StoreWriter, store_writer
