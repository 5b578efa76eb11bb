"""Description of the layers that "all" chooses."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ckpt_probe.errors import CkptProbeError
from ckpt_probe.models.calling import Batch
from ckpt_probe.models.heads.head import Head
from ckpt_probe.models.layers.choice import choose_taps
from ckpt_probe.models.layers.taps import PENULTIMATE


def describe_layers(head: Head, model: nn.Module, inputs: Batch) -> dict[str, Any]:
    """Describe the layers that "all" chooses, with the classifier's input last.

    Args:
        head: The head.
        model: The model.
        inputs: Inputs of a batch.

    Returns:
        `layers`, with name, depth, shape for one sample, pooling and number of features of each; on an error it is
        empty, and `layers_reason` is the error's message.
    """
    try:
        taps = choose_taps(model, inputs, head, "all").layers
    except CkptProbeError as error:
        return {"layers": [], "layers_reason": str(error)}
    width = sum(part.width for part in head.parts)
    layers = [
        {"layer": tap.layer, "depth": tap.depth, "shape": [*tap.shape], "pooling": tap.pooling, "features": tap.width}
        for tap in taps
    ]
    last = {"layer": PENULTIMATE, "depth": 1.0, "shape": [width], "pooling": "features", "features": width}
    return {"layers": [*layers, last]}


def format_layers(facts: Mapping[str, Any]) -> list[str]:
    """Format the result of `describe_layers` as lines of text."""
    layers: Sequence[Mapping[str, Any]] = facts.get("layers", ())
    if not layers:
        return [f"layers: unknown: {facts['layers_reason']}"] if facts.get("layers_reason") else []
    longest = max(len(layer["layer"]) for layer in layers)
    lines = [f"layers that extract with `layers='all'` stores: {len(layers)}"]
    for layer in layers:
        shape = " × ".join(map(str, layer["shape"]))
        pooled = "" if layer["pooling"] == "features" else f", {layer['pooling']}: {layer['features']:,} features"
        lines.append(f"  {layer['depth']:.2f}  {layer['layer']:<{longest}}  {shape}{pooled}")
    return lines
