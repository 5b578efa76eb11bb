"""Descriptions of a model's inputs, head and layers, from random inputs of the right shape and a forward pass."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_probe.errors import CkptProbeError, UsageError
from ckpt_probe.models.calling import Batch, described, forward_once, part_of, results_of
from ckpt_probe.models.head import Head
from ckpt_probe.models.pooling import Backbone
from ckpt_probe.models.taps import PENULTIMATE, choose_taps

SIDE = 224
"""Default side of images in pixels, as for ImageNet."""

WAVES = 16_000
TOKENS = 8
"""Length of random sounds in samples (one second), and of random texts in tokens."""


def made_up_inputs(model: nn.Module, arguments: Mapping[str, Any], samples: int = 2) -> Batch:
    """Draw random inputs of the shape and kind that a model's configuration or arguments state, with a fixed seed.

    Args:
        model: The model.
        arguments: Arguments of the model.
        samples: Number of samples.

    Raises:
        UsageError: If neither states the inputs.
    """
    draw = torch.Generator().manual_seed(0)
    config = getattr(model, "config", None)
    name = getattr(model, "main_input_name", None)
    if config is not None and isinstance(name, str):
        return _of_transformers(config, name, samples, draw)
    shape = _image_shape(model, arguments)
    if shape is None:
        raise UsageError("the inputs of the model are not known; name data for it with `data=`")
    return torch.randn(samples, *shape, generator=draw)


def describe_head(head: Head, model: nn.Module, inputs: Batch) -> dict[str, Any]:
    """Describe a head and a forward pass.

    Args:
        head: The head.
        model: The model.
        inputs: Inputs of a batch, of which the first sample is used.

    Returns:
        Layer, kind, reason for its choice, shapes, and the prediction for the first sample.
    """
    sample = part_of(inputs, slice(0, 1))
    result, shape = results_of(forward_once(model, sample))[head.result], described(sample)
    with torch.no_grad():
        weights, bias = head.parameters(model)
    logits = result.reshape(-1, weights.shape[0]).float()[0] if result.numel() % weights.shape[0] == 0 else None
    classes, features = weights.shape
    return {
        "layer": head.name,
        "type": ", ".join(type(model.get_submodule(layer)).__name__ for layer in head.layers),
        "kind": ", ".join(dict.fromkeys(part.kind for part in head.parts)),
        "why": head.why,
        "rows": ROWS[head.positions],
        "classes": classes,
        "features": features,
        "bias": bias is not None,
        "inputs": shape,
        "output": list(result.shape),
        "prediction": None if logits is None else int(logits.argmax()),
        "confidence": None if logits is None else _confidence(logits, head.reading),
    }


def describe_backbone(rows: Backbone, model: nn.Module, inputs: Batch) -> dict[str, Any]:
    """Describe a model without a head and a forward pass, like `describe_head`; with no `layer`."""
    sample = part_of(inputs, slice(0, 1))
    features = rows.tapped(model, sample).features
    return {
        "layer": None,
        "rows": POOLED[rows.pooling],
        "features": features.shape[1],
        "inputs": described(sample),
        "output": list(features.shape),
    }


POOLED = {
    "features": "the model's output, one a sample",
    "mean": "the mean over the tokens of each sample",
    "cls": "the first token of each sample",
    "last": "the last token of each sample",
    "tokens": "every token of each sample",
}
ROWS = {
    "one": "one a sample",
    "mean": "the mean over positions of each sample",
    "chosen": "one position of each sample, which the model picks",
    "every": "every position of each sample",
}


def format_head(facts: Mapping[str, Any]) -> list[str]:
    """Format the results of `describe_head` or `describe_backbone`, and of `describe_layers`, as lines of text."""
    passed = f"forward pass: {facts['inputs']} → {' × '.join(map(str, facts['output']))}"
    if facts["layer"] is None:
        return [f"head: none; features: {facts['features']:,}, {facts['rows']}", passed]
    bias = "with bias" if facts["bias"] else "no bias"
    lines = [
        f"head: {facts['layer']} ({facts['type']}, {facts['kind']}), {facts['classes']:,} classes × "
        f"{facts['features']:,} features, {bias}: {facts['why']}"
    ]
    if facts["rows"] != ROWS["one"]:
        lines.append(f"rows: {facts['rows']}")
    if facts["prediction"] is not None:
        sure = f" ({facts['confidence']:.1%})" if facts["confidence"] is not None else ""
        passed += f", class {facts['prediction']}{sure}"
    return [*lines, passed, *_format_layers(facts)]


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


def _format_layers(facts: Mapping[str, Any]) -> list[str]:
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


def _confidence(logits: Tensor, reading: str) -> float | None:
    """Return the probability of the likeliest class, None for logits that are not finite, single or of a sigmoid."""
    if len(logits) < 2 or not bool(logits.isfinite().all()) or reading == "sigmoid":
        return None
    return float(logits.max() if reading == "softmax" else F.softmax(logits, dim=0).max())


def _of_transformers(config: Any, name: str, samples: int, draw: torch.Generator) -> Batch:
    if name == "pixel_values":
        side = getattr(config, "image_size", None) or SIDE
        height, width = (side, side) if isinstance(side, int) else (tuple(side) if len(side) == 2 else (SIDE, SIDE))
        return torch.randn(samples, getattr(config, "num_channels", 3), height, width, generator=draw)
    if name == "input_values":
        return {name: torch.randn(samples, WAVES, generator=draw)}
    if name == "input_ids":
        words = getattr(config, "vocab_size", None) or 2
        special = {getattr(config, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos", "cls", "sep")}
        known = torch.tensor([word for word in range(min(words, 1000)) if word not in special] or [0])
        ids = known[torch.randint(len(known), (samples, TOKENS), generator=draw)]
        return {name: ids, "attention_mask": torch.ones_like(ids)}
    raise UsageError(f"the model takes {name}, of a shape that is not known; name data for it with `data=`")


def _image_shape(model: nn.Module, arguments: Mapping[str, Any]) -> tuple[int, ...] | None:
    if "input_shape" in arguments:
        return tuple(arguments["input_shape"])
    cfg = getattr(model, "pretrained_cfg", None) or {}
    stated = cfg.get("input_size") if isinstance(cfg, Mapping) else None
    side: Any = arguments.get("img_size") or arguments.get("image_size") or getattr(model, "image_size", None)
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if stated is None and side is None and first is None:
        return None
    channels = arguments.get("in_chans") or (stated[0] if stated else first.in_channels if first else 3)
    if side is None:
        side = tuple(stated[1:]) if stated else SIDE
    height, width = (side, side) if isinstance(side, int) else tuple(side)
    return channels, height, width
