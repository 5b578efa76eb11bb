"""Models without a head: their last hidden state or pooled feature replaces the input of a classifier."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.models.calling import Batch, call, forward_once
from ckpt_probe.models.heads.head import Positions, Rows
from ckpt_probe.models.pooling import TOKEN_POOLINGS, padding_mask

STATE = "last_hidden_state"
HEADLESS = "none"
"""Name of the classifier of a model that has none."""


@dataclass(frozen=True)
class Backbone:
    """The output of a model without a head as rows: its last hidden state (n, T, D) pooled, or features (n, D).

    Args:
        pooling: One of `TOKEN_POOLINGS`, or "features" for an output without tokens.
        width: Number of features of a row. Logits and weights have zero classes.
    """

    pooling: str
    width: int
    settled: bool = True
    ends: bool = False
    parts: ClassVar[tuple[()]] = ()
    layers: ClassVar[tuple[()]] = ()

    @property
    def name(self) -> None:
        """Return None: there is no classifier."""
        return None

    @property
    def positions(self) -> Positions:
        """Return which rows belong to a sample."""
        return "every" if self.pooling == "tokens" else "one"

    def parameters(self, _model: nn.Module) -> tuple[Tensor, None]:
        """Return weights of zero classes, shape (0, D), and no bias."""
        return torch.zeros(0, self.width), None

    def tapped(self, model: nn.Module, inputs: Batch) -> Rows:
        """Return the rows of one forward pass.

        Raises:
            DataError: If the model returns no features.
        """
        state = _state(call(model, inputs))
        if state.ndim == 3:
            # If tokens are rows, the caller removes padding, because it counts rows that are left out.
            mask = None if self.pooling == "tokens" else padding_mask(inputs)
            fits = mask is not None and mask.shape == state.shape[:2]
            state = TOKEN_POOLINGS[self.pooling](state, mask if fits else None)
        return Rows(state, state.new_zeros(len(state), 0))


def backbone_of(model: nn.Module, inputs: Batch, pooling: str | None = None) -> Backbone:
    """Run a model without a head, and choose how its features become rows.

    Args:
        model: The model.
        inputs: Inputs of a batch.
        pooling: One of `TOKEN_POOLINGS`; the mean if None.

    Raises:
        DataError: If the output is neither features (n, D) nor tokens (n, T, D) nor a map (n, D, H, W).
        UsageError: For an unknown pooling, or one that does not fit the output.
    """
    if pooling is not None and pooling not in TOKEN_POOLINGS:
        raise UsageError(
            f"`pooling={pooling!r}`: of a model without a head, expected one of {', '.join(TOKEN_POOLINGS)}"
        )
    state = _state(forward_once(model, inputs))
    if state.ndim == 2 and pooling is not None:
        raise UsageError(f"`pooling={pooling!r}`: the model gives one row {tuple(state.shape)} a sample, and no tokens")
    return Backbone(pooling or ("features" if state.ndim == 2 else "mean"), state.shape[-1])


def is_backbone(model: nn.Module, inputs: Batch) -> bool:
    """Return whether a model, like those of transformers without a head, returns only its last hidden state.

    A feature pooled from it is accepted beside it, because no classifier follows.
    """
    output = forward_once(model, inputs)
    if not isinstance(output, Mapping) or STATE not in output:
        return False
    tensors = [name for name, value in output.items() if isinstance(value, Tensor)]
    return all(name == "pooler_output" or name.endswith(STATE) for name in tensors)


def _state(output: Any) -> Tensor:
    state = output
    if isinstance(output, Mapping):
        state = output.get(STATE)
    elif isinstance(output, tuple | list) and output:
        state = output[0]
    if not isinstance(state, Tensor) or state.ndim not in (2, 3, 4) or not state.is_floating_point():
        shape = f"shape {tuple(state.shape)}" if isinstance(state, Tensor) else type(output).__name__
        raise DataError(f"the model has no head, and returned {shape}, not features (n, D) or tokens (n, T, D)")
    # A map has channels first; its positions are the tokens.
    return state.flatten(2).transpose(1, 2) if state.ndim == 4 else state
