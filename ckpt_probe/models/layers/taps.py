"""Rows of several layers from one forward pass; each output is pooled at once, which saves memory."""

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
"""Name of the classifier's input among the layers: the last of them, with depth 1."""


@dataclass(frozen=True)
class Tap:
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

    layers: tuple[Tap, ...] = ()

    def tapped(self, model: nn.Module, head: Head | Backbone, inputs: Batch) -> tuple[Rows, dict[str, Tensor]]:
        """Run one forward pass, and return the rows of the head and of every tap, shape (m, D), by layer.

        Raises:
            DataError: See `tapping` and `rows_in`.
        """
        with self.tapping(model, inputs) as recorded:
            rows = head.tapped(model, inputs)
        return rows, self.rows_in(recorded, len(rows.features))

    @contextmanager
    def tapping(self, model: nn.Module, inputs: Batch) -> Iterator[dict[str, list[Tensor]]]:
        """Record the outputs of taps in one forward pass within the `with` block; `rows_in` returns their rows.

        Raises:
            DataError: If a layer returns no tensor, or one of another shape than when it was chosen.
        """
        recorded: dict[str, list[Tensor]] = {tap.layer: [] for tap in self.layers}
        hooks = [
            model.get_submodule(tap.layer).register_forward_hook(_recorder(tap, inputs, recorded[tap.layer]))
            for tap in self.layers
        ]
        try:
            yield recorded
        finally:
            for hook in hooks:
                hook.remove()

    def rows_in(self, recorded: Mapping[str, list[Tensor]], rows: int) -> dict[str, Tensor]:
        """Return the rows of every tap, shape (m, D), by layer.

        Args:
            recorded: Outputs from `tapping`.
            rows: Number of rows m of the head; taps of descriptions of classes have their own number.

        Raises:
            DataError: If a layer did not run exactly once, or returned another number of rows.
        """
        layers = {tap.layer: _only(tap, recorded[tap.layer]) for tap in self.layers}
        for tap in self.layers:
            count = len(layers[tap.layer])
            if count != rows and tap.owners is None:
                raise DataError(f"layer {tap.layer} gives {count} rows, the classifier {rows}")
        return layers

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
        rows_of_layer = {}
        for tap in self.layers:
            rows = layers[tap.layer]
            if tap.owners is None:
                rows_of_layer[tap.layer] = rows if selected is None else rows[selected]
            else:
                rows_of_layer[tap.layer] = _mean_rows(
                    tap.layer, rows, tap.owners.to(rows.device), labels.to(rows.device)
                )
        return rows_of_layer


def _recorder(tap: Tap, inputs: Batch, recorded: list[Tensor]) -> Callable[..., None]:
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


def _mean_rows(layer: str, rows: Tensor, owners: Tensor, labels: Tensor) -> Tensor:
    counts = torch.bincount(owners)
    described = (labels >= 0) & (labels < len(counts))
    if not bool((described & (counts[labels.clamp(0, len(counts) - 1)] > 0)).all()):
        raise DataError(f"layer {layer} describes classes: every sample needs a label, of a class that is described")
    sums = rows.new_zeros(len(counts), rows.shape[1]).index_add(0, owners, rows)
    return (sums / counts.clamp_min(1)[:, None].to(rows.dtype))[labels]


def _only(tap: Tap, recorded: list[Tensor]) -> Tensor:
    if len(recorded) != 1:
        raise DataError(f"layer {tap.layer} ran {len(recorded)} times in one forward pass, not once; leave it out")
    return recorded[0]
