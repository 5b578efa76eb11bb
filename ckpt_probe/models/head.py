"""A model's head: the linear map that computes its logits, and the rows that enter it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_probe.errors import DataError
from ckpt_probe.models.calling import Batch, Call, call, evaluating, results_of, samples_in, tapping

if TYPE_CHECKING:
    from ckpt_probe.models.pooling import Backbone

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PROBED_AT_ONCE = 1024

Kind = Literal["linear", "convolution", "cosine", "affine"]
"""Kind of a layer: "linear" and "convolution" compute W z + b with their `weight` and `bias`, a convolution for each
position or the complete map once; "cosine" depends only on the row's direction; "affine" is any other such function."""

FINAL_LOGITS = ("rectified", "softcapped")
"""Readings whose results are the model's final logits, used for loss and prediction."""

READINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda logits: logits,
    "log-softmax": partial(torch.log_softmax, dim=1),
    "softmax": partial(torch.softmax, dim=1),
    "sigmoid": torch.sigmoid,
}
"""Functions from logits (n, C) to the model's output."""

Positions = Literal["one", "mean", "chosen", "every"]
"""Rows of a layer that belong to a sample: the only one, their mean, the one that the model chooses, or all."""


def affine_map(layer: nn.Module, kind: Kind, width: int) -> tuple[Tensor, Tensor | None]:
    """Return weights, shape (C, D), and bias, shape (C,) or None, of a layer.

    For kinds other than "linear" and "convolution" they are computed from its outputs for unit vectors and zero.

    Args:
        layer: The layer.
        kind: Its kind of linear map.
        width: Number of features D of its input.
    """
    like = next((tensor for tensor in layer.parameters() if tensor.is_floating_point()), torch.zeros(()))
    # In training a spectral norm changes whenever the weight is read.
    with evaluating(layer):
        if kind in ("linear", "convolution"):
            weight: Any = layer.weight
            return weight.flatten(1), getattr(layer, "bias", None)
        bias: Any = None if kind == "cosine" else layer(like.new_zeros(1, width))[0]
        parts = []
        for start in range(0, width, PROBED_AT_ONCE):
            count = min(PROBED_AT_ONCE, width - start)
            unit = like.new_zeros(count, width)
            unit[torch.arange(count), torch.arange(start, start + count)] = 1
            parts.append(layer(unit))
    answers = torch.cat(parts)
    return (answers if bias is None else answers - bias).T, bias


def by_position(layer: nn.Module, values: Tensor) -> Tensor:
    """Return the input or output of a layer as rows, shape (n, positions, D)."""
    if isinstance(layer, CONVOLUTIONS):
        return values.flatten(2).transpose(1, 2)
    return values.reshape(len(values), -1, values.shape[-1])


def rows_by_position(layer: nn.Module, received: Tensor, output: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Return a layer's input and output as rows, shapes (n, positions, D) and (n, positions, C).

    Args:
        layer: The layer.
        received: Its input.
        output: Its output.
        samples: Number of samples n.

    Raises:
        DataError: If the first dimension is not the number of samples.
    """
    if received.ndim < 2 or len(received) != samples or len(output) != samples:
        shape = tuple(received.shape)
        raise DataError(f"the classifier ran on {shape} for {samples} labels; expected a row of features for each")
    if isinstance(layer, CONVOLUTIONS) and max(layer.kernel_size) > 1:
        return received.flatten(1)[:, None], output.flatten(1)[:, None]
    return by_position(layer, received), by_position(layer, output)


def as_rows(kind: Kind, features: Tensor) -> Tensor:
    """Normalise rows, shape (…, D), to length 1 for a cosine; return others unchanged."""
    return F.normalize(features, dim=-1) if kind == "cosine" else features


@dataclass(frozen=True)
class Part:
    """A layer whose output, times `scale`, enters the logits.

    Attributes:
        layer: Name of the layer.
        width: Number of features D of its input.
        kind: Its kind of linear map.
        positions: Which of its rows belong to a sample.
        scale: Factor of its output.
    """

    layer: str
    width: int = 0
    kind: Kind = "linear"
    positions: Positions = "one"
    scale: float = 1.0


@dataclass(frozen=True)
class Rows:
    """Input and output of a head for n samples.

    Args:
        features: Rows that enter the head, shape (m, D), where m is n or n · positions.
        logits: Rows that it returns, shape (m, C).
    """

    features: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Head:
    """The last linear map of a model: logits = features Wᵀ + b.

    Features of a cosine head are unit rows, and its weights include the scale.

    Args:
        parts: Layers whose outputs are summed, such as two heads that are averaged; their features and their weights
            are concatenated.
        reading: Function from the logits to the model's output, such as "softmax"; "" for the logits themselves.
        result: Index of the output among `results_of`.
        settled: Whether the head holds for every checkpoint, because no scale depends on the weights.
        why: Why this is the head, as a sentence for users.
    """

    parts: tuple[Part, ...]
    reading: str = ""
    result: int = 0
    settled: bool = True
    why: str = "named by the caller"

    @property
    def name(self) -> str:
        """Return the layer's name, or the names of several layers joined by "+"."""
        return "+".join(self.layers)

    @property
    def layers(self) -> tuple[str, ...]:
        """Return the names of its layers."""
        return tuple(part.layer for part in self.parts)

    @cached_property
    def positions(self) -> Positions:
        """Return which rows belong to a sample."""
        return self.parts[0].positions

    def parameters(self, model: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Return weights, shape (C, D), and bias, shape (C,) or None; gradients reach the model's parameters."""
        scaled_maps = [
            (part.scale, *affine_map(model.get_submodule(part.layer), part.kind, part.width)) for part in self.parts
        ]
        weights = torch.cat([_scaled(weights, scale) for scale, weights, _ in scaled_maps], dim=1)
        biases = [_scaled(bias, scale) for scale, _, bias in scaled_maps if bias is not None]
        return weights, torch.stack(biases).sum(dim=0) if len(biases) > 1 else (biases[0] if biases else None)

    @property
    def shows_logits(self) -> bool:
        """Return whether the model's results are its final logits, although they differ from W z + b."""
        return self.reading in FINAL_LOGITS

    @property
    def ends(self) -> bool:
        """Return whether logits are W z + b of the input of one layer, so that a forward pass may end before it.

        See `rows_entering`.
        """
        return self.settled and not self.reading and len(self.parts) == 1 and self.parts[0].kind == "linear"

    def tapped(self, model: nn.Module, inputs: Batch) -> Rows:
        """Return the rows of one complete forward pass.

        Raises:
            DataError: If a layer does not run exactly once, or on several rows per sample where one is expected; or if
                the model's output is not what it was of these layers for the samples by which they were found.
        """
        with self.tapping(model) as calls:
            output = call(model, inputs)
        rows = self.rows(model, calls, output, samples_in(inputs))
        # In training, dropout or further results may follow the logits.
        if not (self.settled or self.shows_logits or model.training) and self.positions in ("one", "mean"):
            self._require_relation(rows.logits, results_of(output)[self.result])
        return rows

    def _require_relation(self, logits: Tensor, result: Tensor) -> None:
        """Raise DataError if a result of the model, n · C numbers, does not follow from the logits (n, C)."""
        tolerance = 0.05 if torch.finfo(result.dtype).bits < 32 else 1e-3
        read = READINGS[self.reading](logits.float())
        result = result.reshape(read.shape).float()
        comparable = read.isfinite() & result.isfinite()
        read, result = read[comparable], result[comparable]
        if len(read) and bool(((read - result).abs() > tolerance * result.abs().max()).any()):
            raise DataError(
                f"classifier {self.name}: the model's output follows from it for some samples, but not for all, as if "
                "the model chose among several heads; name another layer by `classifier=`"
            )

    def tapping(
        self, model: nn.Module, is_enabled: Callable[[], bool] | None = None
    ) -> AbstractContextManager[dict[str, list[Call]]]:
        """Record the calls of its layers within the `with` block, in forward passes of the caller; see `rows`.

        Args:
            model: The model.
            is_enabled: Returns whether to record the current call; None to record all.
        """
        layers = {part.layer: model.get_submodule(part.layer) for part in self.parts}
        return tapping(layers, copied=not self.settled, is_enabled=is_enabled)

    def rows(self, model: nn.Module, calls: Mapping[str, Sequence[Call]], output: Any, samples: int) -> Rows:
        """Return the rows of one forward pass from recorded calls; they may share memory with the model's tensors.

        Args:
            model: The model.
            calls: Calls of the head's layers, by name.
            output: Output of the model.
            samples: Number of samples of the batch.

        Raises:
            DataError: See `tapped`.
        """
        final = self.shows_logits
        result = results_of(output)[self.result] if final or self.positions == "chosen" else None
        rows = [self._rows(model, part, calls[part.layer], samples, result) for part in self.parts]
        if len(rows) == 1 and not final:
            return rows[0]
        features = torch.cat([each.features for each in rows], dim=1)
        if final and result is not None:
            return Rows(features, result.reshape(len(features), -1))
        return Rows(features, torch.stack([each.logits for each in rows]).sum(dim=0))

    def _rows(self, model: nn.Module, part: Part, calls: Sequence[Call], samples: int, result: Tensor | None) -> Rows:
        received, output = only_call(part.layer, calls)
        layer = model.get_submodule(part.layer)
        features, logits = rows_by_position(layer, received, output, samples)
        features = as_rows(part.kind, features)
        if part.positions == "every":
            features, logits = features.flatten(0, 1), logits.flatten(0, 1)
        elif part.positions == "mean":
            features, logits = features.mean(dim=1), logits.mean(dim=1)
        elif result is not None and part.positions == "chosen":
            position = _chosen(part.layer, logits, result)
            rows = torch.arange(samples, device=position.device)
            features, logits = features[rows, position], logits[rows, position]
        elif features.shape[1] == 1:
            features, logits = features[:, 0], logits[:, 0]
        else:
            raise DataError(
                f"classifier {part.layer} takes {tuple(received.shape)} for {samples} samples; one row of features "
                "per sample is needed"
            )
        return Rows(features, _scaled(logits, part.scale))


def head_parameters(model: nn.Module, head: "Head | Backbone") -> tuple[Tensor, Tensor | None]:
    """Return weights (C, D) and bias (C,) of a model's head on the CPU, as float64, which represents them exactly.

    Args:
        model: The model.
        head: Its head, or the pooling of a model without one, which has no classes.
    """
    with torch.no_grad():
        weights, bias = head.parameters(model)
    return weights.detach().cpu().double(), None if bias is None else bias.detach().cpu().double()


def is_scored(head: "Head | Backbone", classes: int) -> bool:
    """Return whether predictions and losses are computed in place of logits.

    That is the case if every position of a sample is a row, and there are more logits than features per row.

    Args:
        head: The head, or the pooling of a model without one.
        classes: Number of classes.
    """
    return head.positions == "every" and classes > sum(part.width for part in head.parts)


def only_call(layer: str, calls: Sequence[Call]) -> Call:
    """Return input and output of a layer's only call; raise DataError if there were more or none."""
    if len(calls) != 1:
        raise DataError(f"classifier {layer} ran {len(calls)} times in one forward pass, not once")
    return calls[0]


def _chosen(layer: str, logits: Tensor, result: Tensor) -> Tensor:
    """Return the position of each sample, shape (n,), whose logits are the model's result.

    Args:
        layer: Name of the layer, for the message.
        logits: Outputs of the layer, shape (n, positions, C).
        result: Output of the model, shape (n, C).
    """
    wanted = result.to(logits.dtype)[:, None]
    same = ((logits == wanted) | (logits.isnan() & wanted.isnan())).all(dim=-1)
    if not bool(same.any(dim=1).all()):
        first = int((~same.any(dim=1)).nonzero()[0])
        raise DataError(f"classifier {layer}: none of its outputs for sample {first} of a batch is the model's output")
    return same.int().argmax(dim=1)


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    return tensor if scale == 1 else scale * tensor
