"""A one-line description of how the inputs of labelled data are prepared, with the source of each step."""

from typing import Any

import torch

from ckpt_probe.data.samples import ArraySplit, LabelledData, Split

TEXTS = (("max_length", "at most {} of a text"), ("context", "in windows of {}"))
"""Arguments of texts that are numbers of tokens, and their descriptions."""


def described_inputs(data: LabelledData) -> str:
    """Return size, channels, scaling and normalisation of inputs with their sources; for texts and sound the tool."""
    arguments = data.arguments
    if data.preparation:
        return data.preparation
    if "tokenizer" in arguments:
        lengths = [words.format(arguments[name]) for name, words in TEXTS if name in arguments]
        return ", ".join([f"tokens by {arguments['tokenizer']}", *lengths])
    if "feature_extractor" in arguments:
        return f"sound by {arguments['feature_extractor']}, which also normalises"
    shape = (
        described_size(data.input_shape, "as stored", "as stored") if data.input_shape else "as the source gives them"
    )
    return f"{shape}, {_scaling(next(iter(data.splits.values())))}, normalisation none (nothing asks for one)"


def described_size(shape: tuple[int, ...], size_source: str, channels_source: str) -> str:
    """Return the size and the channels of images (C, H, W), or the shape of other inputs, with their sources."""
    if len(shape) != 3:
        return f"shape {tuple(shape)} ({size_source})"
    return f"size {shape[1]}×{shape[2]} ({size_source}), channels {shape[0]} ({channels_source})"


def _scaling(split: Split) -> str:
    values: Any = getattr(split, "inputs", None) if isinstance(split, ArraySplit) else None
    if values is not None and values.dtype == torch.uint8:
        return "scaling to [0, 1] (default for bytes)"
    return "scaling none (as stored)"
