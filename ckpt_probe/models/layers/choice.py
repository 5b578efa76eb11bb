"""Which layers are tapped: all that a person would name, every K-th of them, or those with these names."""

import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from torch import Tensor, nn

from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.models.calling import Batch, samples_in
from ckpt_probe.models.heads.backbone import Backbone
from ckpt_probe.models.heads.head import Head
from ckpt_probe.models.layers.blocks import blocks_of
from ckpt_probe.models.layers.passing import Seen, watched
from ckpt_probe.models.layers.pooling import POOLINGS, channel_axis, require_fitting
from ckpt_probe.models.layers.taps import PENULTIMATE, Tap, Taps
from ckpt_probe.models.two_source import Describing


def choose_taps(
    model: nn.Module, inputs: Batch, head: Head | Backbone, layers: str, pooling: str | None = None
) -> Taps:
    """The layers of a model that `layers` names, found by running it on a batch of inputs, in execution order.

    layers: "penultimate" (none beside the classifier's input), "all", "every=K", or names joined by commas, in which *
    stands for any text without a dot. Those of a part that is `Describing` give each sample the mean row of its class.
    pooling: one of `POOLINGS`, the usual one for the shape where None. Raises UsageError where a name matches no layer
    (with the closest ones), or the pooling does not fit a shape; DataError where a layer runs twice in a pass, or gives
    no tensor with the samples first.
    """
    if pooling is not None and pooling not in POOLINGS:
        raise UsageError(f"--pooling {pooling}: expected one of {', '.join(POOLINGS)}")
    step = _step(layers)
    if layers.strip() == PENULTIMATE:
        return Taps()
    seen = watched(model, inputs)
    chosen = _named(layers, model, seen) if step is None else blocks_of(model, seen, head.layers)[::step]
    return Taps(
        tuple(
            _tap(
                one,
                number / len(chosen),
                _owners(model, one.name),
                samples_in(inputs),
                pooling,
                every=head.positions == "every",
            )
            for number, one in enumerate(chosen)
        )
    )


def _step(layers: str) -> int | None:
    """K of "every=K", 1 for "all", None for names. Raises UsageError where K is no whole number above 0."""
    if layers.strip() == "all":
        return 1
    if not layers.startswith("every="):
        return None
    text = layers.removeprefix("every=")
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--layers {layers}: expected every=K with a whole number K of at least 1")
    return int(text)


def _named(layers: str, model: nn.Module, seen: Mapping[str, Seen]) -> list[Seen]:
    names = [name for name, _ in model.named_modules() if name]
    found: dict[str, Seen] = {}
    for pattern in (part.strip() for part in layers.split(",")):
        if pattern == PENULTIMATE:
            continue
        matched = _matching(pattern, names)
        if not matched:
            near = get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise UsageError(f"--layers {pattern}: no layer has that name; closest: {listed(near)}")
        silent = [name for name in matched if name not in seen]
        if silent:
            raise UsageError(f"--layers {pattern}: the model does not run {listed(silent)}")
        found |= {name: seen[name] for name in matched}
    return sorted(found.values(), key=lambda one: one.finished)


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    wanted = re.compile("[^.]*".join(re.escape(part) for part in pattern.split("*")))
    return [name for name in names if wanted.fullmatch(name)]


def _owners(model: nn.Module, name: str) -> Tensor | None:
    """The class of each row that a module gives, where it is in a part of the model that describes classes."""
    parts = name.split(".")
    outer = (model.get_submodule(".".join(parts[:length])) for length in range(len(parts)))
    return next((module.owners() for module in outer if isinstance(module, Describing)), None)


def _tap(one: Seen, depth: float, owners: Tensor | None, samples: int, pooling: str | None, *, every: bool) -> Tap:
    if one.name == PENULTIMATE or "/" in one.name:
        raise DataError(f"layer {one.name!r}: a dump cannot hold a layer of that name")
    if one.calls > 1:
        raise DataError(f"layer {one.name} runs {one.calls} times in one forward pass; name other layers by --layers")
    if one.shape is None:
        raise DataError(f"layer {one.name} gives no tensor; name other layers by --layers")
    if owners is not None and (every or len(one.shape) != 2 or one.shape[0] != len(owners)):
        told = f"{one.shape} for {len(owners)} descriptions of classes"
        raise DataError(f"layer {one.name} gives {told}; (descriptions, D) is needed, and one label a sample")
    if owners is None and (len(one.shape) < 2 or one.shape[0] != samples):
        raise DataError(f"layer {one.name} gives {one.shape} for {samples} samples; (n, …) is needed")
    axis = channel_axis(one.module, one.shape)
    how = require_fitting(one.name, one.shape, pooling, axis, every=every)
    shape = one.shape[1:]
    width = math.prod(shape) if how == "flatten" else shape[0 if axis == 1 else -1]
    return Tap(one.name, depth, how, shape, width, axis, owners)
