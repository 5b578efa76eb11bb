"""Magnitude pruning: the smallest weights become exactly zero, and stay so while a run goes on from there."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ckpt_probe.errors import DataError, UsageError, listed

SCOPES = ("global", "layer")


def prune_state(
    state: Mapping[str, Tensor], sparsity: float, *, scope: str = "global", names: Sequence[str] | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """The state with its smallest weights at exactly zero, and the names of the tensors that were ranked.

    scope "layer": in each tensor of n entries the round(sparsity · n) smallest by magnitude (Han et al. 2015);
    "global": the same over all of them together (Frankle and Carbin 2019, deep networks). names: None for all that
    `prunable` lists. Weights that are zero already are the smallest, so that pruning goes on where it stopped; of equal
    magnitudes the first in the state's order go. Tensors that change are copied. Raises UsageError where `sparsity` is
    outside [0, 1), or less than what is zero already (0 leaves all as it is); DataError for weights not finite.
    """
    require_sparsity(sparsity)
    if scope not in SCOPES:
        raise UsageError(f"scope: expected one of {', '.join(SCOPES)}, found {scope!r}")
    chosen = prunable(state) if names is None else list(names)
    sizes = {name: _magnitudes(state, name) for name in chosen}
    if not sizes:
        raise DataError("no weights to prune: no floating-point tensor has two or more axes")
    if scope == "global":
        gone = _smallest(torch.cat(list(sizes.values())), sparsity, "all prunable weights")
        masks = gone.split([len(magnitudes) for magnitudes in sizes.values()])
    else:
        masks = [_smallest(magnitudes, sparsity, f"tensor {name!r}") for name, magnitudes in sizes.items()]
    pruned = {name: _without(state[name], gone) for name, gone in zip(chosen, masks, strict=True)}
    return {**state, **pruned}, chosen


def prunable(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the floating-point tensors of at least two axes: weights of linear layers, convolutions, embeddings."""
    return [name for name, tensor in state.items() if tensor.is_floating_point() and tensor.ndim >= 2]


def count_zeros(state: Mapping[str, Tensor], names: Iterable[str]) -> tuple[int, int]:
    """How many entries of the tensors named are exactly zero, and how many there are."""
    held = [state[name] for name in names]
    return sum(int((tensor == 0).sum()) for tensor in held), sum(tensor.numel() for tensor in held)


def pruned_masks(state: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Bool masks of the tensors named, each of its tensor's shape: True where the weight is kept, i.e. not zero.

    Raises DataError for names that the state lacks.
    """
    missing = [name for name in names if name not in state]
    if missing:
        raise DataError(f"tensors listed as pruned are missing: {listed(missing)}")
    return {name: state[name] != 0 for name in names}


@torch.no_grad()
def hold_zeros(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Multiply the tensors named by their masks, in place: what was pruned is zero again after the optimizer's step.

    Raises DataError for a name that the model lacks, or a mask of another shape.
    """
    tensors = model.state_dict(keep_vars=True) if masks else {}
    for name, mask in masks.items():
        if name not in tensors or tensors[name].shape != mask.shape:
            raise DataError(f"the pruning mask of {name} does not fit any tensor of the model")
        tensors[name].mul_(mask.to(tensors[name].device))


def require_sparsity(sparsity: float) -> None:
    """Raise UsageError where `sparsity` is no share in [0, 1)."""
    if not 0 <= sparsity < 1:
        raise UsageError(f"sparsity: expected a fraction of at least 0 and below 1, found {sparsity}")


def _magnitudes(state: Mapping[str, Tensor], name: str) -> Tensor:
    """|w| of one tensor, (n,), in float32, float64 for float64: exact, so that ties are ties."""
    if name not in state:
        raise DataError(f"no tensor {name!r} to prune")
    tensor = state[name]
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise DataError(f"tensor {name!r} is {tensor.dtype}, which cannot be pruned; convert to float32 or bfloat16")
    flat = tensor.detach().cpu().reshape(-1)
    magnitudes = (flat if flat.dtype == torch.float64 else flat.float()).abs()
    broken = len(magnitudes) - int(magnitudes.isfinite().sum())
    if broken:
        raise DataError(f"tensor {name!r} contains {broken:,} weights that are NaN or infinite")
    return magnitudes


def _smallest(magnitudes: Tensor, sparsity: float, what: str) -> Tensor:
    """Which of the magnitudes (n,) are the round(sparsity · n) smallest, as bools (n,)."""
    count = round(sparsity * len(magnitudes))
    zeros = int((magnitudes == 0).sum())
    if zeros > count and sparsity > 0:
        told = f"{zeros:,} of {len(magnitudes):,} are already zero in {what}"
        raise UsageError(f"sparsity {sparsity:g} is below the present one: {told}")
    if count == 0:
        return torch.zeros(len(magnitudes), dtype=torch.bool)
    # numpy's selection takes a seventh of the time of torch.kthvalue.
    threshold = float(np.partition(magnitudes.numpy(), count - 1)[count - 1])
    gone = magnitudes < threshold
    ties = (magnitudes == threshold).nonzero().flatten()
    gone[ties[: count - int(gone.sum())]] = True
    return gone


def _without(tensor: Tensor, gone: Tensor) -> Tensor:
    return tensor.detach().masked_fill(gone.view(tensor.shape).to(tensor.device), 0)
