"""Prune by magnitude: set the smallest weights to exactly zero, and hold them at zero during further training."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ckpt_probe.errors import DataError, UsageError, listed

SCOPES = ("global", "layer")


def prune_state(
    state: Mapping[str, Tensor], sparsity: float, *, scope: str = "global", names: Sequence[str] | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Set the smallest weights of a state to zero.

    The round(sparsity · n) smallest of n entries are pruned. Weights that are already zero are the smallest, so that
    pruning can continue from a pruned state; of equal magnitudes the first in the state's order are pruned.

    Args:
        state: Tensors by name; they are not modified.
        sparsity: Fraction of zeros afterwards, in [0, 1); 0 changes nothing.
        scope: "layer" to prune each tensor separately (Han et al. 2015), "global" to rank the entries of all tensors
            together (Frankle and Carbin 2019, deep networks).
        names: Tensors to prune; all that `prunable` lists if None.

    Returns:
        The pruned state, and the names of the ranked tensors.

    Raises:
        UsageError: If `sparsity` is outside [0, 1), or below the present fraction of zeros.
        DataError: If a weight is not finite, or there is nothing to prune.
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
    pruned = dict(state)
    for name, gone in zip(chosen, masks, strict=True):
        tensor = state[name].detach()
        pruned[name] = tensor.masked_fill(gone.view(tensor.shape).to(tensor.device), 0)
    return pruned, chosen


def prunable(state: Mapping[str, Tensor]) -> list[str]:
    """List the real and complex tensors with at least two axes: weights of linear layers, convolutions, embeddings."""
    return [name for name, tensor in state.items() if _is_weight(tensor) and tensor.ndim >= 2]


def count_zeros(state: Mapping[str, Tensor], names: Iterable[str]) -> tuple[int, int]:
    """Return the number of zeros in the named tensors, and the number of their entries."""
    tensors = [state[name] for name in names]
    return sum(int((tensor == 0).sum()) for tensor in tensors), sum(tensor.numel() for tensor in tensors)


def pruned_masks(state: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Return a boolean mask of the nonzero weights for each named tensor.

    Raises:
        DataError: If the state lacks a name.
    """
    missing = [name for name in names if name not in state]
    if missing:
        raise DataError(f"tensors listed as pruned are missing: {listed(missing)}")
    return {name: state[name] != 0 for name in names}


@torch.no_grad()
def hold_zeros(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Multiply the named tensors by their masks, in place, so that pruned weights are zero after an optimizer step.

    Raises:
        DataError: If the model lacks a name, or a mask has another shape.
    """
    tensors = model.state_dict(keep_vars=True) if masks else {}
    for name, mask in masks.items():
        if name not in tensors or tensors[name].shape != mask.shape:
            raise DataError(f"the pruning mask of {name} does not fit any tensor of the model")
        tensors[name].mul_(mask.to(tensors[name].device))


def require_sparsity(sparsity: float) -> None:
    """Raise UsageError if `sparsity` is outside [0, 1)."""
    if isinstance(sparsity, str) or not 0 <= sparsity < 1:
        raise UsageError(f"sparsity: expected a fraction of at least 0 and below 1, found {sparsity!r}")


def _is_weight(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _magnitudes(state: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the exact magnitudes of one tensor, shape (n,), as float32; float64 for float64 and complex128."""
    if name not in state:
        raise DataError(f"no tensor {name!r} to prune")
    tensor = state[name]
    if not _is_weight(tensor) or tensor.element_size() < 2:
        raise DataError(f"tensor {name!r} is {tensor.dtype}, which cannot be pruned; convert to float32 or bfloat16")
    flat = tensor.detach().cpu().reshape(-1)
    single = torch.complex64 if flat.is_complex() else torch.float32
    magnitudes = flat.to(torch.promote_types(flat.dtype, single)).abs()
    broken = len(magnitudes) - int(magnitudes.isfinite().sum())
    if broken:
        raise DataError(f"tensor {name!r} contains {broken:,} weights that are NaN or infinite")
    return magnitudes


def _smallest(magnitudes: Tensor, sparsity: float, description: str) -> Tensor:
    """Return a mask (n,) of the round(sparsity · n) smallest magnitudes (n,)."""
    count = round(sparsity * len(magnitudes))
    zeros = int((magnitudes == 0).sum())
    if zeros > count and sparsity > 0:
        present = f"{zeros:,} of {len(magnitudes):,} are already zero in {description}"
        raise UsageError(f"sparsity {sparsity:g} is below the present one: {present}")
    if count == 0:
        return torch.zeros(len(magnitudes), dtype=torch.bool)
    # numpy's selection takes a seventh of the time of torch.kthvalue.
    threshold = float(np.partition(magnitudes.numpy(), count - 1)[count - 1])
    gone = magnitudes < threshold
    ties = (magnitudes == threshold).nonzero().flatten()
    gone[ties[: count - int(gone.sum())]] = True
    return gone
