"""Models without a head: their last hidden state, or pooled feature, in place of what enters a classifier."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.models.calling import Batch, call, forward_once
from ckpt_probe.models.heads.head import Positions, Rows
from ckpt_probe.models.pooling import POOLINGS, padding_mask

STATE = "last_hidden_state"
HEADLESS = "none"
"""The name by which a caller says that a model has no classifier."""


@dataclass(frozen=True)
class Backbone:
    """What a model without a head returns, as rows: its last hidden state (n, T, D) pooled, or (n, D) as it is.

    Rows of `width` features have logits of no class, and weights are those of none.
    """

    pooling: str
    width: int
    settled: bool = True
    ends: bool = False
    parts: ClassVar[tuple[()]] = ()
    layers: ClassVar[tuple[()]] = ()

    @property
    def name(self) -> None:
        """None: there is no classifier."""
        return None

    @property
    def positions(self) -> Positions:
        """Which rows are a sample's."""
        return "every" if self.pooling == "tokens" else "one"

    def parameters(self, _model: nn.Module) -> tuple[Tensor, None]:
        """Weights (0, D) of no class, and no bias."""
        return torch.zeros(0, self.width), None

    def tapped(self, model: nn.Module, inputs: Batch) -> Rows:
        """One forward pass of the model as it is. Raises DataError where it returns no features."""
        state = _state(call(model, inputs))
        if state.ndim == 3:
            # Where tokens are rows, whoever counts those that are left out takes padding away.
            mask = None if self.pooling == "tokens" else padding_mask(inputs)
            fits = mask is not None and mask.shape == state.shape[:2]
            state = POOLINGS[self.pooling](state, mask if fits else None)
        return Rows(state, state.new_zeros(len(state), 0))


def backbone_of(model: nn.Module, inputs: Batch, pooling: str | None = None) -> Backbone:
    """How the features of a model without a head become rows, found by running it on a batch of inputs (n, …).

    pooling: one of `POOLINGS`; the mean where None. Raises DataError where the model returns neither features (n, D)
    nor tokens (n, T, D) nor a map (n, D, H, W), UsageError where a pooling does not fit.
    """
    if pooling is not None and pooling not in POOLINGS:
        raise UsageError(f"--pooling {pooling}: of a model without a head, expected one of {', '.join(POOLINGS)}")
    state = _state(forward_once(model, inputs))
    if state.ndim == 2 and pooling is not None:
        raise UsageError(f"--pooling {pooling}: the model gives one row {tuple(state.shape)} a sample, and no tokens")
    return Backbone(pooling or ("features" if state.ndim == 2 else "mean"), state.shape[-1])


def is_backbone(model: nn.Module, inputs: Batch) -> bool:
    """Whether a model returns, as those of transformers without a head do, its last hidden state and nothing else.

    A feature pooled from it does not count: no classifier follows it.
    """
    output = forward_once(model, inputs)
    if not isinstance(output, Mapping) or STATE not in output:
        return False
    tensors = [name for name, value in output.items() if isinstance(value, Tensor)]
    return all(name == "pooler_output" or name.endswith(STATE) for name in tensors)


def _state(output: Any) -> Tensor:
    found = output
    if isinstance(output, Mapping):
        found = output.get(STATE)
    elif isinstance(output, tuple | list) and output:
        found = output[0]
    if not isinstance(found, Tensor) or found.ndim not in (2, 3, 4) or not found.is_floating_point():
        shape = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(output).__name__
        raise DataError(f"the model has no head, and returned {shape}, not features (n, D) or tokens (n, T, D)")
    # A map has channels first: places are its tokens.
    return found.flatten(2).transpose(1, 2) if found.ndim == 4 else found
