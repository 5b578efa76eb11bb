"""Choose layers of a model, and return their outputs in a forward pass as rows, pooled at once to save memory."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.models.blocks import ModuleRun, activation_in, blocks_of, observe_modules
from ckpt_probe.models.calling import Batch, samples_in
from ckpt_probe.models.head import Head
from ckpt_probe.models.pooling import POOLINGS, Backbone, channel_axis, padding_mask, pooled, require_fitting

PENULTIMATE = "penultimate"
"""Name of the classifier's input among the layers: the last of them, with depth 1."""


@runtime_checkable
class Describing(Protocol):
    """A part of a model that runs on descriptions of classes, such as captions, instead of samples.

    Each output row of its layers belongs to a description.
    """

    def owners(self) -> Tensor:
        """Return the class of each row, shape (rows,)."""
        ...


@dataclass(frozen=True)
class LayerTap:
    """A layer whose output becomes rows.

    Args:
        layer: Name of the layer.
        depth: Position in execution order, from 0 for the first layer to 1 for the classifier's input.
        pooling: The pooling of its output.
        shape: Shape of its output for one sample.
        width: Number of features of a row.
        axis: 1 if channels come before positions, else −1.
        owners: Class of each row, if rows are descriptions of classes instead of samples; a sample then has the mean
            row of its class.
    """

    layer: str
    depth: float
    pooling: str
    shape: tuple[int, ...]
    width: int
    axis: int = -1
    owners: Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Taps:
    """Layers of a model in execution order, without the classifier's input, which the head gives."""

    layers: tuple[LayerTap, ...] = ()

    @contextmanager
    def tapping(self, model: nn.Module, inputs: Batch) -> Iterator[dict[str, list[Tensor]]]:
        """Record the outputs of taps in one forward pass within the `with` block; `rows_in` returns their rows.

        Raises:
            DataError: If a layer returns no tensor, or one of another shape than when it was chosen.
        """
        recorded: dict[str, list[Tensor]] = {tap.layer: [] for tap in self.layers}
        with ExitStack() as hooks:
            for tap in self.layers:
                record = _recorder(tap, inputs, recorded[tap.layer])
                hooks.enter_context(model.get_submodule(tap.layer).register_forward_hook(record))
            yield recorded

    def rows_in(self, recorded: Mapping[str, list[Tensor]], rows: int) -> dict[str, Tensor]:
        """Return the rows of every tap, shape (m, D), by layer.

        Args:
            recorded: Outputs from `tapping`.
            rows: Number of rows m of the head; taps of descriptions of classes have their own number.

        Raises:
            DataError: If a layer did not run exactly once, or returned another number of rows.
        """
        for tap in self.layers:
            outputs = recorded[tap.layer]
            if len(outputs) != 1:
                raise DataError(
                    f"layer {tap.layer} ran {len(outputs)} times in one forward pass, not once; leave it out"
                )
            if len(outputs[0]) != rows and tap.owners is None:
                raise DataError(f"layer {tap.layer} gives {len(outputs[0])} rows, the classifier {rows}")
        return {tap.layer: recorded[tap.layer][0] for tap in self.layers}

    def of_samples(self, layers: Mapping[str, Tensor], labels: Tensor, selected: Tensor | None) -> dict[str, Tensor]:
        """Return a row of every tap for each label, shape (n, D), by layer.

        Args:
            layers: Rows from `rows_in`.
            labels: Labels of the samples, shape (n,).
            selected: Indices or mask of rows to return; all if None. Not used for descriptions of classes, which return
                the mean row of each label's class.

        Raises:
            DataError: If a sample needs the description of a class and has no label, or the class has none.
        """
        which = slice(None) if selected is None else selected
        return {
            tap.layer: layers[tap.layer][which] if tap.owners is None else _mean_rows(tap, layers[tap.layer], labels)
            for tap in self.layers
        }


def _recorder(tap: LayerTap, inputs: Batch, recorded: list[Tensor]) -> Callable[..., None]:
    samples, mask = samples_in(inputs) if tap.owners is None else len(tap.owners), padding_mask(inputs)

    def record(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
        activation = activation_in(output)
        if activation is None:
            raise DataError(f"layer {tap.layer} gives {type(output).__name__}, in which there is no tensor")
        shape = tuple(activation.shape)
        if len(shape) != 1 + len(tap.shape) or shape[0] != samples:
            of = "samples" if tap.owners is None else "descriptions"
            raise DataError(f"layer {tap.layer} gives {shape} for {samples} {of}, {('n', *tap.shape)} at first")
        # Pooled at once, because later layers may change the tensor in place.
        rows = pooled(activation, tap.pooling, tap.axis, mask)
        if rows.shape[1] != tap.width:
            message = f"{rows.shape[1]} features now, {tap.width} at first"
            raise DataError(f"layer {tap.layer} changes its shape between passes: {message}")
        recorded.append(rows)

    return record


def _mean_rows(tap: LayerTap, rows: Tensor, labels: Tensor) -> Tensor:
    assert tap.owners is not None
    owners, labels = tap.owners.to(rows.device), labels.to(rows.device)
    counts = torch.bincount(owners)
    described = (labels >= 0) & (labels < len(counts))
    if not bool((described & (counts[labels.clamp(0, len(counts) - 1)] > 0)).all()):
        raise DataError(
            f"layer {tap.layer} describes classes: every sample needs a label, of a class that is described"
        )
    sums = rows.new_zeros(len(counts), rows.shape[1]).index_add(0, owners, rows)
    return (sums / counts.clamp_min(1)[:, None].to(rows.dtype))[labels]


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
    samples, every = samples_in(inputs), head.positions == "every"
    taps = [_tap(model, run, number / len(chosen), samples, pooling, every) for number, run in enumerate(chosen)]
    return Taps(tuple(taps))


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


def _tap(model: nn.Module, run: ModuleRun, depth: float, samples: int, pooling: str | None, every: bool) -> LayerTap:
    owners = _owners(model, run.name)
    if run.name == PENULTIMATE or "/" in run.name:
        raise DataError(f"layer {run.name!r}: a dump cannot hold a layer of that name")
    if run.calls > 1:
        raise DataError(
            f"layer {run.name} runs {run.calls} times in one forward pass; name other layers with `layers=`"
        )
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
    return LayerTap(run.name, depth, how, shape, width, axis, owners)
