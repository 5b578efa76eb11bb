"""Layers of a model tapped in one forward pass: what each gives becomes rows at once, so that nothing large is kept."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_probe.errors import DataError
from ckpt_probe.models.calling import Batch, samples_in
from ckpt_probe.models.heads.backbone import Backbone
from ckpt_probe.models.heads.head import Head, Rows
from ckpt_probe.models.layers.passing import activation_in
from ckpt_probe.models.layers.pooling import pooled
from ckpt_probe.models.pooling import padding_mask

PENULTIMATE = "penultimate"
"""The name of the classifier's input among the layers: the last of them, of depth 1."""


@dataclass(frozen=True)
class Tap:
    """A layer whose output becomes rows of `width` features.

    depth: its place among the layers in execution order, 0 for the first, 1 for the classifier's input. shape: what it
    gives a sample. axis: 1 where its channels come before places, else −1. owners: the class of each of its rows where
    these are not of samples but of descriptions of classes; a sample then has the mean row of its class.
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

    layers: tuple[Tap, ...] = ()

    def tapped(self, model: nn.Module, head: Head | Backbone, inputs: Batch) -> tuple[Rows, dict[str, Tensor]]:
        """One forward pass: the rows of the head and, by layer, of every tap (m, D); errors as `tapping`, `rows_in`."""
        with self.tapping(model, inputs) as found:
            rows = head.tapped(model, inputs)
        return rows, self.rows_in(found, len(rows.features))

    @contextmanager
    def tapping(self, model: nn.Module, inputs: Batch) -> Iterator[dict[str, list[Tensor]]]:
        """Record, for one forward pass within the `with`, what each tap gives; `rows_in` makes rows of it.

        Raises DataError where a layer gives no tensor, or one of another shape than at first.
        """
        found: dict[str, list[Tensor]] = {tap.layer: [] for tap in self.layers}
        hooks = [
            model.get_submodule(tap.layer).register_forward_hook(_recorder(tap, inputs, found[tap.layer]))
            for tap in self.layers
        ]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    def rows_in(self, found: Mapping[str, list[Tensor]], rows: int) -> dict[str, Tensor]:
        """The rows (m, D) of every tap, by layer; m is `rows`, those that the head gives, or that of descriptions.

        Raises DataError where a layer did not run exactly once, or gives another number of rows.
        """
        layers = {tap.layer: _only(tap, found[tap.layer]) for tap in self.layers}
        for tap in self.layers:
            given = len(layers[tap.layer])
            if given != rows and tap.owners is None:
                raise DataError(f"layer {tap.layer} gives {given} rows, the classifier {rows}")
        return layers

    def of_samples(self, layers: Mapping[str, Tensor], labels: Tensor, kept: Tensor | None) -> dict[str, Tensor]:
        """The rows (n, D) of every tap for n labels: those `kept`, of descriptions the mean of those of its class.

        Raises DataError where a sample without a label, or of a class that is not described, would need one.
        """
        found = {}
        for tap in self.layers:
            rows = layers[tap.layer]
            if tap.owners is None:
                found[tap.layer] = rows if kept is None else rows[kept]
            else:
                found[tap.layer] = _mean_rows(tap.layer, rows, tap.owners.to(rows.device), labels.to(rows.device))
        return found


def _recorder(tap: Tap, inputs: Batch, found: list[Tensor]) -> Callable[..., None]:
    samples, mask = samples_in(inputs) if tap.owners is None else len(tap.owners), padding_mask(inputs)

    def record(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
        activation = activation_in(output)
        if activation is None:
            raise DataError(f"layer {tap.layer} gives {type(output).__name__}, in which there is no tensor")
        shape = tuple(activation.shape)
        if len(shape) != 1 + len(tap.shape) or shape[0] != samples:
            of = "samples" if tap.owners is None else "descriptions"
            raise DataError(f"layer {tap.layer} gives {shape} for {samples} {of}, {('n', *tap.shape)} at first")
        # At once: what follows may change it in place.
        rows = pooled(activation, tap.pooling, tap.axis, mask)
        if rows.shape[1] != tap.width:
            told = f"{rows.shape[1]} features now, {tap.width} at first"
            raise DataError(f"layer {tap.layer} changes its shape between passes: {told}")
        found.append(rows)

    return record


def _mean_rows(layer: str, rows: Tensor, owners: Tensor, labels: Tensor) -> Tensor:
    counts = torch.bincount(owners)
    described = (labels >= 0) & (labels < len(counts))
    if not bool((described & (counts[labels.clamp(0, len(counts) - 1)] > 0)).all()):
        raise DataError(f"layer {layer} describes classes: every sample needs a label, of a class that is described")
    sums = rows.new_zeros(len(counts), rows.shape[1]).index_add(0, owners, rows)
    return (sums / counts.clamp_min(1)[:, None].to(rows.dtype))[labels]


def _only(tap: Tap, found: list[Tensor]) -> Tensor:
    if len(found) != 1:
        raise DataError(f"layer {tap.layer} ran {len(found)} times in one forward pass, not once; leave it out")
    return found[0]
