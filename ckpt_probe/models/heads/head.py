"""A model's head: the linear map that gives its logits, tapped for the rows that enter it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ckpt_probe.errors import DataError
from ckpt_probe.models.calling import Batch, Call, call, results_of, samples_in, stopped_at, tapping
from ckpt_probe.models.heads.linear_map import Kind, affine_map, as_rows, laid_out

FINAL_LOGITS = ("rectified", "softcapped")
"""Readings whose results are the model's final logits, from which loss and prediction come."""

Positions = Literal["one", "mean", "chosen", "every"]
"""Which of a layer's rows are a sample's: its only one, their mean, the one that the model picks, or all of them."""


@dataclass(frozen=True)
class Part:
    """A layer whose output, times `scale`, enters the logits."""

    layer: str
    width: int
    kind: Kind = "linear"
    positions: Positions = "one"
    scale: float = 1.0


@dataclass(frozen=True)
class Rows:
    """What enters a head and comes out: features (m, D), logits (m, C); m is n, or n · positions."""

    features: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Head:
    """The last linear map of a model: logits = features Wᵀ + b, where a model's output is `reading` of its logits.

    Several parts are a sum, such as the mean of two heads: their features stand side by side, and so do their weights.
    Features of a cosine head are unit rows, and its weights include the scale. `result` is the place of the output
    among `results_of`; `settled` says that no scale was read from the weights, so that it holds for every checkpoint.
    """

    parts: tuple[Part, ...]
    reading: str = ""
    result: int = 0
    settled: bool = True
    why: str = "named by the caller"

    @property
    def name(self) -> str:
        """The layer's name, or the layers' joined by "+"."""
        return "+".join(self.layers)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of its layers."""
        return tuple(part.layer for part in self.parts)

    @property
    def positions(self) -> Positions:
        """Which rows are a sample's."""
        return self.parts[0].positions

    def parameters(self, model: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Weights (C, D) and bias (C,), None where no part has one. Gradients reach the model's own parameters."""
        found = [
            (part.scale, *affine_map(model.get_submodule(part.layer), part.kind, part.width)) for part in self.parts
        ]
        weights = torch.cat([_scaled(weights, scale) for scale, weights, _ in found], dim=1)
        biases = [_scaled(bias, scale) for scale, _, bias in found if bias is not None]
        return weights, torch.stack(biases).sum(dim=0) if len(biases) > 1 else (biases[0] if biases else None)

    @property
    def shows_logits(self) -> bool:
        """Whether the model's results are its final logits, though they are not W z + b."""
        return self.reading in FINAL_LOGITS

    @property
    def ends(self) -> bool:
        """Whether logits are W z + b of the rows that enter one layer, so that a forward pass may end before it."""
        return self.settled and not self.reading and len(self.parts) == 1 and self.parts[0].kind == "linear"

    def entering(self, model: nn.Module, inputs: Batch) -> Tensor:
        """The rows (m, D) of a forward pass that ends where they enter the head: see `ends`.

        Raises DataError where the layer does not run.
        """
        given = stopped_at(model, self.parts[0].layer, inputs)
        return given.reshape(-1, given.shape[-1])

    def tapped(self, model: nn.Module, inputs: Batch) -> Rows:
        """One forward pass of the model as it is.

        Raises DataError where a layer does not run exactly once, or on several rows a sample where one is expected.
        """
        with self.tapping(model) as calls:
            output = call(model, inputs)
        return self.rows(model, calls, output, samples_in(inputs))

    def tapping(
        self, model: nn.Module, heard: Callable[[], bool] = lambda: True
    ) -> AbstractContextManager[dict[str, list[Call]]]:
        """While entered, the calls of its layers in forward passes that somebody else runs: see `rows`.

        heard: whether a call is kept.
        """
        layers = {part.layer: model.get_submodule(part.layer) for part in self.parts}
        return tapping(layers, copied=not self.settled, heard=heard)

    def rows(self, model: nn.Module, calls: Mapping[str, Sequence[Call]], output: Any, samples: int) -> Rows:
        """The rows of one forward pass, from the calls of its layers and what the model returned; errors as `tapped`.

        They may share memory with what the model has computed.
        """
        final = self.shows_logits
        result = results_of(output)[self.result] if final or self.positions == "chosen" else None
        rows = [self._rows(model, part, calls[part.layer], samples, result) for part in self.parts]
        if final:
            assert result is not None
            features = torch.cat([each.features for each in rows], dim=1)
            return Rows(features, result.reshape(len(features), -1))
        if len(rows) == 1:
            return Rows(rows[0].features, _scaled(rows[0].logits, self.parts[0].scale))
        logits = torch.stack([_scaled(each.logits, part.scale) for each, part in zip(rows, self.parts, strict=True)])
        return Rows(torch.cat([each.features for each in rows], dim=1), logits.sum(dim=0))

    def _rows(self, model: nn.Module, part: Part, calls: Sequence[Call], samples: int, result: Tensor | None) -> Rows:
        given, output = only_call(part.layer, calls)
        flat = given.ndim == output.ndim == 2 and given.shape[0] == output.shape[0] == samples
        if flat and part.kind == "linear" and part.positions == "one":
            return Rows(given, output)
        layer = model.get_submodule(part.layer)
        features, logits = laid_out(layer, part.kind, given, output, samples)
        features = as_rows(part.kind, features)
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
                f"classifier {part.layer} takes {tuple(given.shape)} for {samples} samples; one row of features "
                "per sample is needed"
            )
        return Rows(features[:, 0], logits[:, 0])


def only_call(layer: str, calls: Sequence[Call]) -> Call:
    """Input and output of a layer's only call. Raises DataError where there were more, or none."""
    if len(calls) != 1:
        raise DataError(f"classifier {layer} ran {len(calls)} times in one forward pass, not once")
    return calls[0]


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
