"""A model's head: the linear map that gives its logits, tapped for the rows that enter it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_probe.errors import DataError
from ckpt_probe.models.calling import Batch, call, evaluating, results_of, samples_in

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PROBED_AT_ONCE = 1024

Kind = Literal["linear", "convolution", "cosine", "affine"]
"""What a layer does to a row: W z + b with its own `weight` and `bias`, as a matrix or as a convolution that sees each
position, or the whole map, once; a product with the row's direction alone; or any other function that is affine."""

Positions = Literal["one", "mean", "chosen", "every"]
"""Which of a layer's rows are a sample's: its only one, their mean, the one that the model picks, or all of them."""


@dataclass(frozen=True)
class Part:
    """A layer whose output, times `scale`, enters the logits."""

    layer: str
    kind: Kind = "linear"
    positions: Positions = "one"
    scale: float = 1.0


@dataclass(frozen=True)
class Rows:
    """What enters a head and what comes out: features (m, D), logits (m, C); m is n, or n · positions where all count."""

    features: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Head:
    """The last linear map of a model: logits = features Wᵀ + b, where a model's output is `reading` of its logits.

    Several parts are a sum, such as the mean of two heads: their features stand side by side, and so do their weights.
    Features of a cosine head are unit rows, and its weights include the scale. `result` is the place of the output among
    `results_of`; `settled` says that nothing here depends on the weights, so that it holds for every checkpoint.
    """

    parts: tuple[Part, ...]
    reading: str = ""
    result: int = 0
    settled: bool = True
    why: str = "named by the caller"

    @property
    def name(self) -> str:
        """The layer's name, or the layers' joined by "+"."""
        return "+".join(part.layer for part in self.parts)

    @property
    def positions(self) -> Positions:
        """Which rows are a sample's."""
        return self.parts[0].positions

    def parameters(self, model: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Weights (C, D) and bias (C,), None where no part has one. Gradients reach the model's own parameters."""
        found = [(part.scale, *affine_map(model.get_submodule(part.layer), part.kind)) for part in self.parts]
        weights = torch.cat([_scaled(weights, scale) for scale, weights, _ in found], dim=1)
        biases = [_scaled(bias, scale) for scale, _, bias in found if bias is not None]
        return weights, torch.stack(biases).sum(dim=0) if len(biases) > 1 else (biases[0] if biases else None)

    def tapped(self, model: nn.Module, inputs: Batch) -> Rows:
        """One forward pass of the model as it is. Raises DataError where a layer does not run once, or on one row a sample
        where there should be one."""
        seen: dict[str, list[tuple[Tensor, Tensor]]] = {part.layer: [] for part in self.parts}
        hooks = [
            model.get_submodule(name).register_forward_hook(_recorder(calls), with_kwargs=True)
            for name, calls in seen.items()
        ]
        try:
            output = call(model, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        samples = samples_in(inputs)
        result = results_of(output)[self.result] if self.reading == "rectified" or self.positions == "chosen" else None
        rows = [self._rows(model, part, seen[part.layer], samples, result) for part in self.parts]
        if self.reading == "rectified":
            assert result is not None
            return Rows(rows[0].features, result.reshape(samples, -1))
        if len(rows) == 1:
            return Rows(rows[0].features, _scaled(rows[0].logits, self.parts[0].scale))
        logits = torch.stack([_scaled(each.logits, part.scale) for each, part in zip(rows, self.parts, strict=True)])
        return Rows(torch.cat([each.features for each in rows], dim=1), logits.sum(dim=0))

    def _rows(
        self, model: nn.Module, part: Part, calls: list[tuple[Tensor, Tensor]], samples: int, result: Tensor | None
    ) -> Rows:
        given, output = only_call(part.layer, calls)
        layer = model.get_submodule(part.layer)
        features, logits = laid_out(layer, part.kind, given, output, samples)
        if part.kind == "cosine":
            features = F.normalize(features, dim=-1)
        if part.positions == "every":
            return Rows(features.flatten(0, 1), logits.flatten(0, 1))
        if part.positions == "mean":
            return Rows(features.mean(dim=1), logits.mean(dim=1))
        if part.positions == "chosen":
            assert result is not None
            place = _chosen(part.layer, logits, result)
            rows = torch.arange(samples, device=place.device)
            return Rows(features[rows, place], logits[rows, place])
        if features.shape[1] != 1:
            raise DataError(
                f"classifier {part.layer} takes {tuple(given.shape)} for {samples} samples; one row of features a "
                "sample is needed"
            )
        return Rows(features[:, 0], logits[:, 0])


def affine_map(layer: nn.Module, kind: Kind) -> tuple[Tensor, Tensor | None]:
    """Weights (C, D) and bias (C,) of a layer; those of a layer that has none of its own are what it answers to unit
    vectors, and to zero."""
    if kind in ("linear", "convolution"):
        weight: Any = layer.weight
        bias: Any = getattr(layer, "bias", None)
        return weight.flatten(1), bias
    like = next((tensor for tensor in layer.parameters() if tensor.is_floating_point()), torch.zeros(()))
    width = _width(layer)
    with evaluating(layer):
        bias = None if kind == "cosine" else layer(like.new_zeros(1, width))[0]
        parts = []
        for start in range(0, width, PROBED_AT_ONCE):
            count = min(PROBED_AT_ONCE, width - start)
            unit = like.new_zeros(count, width)
            unit[torch.arange(count), torch.arange(start, start + count)] = 1
            parts.append(layer(unit))
    answers = torch.cat(parts)
    return (answers if bias is None else answers - bias).T, bias


def laid_out(layer: nn.Module, kind: Kind, given: Tensor, output: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """A layer's input and output as rows: (n, positions, D) and (n, positions, C).

    Raises DataError where the first dimension is not the samples'.
    """
    if given.ndim < 2 or len(given) != samples or len(output) != samples:
        raise DataError(
            f"a layer takes {tuple(given.shape)} for {samples} samples; rows of features by sample are needed"
        )
    if kind != "convolution":
        return given.reshape(samples, -1, given.shape[-1]), output.reshape(samples, -1, output.shape[-1])
    if isinstance(layer, CONVOLUTIONS) and max(layer.kernel_size) > 1:
        return given.flatten(1)[:, None], output.flatten(1)[:, None]
    return given.flatten(2).transpose(1, 2), output.flatten(2).transpose(1, 2)


def only_call(layer: str, calls: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Input and output of a layer's only call. Raises DataError where there were more, or none."""
    if len(calls) != 1:
        raise DataError(f"classifier {layer} ran {len(calls)} times in one forward pass, not once")
    return calls[0]


def first_tensor(arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor | None:
    """The tensor that a module was called with."""
    return next((value for value in (*arguments, *named.values()) if isinstance(value, Tensor)), None)


def _recorder(calls: list[tuple[Tensor, Tensor]]) -> Callable[..., None]:
    def record(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        given = first_tensor(arguments, named)
        if given is not None and isinstance(output, Tensor):
            calls.append((given, output))

    return record


def _chosen(layer: str, logits: Tensor, result: Tensor) -> Tensor:
    """For each sample the position (n,) at which a layer's outputs (n, positions, C) are the model's result (n, C)."""
    wanted = result.to(logits.dtype)[:, None]
    same = ((logits == wanted) | (logits.isnan() & wanted.isnan())).all(dim=-1)
    if not bool(same.any(dim=1).all()):
        first = int((~same.any(dim=1)).nonzero()[0])
        raise DataError(f"classifier {layer}: none of its outputs for sample {first} of a batch is the model's output")
    return same.int().argmax(dim=1)


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    return tensor if scale == 1 else scale * tensor
