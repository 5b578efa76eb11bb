"""The choice of layers: all blocks, every K-th of them, or layers by name."""

import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.models.calling import Batch, samples_in
from ckpt_probe.models.heads.backbone import Backbone
from ckpt_probe.models.heads.head import Head
from ckpt_probe.models.layers.blocks import blocks_of
from ckpt_probe.models.layers.passing import ModuleRun, observe_modules
from ckpt_probe.models.layers.pooling import POOLINGS, channel_axis, require_fitting
from ckpt_probe.models.layers.taps import PENULTIMATE, Tap, Taps


@runtime_checkable
class Describing(Protocol):
    """A part of a model that runs on descriptions of classes, such as captions, instead of samples.

    Each output row of its layers belongs to a description.
    """

    def owners(self) -> Tensor:
        """Return the class of each row, shape (rows,)."""
        ...


def choose_taps(
    model: nn.Module, inputs: Batch, head: Head | Backbone, layers: str, pooling: str | None = None
) -> Taps:
    """Choose layers of a model by running it on a batch, in execution order.

    Layers of a `Describing` part assign to each sample the mean row of its class.

    Args:
        model: The model.
        inputs: Inputs of a batch.
        head: The head, or the pooling of a model without one.
        layers: "penultimate" (only the classifier's input), "all", "every=K", or names joined by commas, in which *
            matches any text without a dot.
        pooling: One of `POOLINGS`; the default for the shape if None.

    Raises:
        UsageError: If a name matches no layer (the message lists the closest), or the pooling does not fit a shape.
        DataError: If a layer runs twice in a pass, or its output is no tensor with the samples first.
    """
    if pooling is not None and pooling not in POOLINGS:
        raise UsageError(f"`pooling={pooling!r}`: expected one of {', '.join(POOLINGS)}")
    step = _step(layers)
    if layers.strip() == PENULTIMATE:
        return Taps()
    seen = observe_modules(model, inputs)
    chosen = _named(layers, model, seen) if step is None else blocks_of(model, seen, head.layers)[::step]
    return Taps(
        tuple(
            _tap(
                run,
                number / len(chosen),
                _owners(model, run.name),
                samples_in(inputs),
                pooling,
                every=head.positions == "every",
            )
            for number, run in enumerate(chosen)
        )
    )


def _step(layers: str) -> int | None:
    """Return K of "every=K", 1 for "all", None for names; raise UsageError for an invalid K."""
    if layers.strip() == "all":
        return 1
    if not layers.startswith("every="):
        return None
    text = layers.removeprefix("every=")
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"`layers={layers!r}`: expected every=K with a whole number K of at least 1")
    return int(text)


def _named(layers: str, model: nn.Module, seen: Mapping[str, ModuleRun]) -> list[ModuleRun]:
    names = [name for name, _ in model.named_modules() if name]
    chosen: dict[str, ModuleRun] = {}
    for pattern in (part.strip() for part in layers.split(",")):
        if pattern == PENULTIMATE:
            continue
        matched = _matching(pattern, names)
        if not matched:
            near = get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise UsageError(f"`layers={pattern!r}`: no layer has that name; closest: {listed(near)}")
        silent = [name for name in matched if name not in seen]
        if silent:
            raise UsageError(f"`layers={pattern!r}`: the model does not run {listed(silent)}")
        chosen |= {name: seen[name] for name in matched}
    return sorted(chosen.values(), key=lambda run: run.finished)


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    wanted = re.compile("[^.]*".join(re.escape(part) for part in pattern.split("*")))
    return [name for name in names if wanted.fullmatch(name)]


def _owners(model: nn.Module, name: str) -> Tensor | None:
    """Return the class of each output row of a module in a part that describes classes, else None."""
    parts = name.split(".")
    outer = (model.get_submodule(".".join(parts[:length])) for length in range(len(parts)))
    return next((module.owners() for module in outer if isinstance(module, Describing)), None)


def _tap(run: ModuleRun, depth: float, owners: Tensor | None, samples: int, pooling: str | None, *, every: bool) -> Tap:
    if run.name == PENULTIMATE or "/" in run.name:
        raise DataError(f"layer {run.name!r}: a dump cannot hold a layer of that name")
    if run.calls > 1:
        raise DataError(f"layer {run.name} runs {run.calls} times in a forward pass; name other layers with `layers=`")
    if run.shape is None:
        raise DataError(f"layer {run.name} gives no tensor; name other layers with `layers=`")
    if owners is not None and (every or len(run.shape) != 2 or run.shape[0] != len(owners)):
        message = f"{run.shape} for {len(owners)} descriptions of classes"
        raise DataError(f"layer {run.name} gives {message}; (descriptions, D) is needed, and one label a sample")
    if owners is None and (len(run.shape) < 2 or run.shape[0] != samples):
        raise DataError(f"layer {run.name} gives {run.shape} for {samples} samples; (n, …) is needed")
    axis = channel_axis(run.module, run.shape)
    how = require_fitting(run.name, run.shape, pooling, axis, every=every)
    shape = run.shape[1:]
    width = math.prod(shape) if how == "flatten" else shape[0 if axis == 1 else -1]
    return Tap(run.name, depth, how, shape, width, axis, owners)
