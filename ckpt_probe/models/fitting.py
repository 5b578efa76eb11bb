"""Putting a checkpoint's tensors into a model, or saying exactly why they do not fit."""

from collections.abc import Mapping

from torch import Tensor, nn

from ckpt_probe.errors import DataError, listed
from ckpt_probe.models.renaming import renamed

WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""Prefixes that data-parallel wrappers, compilation and training frameworks put before every name."""


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Copy a state dict into a model in place, strictly: same names, same shapes.

    A wrapper's prefix that stands before every name is taken off where the names then fit, and names of earlier
    versions of transformers are translated. Raises DataError naming
    `source` and listing missing names, unexpected names, other shapes, and whole numbers where the model has floats,
    which are quantised: what they stand for is not in them.
    """
    wanted = model.state_dict()
    given = renamed(model, unwrapped(state_dict, set(wanted)))
    missing = sorted(set(wanted) - set(given))
    unexpected = sorted(set(given) - set(wanted))
    misshapen = [
        f"{name} {tuple(given[name].shape)} for {tuple(wanted[name].shape)}"
        for name in sorted(set(wanted) & set(given))
        if given[name].shape != wanted[name].shape
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)]
    told = [f"{len(names)} {what}: {listed(names)}" for what, names in faults if names]
    if told:
        raise DataError(f"{source}: the model does not fit the checkpoint; {'; '.join(told)}")
    floating = [name for name, tensor in wanted.items() if tensor.is_floating_point()]
    whole = [name for name in floating if not given[name].is_floating_point()]
    if whole:
        kind = str(given[whole[0]].dtype).removeprefix("torch.")
        raise DataError(
            f"{source}: tensor {whole[0]!r} is {kind}, but the model expects floating point ({len(whole)} such): "
            "a quantised checkpoint; dequantise it first"
        )
    model.load_state_dict(dict(given))


def require_classes(logits: int, classes: int) -> None:
    """Raise DataError where a model gives fewer logits than its data have classes."""
    if logits < classes:
        raise DataError(f"the model gives {logits} logits, fewer than the data's {classes} classes")


def unwrapped(state_dict: Mapping[str, Tensor], wanted: set[str]) -> Mapping[str, Tensor]:
    """A state dict without a wrapper's prefix before every name, where its names are then the `wanted` ones."""
    if set(state_dict) == wanted:
        return state_dict
    for prefix in WRAPPERS:
        if state_dict and all(name.startswith(prefix) for name in state_dict):
            shorter = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
            if set(shorter) == wanted:
                return shorter
    return state_dict
