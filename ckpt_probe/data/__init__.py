"""Labelled samples by name, in named splits."""

from ckpt_probe.data.arguments import ModelHints
from ckpt_probe.data.arrays import choose_samples
from ckpt_probe.data.dataset import DatasetSplit, Unreadable
from ckpt_probe.data.labels import impossible_label, in_model_order, in_width, matched_labels, require_classes
from ckpt_probe.data.samples import (
    LEFT_OUT,
    UNLABELLED,
    ArraySplit,
    Inputs,
    LabelledBatch,
    LabelledData,
    Split,
    Streaming,
    count_of,
    described_size,
    first_samples,
    names_of,
    notes_of,
    one_tensor,
    ready_batches,
    ready_parts,
    split_lengths,
)
from ckpt_probe.data.sources import functions_named, load_data, recorded_arguments
