"""Labelled samples by name, in named splits."""

from ckpt_probe.data.samples import ArraySplit, DatasetSplit, LabelledData, Split
from ckpt_probe.data.sources import functions_named, load_data

__all__ = ["ArraySplit", "DatasetSplit", "LabelledData", "Split", "functions_named", "load_data"]
