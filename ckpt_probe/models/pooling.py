"""Pooling of token states, maps and other activations to rows, also for models without a head."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.models.calling import Batch, call, forward_once
from ckpt_probe.models.head import Positions, Rows

HALVES = (torch.float16, torch.bfloat16)
"""Types that are too imprecise for sums."""

STATE = "last_hidden_state"
HEADLESS = "none"
"""Name of the classifier of a model that has none."""


def mean(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean over the tokens of each sample, shape (n, D).

    Args:
        tokens: Tokens, shape (n, T, D).
        mask: Zero for padding, shape (n, T).
    """
    if mask is None:
        return mean_over(tokens, (1,))
    kind = _summing(tokens)
    weights = (mask != 0).to(kind)[:, None]
    return ((weights @ tokens.to(kind))[:, 0] / weights.sum(dim=2).clamp(min=1)).to(tokens.dtype)


def cls(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the first token of each sample that is not padding, shape (n, D); see `mean`."""
    return _chosen(tokens, mask, first=True)


def last(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the last token of each sample that is not padding, shape (n, D); see `mean`."""
    return _chosen(tokens, mask, first=False)


def tokens(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return every token that is not padding, sample by sample, shape (m, D); see `mean`."""
    return tokens.flatten(0, 1) if mask is None else tokens[mask != 0]


TOKEN_POOLINGS = {"mean": mean, "cls": cls, "last": last, "tokens": tokens}


def padding_mask(inputs: Batch) -> Tensor | None:
    """Return the attention mask of a batch, shape (n, T), zero for padding; None without one."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask if mask is not None and mask.ndim == 2 else None


def mean_over(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the mean over axes, summed in float32 or a wider type, in the dtype of the values."""
    return values.mean(dim=axes, dtype=_summing(values)).to(values.dtype)


def _summing(values: Tensor) -> torch.dtype:
    return torch.float32 if values.dtype in HALVES else values.dtype


def _chosen(tokens: Tensor, mask: Tensor | None, *, first: bool) -> Tensor:
    if mask is None:
        return tokens[:, 0 if first else -1]
    is_token = (mask != 0).int()
    position = is_token.argmax(dim=1) if first else is_token.shape[1] - 1 - is_token.flip(1).argmax(dim=1)
    return tokens[torch.arange(len(tokens), device=tokens.device), position]


POOLINGS = (*TOKEN_POOLINGS, "flatten")
FEATURES = "features"
"""Pooling of activations that are rows already, neither maps nor tokens."""

LARGEST_FLATTENED = 65_536


def require_fitting(name: str, shape: tuple[int, ...], pooling: str | None, axis: int, *, every: bool) -> str:
    """Return the pooling of a layer's activation.

    Args:
        name: Name of the layer, for messages.
        shape: Shape of the activation, (n, …).
        pooling: The requested pooling; the default for the shape if None.
        axis: Axis of channels, 1 or −1.
        every: Whether every position of a sample is a separate row with a label.

    Raises:
        UsageError: If the pooling does not fit.
    """
    tokens = len(shape) == 3 and axis != 1
    if every:
        if pooling not in (None, "tokens"):
            raise UsageError(f"`pooling={pooling!r}`: every position has a label of its own; it takes only tokens")
        if not tokens:
            raise UsageError(f"layer {name} gives {shape}, not the (n, positions, D) that a label for each one needs")
        return "tokens"
    if pooling == "tokens":
        raise UsageError("`pooling='tokens'`: samples have one label each, positions none; use another pooling")
    if pooling in ("cls", "last") and not tokens:
        raise UsageError(f"`pooling={pooling!r}`: layer {name} gives {shape}, not tokens (n, positions, D)")
    if pooling == "flatten" and (width := math.prod(shape[1:])) > LARGEST_FLATTENED:
        raise UsageError(f"`pooling='flatten'`: layer {name} would have {width:,} features, over {LARGEST_FLATTENED:,}")
    return FEATURES if len(shape) == 2 else pooling or "mean"


def pooled(activation: Tensor, pooling: str, axis: int, mask: Tensor | None) -> Tensor:
    """Pool an activation to rows in new memory.

    Args:
        activation: The activation, shape (n, …).
        pooling: The pooling.
        axis: 1 if channels come before positions, else −1.
        mask: Zero for padding, shape (n, positions).

    Returns:
        Rows, shape (n, D), or (n · positions, D) for every token.
    """
    if pooling in (FEATURES, "flatten"):
        return activation.flatten(1).clone()
    if pooling == "tokens":
        return activation.flatten(0, 1).clone()
    if activation.ndim == 3 and axis != 1:
        fitting_mask = mask if mask is not None and mask.shape == activation.shape[:2] else None
        return TOKEN_POOLINGS[pooling](activation, fitting_mask).clone()
    places = tuple(range(2, activation.ndim)) if axis == 1 else tuple(range(1, activation.ndim - 1))
    return mean_over(activation, places)


CHANNELS_FIRST = (
    nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.MaxPool1d, nn.AvgPool1d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d,
)  # fmt: skip
LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
"""Layers of sequences with channels before the positions, and after them."""


def channel_axis(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the axis of channels in a module's output of shape (n, …): 1 (before the positions) or −1.

    Decided by the width of the last submodule that fits only one of the two axes, else by the map being square. If as
    many channels as positions follow from a layer of sequences, the class of the last such submodule decides.
    """
    if len(shape) == 3 and shape[1] == shape[-1]:
        of_sequences = (part for part in reversed(list(module.modules())) if isinstance(part, CHANNELS_FIRST + LAST))
        return 1 if isinstance(next(of_sequences, None), CHANNELS_FIRST) else -1
    if len(shape) < 3 or shape[1] == shape[-1]:
        return 1 if len(shape) > 3 else -1
    for width in _widths(module):
        if width in (shape[1], shape[-1]):
            return 1 if width == shape[1] else -1
    if len(shape) == 4 and shape[1] == shape[2]:
        return -1
    return 1 if len(shape) > 3 else -1


def _widths(module: nn.Module) -> Iterator[int]:
    """Yield the widths of the outputs of a module's parts, the last part first."""
    for part in reversed(list(module.modules())):
        for name in ("out_features", "out_channels", "num_features", "num_channels", "embedding_dim"):
            width = getattr(part, name, None)
            if isinstance(width, int):
                yield width
        shape = getattr(part, "normalized_shape", None)
        if isinstance(shape, tuple) and len(shape) == 1:
            yield shape[0]


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
