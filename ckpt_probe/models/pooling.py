"""Pooling of tokens, shape (n, T, D), to rows: their mean, the first, the last, or all of them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ckpt_probe.models.calling import Batch

HALVES = (torch.float16, torch.bfloat16)
"""Types that are too imprecise for sums."""


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


POOLINGS = {"mean": mean, "cls": cls, "last": last, "tokens": tokens}


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
