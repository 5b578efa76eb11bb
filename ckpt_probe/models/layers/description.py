"""The layers that `all` takes of a model, for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ckpt_probe.errors import CkptProbeError
from ckpt_probe.models.calling import Batch
from ckpt_probe.models.heads.head import Head
from ckpt_probe.models.layers.choice import choose_taps
from ckpt_probe.models.layers.taps import PENULTIMATE


def describe_layers(head: Head, model: nn.Module, inputs: Batch) -> dict[str, Any]:
    """`layers`: name, depth, shape for one sample, pooling and features of each, the classifier's input last.

    Where they cannot be had, `layers` is empty and `layers_reason` says why.
    """
    try:
        taps = choose_taps(model, inputs, head, "all").layers
    except CkptProbeError as error:
        return {"layers": [], "layers_reason": str(error)}
    width = sum(part.width for part in head.parts)
    found = [
        {"layer": tap.layer, "depth": tap.depth, "shape": [*tap.shape], "pooling": tap.pooling, "features": tap.width}
        for tap in taps
    ]
    last = {"layer": PENULTIMATE, "depth": 1.0, "shape": [width], "pooling": "features", "features": width}
    return {"layers": [*found, last]}


def layers_told(facts: Mapping[str, Any]) -> list[str]:
    """The facts of `describe_layers` as lines for people."""
    layers: Sequence[Mapping[str, Any]] = facts.get("layers", ())
    if not layers:
        return [f"layers: unknown: {facts['layers_reason']}"] if facts.get("layers_reason") else []
    longest = max(len(layer["layer"]) for layer in layers)
    lines = [f"layers that --layers all takes: {len(layers)}"]
    for layer in layers:
        shape = " × ".join(map(str, layer["shape"]))
        pooled = "" if layer["pooling"] == "features" else f", {layer['pooling']}: {layer['features']:,} features"
        lines.append(f"  {layer['depth']:.2f}  {layer['layer']:<{longest}}  {shape}{pooled}")
    return lines
