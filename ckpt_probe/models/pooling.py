"""How the tokens (n, T, D) of samples become rows: their mean, the first or the last one, or every one of them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ckpt_probe.models.calling import Batch

HALVES = (torch.float16, torch.bfloat16)
"""Too coarse to add up in."""


def mean(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean (n, D) over the tokens (n, T, D) of each sample. mask: (n, T), 0 where a token is padding."""
    if mask is None:
        return mean_over(tokens, (1,))
    kind = _summing(tokens)
    weights = (mask != 0).to(kind)[:, None]
    return ((weights @ tokens.to(kind))[:, 0] / weights.sum(dim=2).clamp(min=1)).to(tokens.dtype)


def cls(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """The first token (n, D) of each sample that is no padding."""
    return _chosen(tokens, mask, first=True)


def last(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """The last token (n, D) of each sample that is no padding."""
    return _chosen(tokens, mask, first=False)


def tokens(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Every token that is no padding, (m, D), sample by sample."""
    return tokens.flatten(0, 1) if mask is None else tokens[mask != 0]


POOLINGS = {"mean": mean, "cls": cls, "last": last, "tokens": tokens}


def padding_mask(inputs: Batch) -> Tensor | None:
    """The mask (n, T) that says which tokens of a batch are no padding, where it has one."""
    found = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return found if found is not None and found.ndim == 2 else None


def mean_over(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The mean over axes, added up in float32 at least and given in the dtype of the values."""
    return values.mean(dim=axes, dtype=_summing(values)).to(values.dtype)


def _summing(values: Tensor) -> torch.dtype:
    return torch.float32 if values.dtype in HALVES else values.dtype


def _chosen(tokens: Tensor, mask: Tensor | None, *, first: bool) -> Tensor:
    if mask is None:
        return tokens[:, 0 if first else -1]
    kept = (mask != 0).int()
    place = kept.argmax(dim=1) if first else kept.shape[1] - 1 - kept.flip(1).argmax(dim=1)
    return tokens[torch.arange(len(tokens), device=tokens.device), place]
