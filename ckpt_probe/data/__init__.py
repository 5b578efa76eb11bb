"""Labelled samples by name, in named splits."""

from ckpt_probe.data.dataset import DatasetSplit, Unreadable
from ckpt_probe.data.hints import ModelHints
from ckpt_probe.data.labels import in_model_order, in_width, matched_labels
from ckpt_probe.data.prefetch import ready_batches, ready_parts
from ckpt_probe.data.samples import (
    LEFT_OUT,
    UNLABELLED,
    ArraySplit,
    Inputs,
    LabelledBatch,
    LabelledData,
    Split,
    Streaming,
    described_inputs,
    documents_of,
    first_samples,
    names_of,
    notes_of,
    one_tensor,
    split_lengths,
)
from ckpt_probe.data.sources import functions_named, load_data, recorded_arguments
from ckpt_probe.data.subset import choose_samples

__all__ = [
    "LEFT_OUT",
    "UNLABELLED",
    "ArraySplit",
    "DatasetSplit",
    "Inputs",
    "LabelledBatch",
    "LabelledData",
    "ModelHints",
    "Split",
    "Streaming",
    "Unreadable",
    "choose_samples",
    "described_inputs",
    "documents_of",
    "first_samples",
    "functions_named",
    "in_model_order",
    "in_width",
    "load_data",
    "matched_labels",
    "names_of",
    "notes_of",
    "one_tensor",
    "ready_batches",
    "ready_parts",
    "recorded_arguments",
    "split_lengths",
]
