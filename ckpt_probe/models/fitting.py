"""Loading a checkpoint's tensors into a model, with exact messages if they do not fit."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ckpt_probe.copies import trained_first
from ckpt_probe.errors import DataError, last_line, listed
from ckpt_probe.models.renaming import translate_names
from ckpt_probe.models.tying import shared_names, untie
from ckpt_probe.wrappers import COUNTER, fitting_prefixes, is_extra_state, unwrapped

QUANTISED = (".qweight", ".weight_packed", ".weight.absmax", ".SCB", ".weight_scale_inv")
"""Endings of tensor names that occur only in quantised checkpoints."""


def load_weights(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    source: str,
    extra: Mapping[str, Any] | None = None,
    state_key: str | None = None,
) -> tuple[str, ...]:
    """Copy a state dict into a model in place, strictly, as torch does: same names, same shapes.

    Prefixes of wrappers (data-parallel, compilation, a training framework's module) are removed if the names then fit,
    as `unwrapped` does; names of earlier versions of transformers and of weight norm are translated. Counters of batch
    norm may be absent, and tensors that the model ties to others.

    Args:
        model: The model, changed in place; `untie` decides about tied tensors whose values differ.
        state_dict: Tensors by name.
        source: The file, for messages.
        extra: Values for modules' `set_extra_state` by name; if None, the model's values are unchanged.
        state_key: Key of the state dict in the file, for messages.

    Returns:
        Notes for the user, one sentence each.

    Raises:
        DataError: For names that are missing or unexpected, other shapes, quantised weights, values that a module
            refuses, or if the names fit after several prefixes. The message lists them.
    """
    state = model.state_dict()
    wanted = {name: tensor for name, tensor in state.items() if not is_extra_state(name)}
    prefixes = fitting_prefixes(state_dict, set(state))
    if len(prefixes) > 1:
        keys = trained_first(".".join(filter(None, [state_key, prefix.rstrip(".")])) for prefix in prefixes)
        raise DataError(
            f"{source}: contains weights for the whole model under several prefixes: {', '.join(keys)}; choose one "
            f"with `state_key={keys[0]!r}`"
        )
    entries = unwrapped({**state_dict, **(extra or {})}, set(state))
    settings, opaque = _extra_states(entries)
    tensors = translate_names(model, {name: tensor for name, tensor in entries.items() if not is_extra_state(name)})
    _require_floats(wanted, tensors, source)
    tensors = {**_absent(wanted, tensors), **tensors}
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(wanted[name].shape)}"
        for name in sorted(set(wanted) & set(tensors))
        if not is_lazy(wanted[name]) and tensors[name].shape != wanted[name].shape
    ]
    notes: tuple[str, ...] = ()
    if misshapen:
        missing, unexpected = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    else:
        notes = untie(model, tensors)
        missing, unexpected = _load(model, {**tensors, **settings}, source)
        missing = [name for name in missing if not is_extra_state(name) or (extra is not None and name not in opaque)]
    faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)]
    listings = [f"{len(names)} {fault}: {listed(sorted(names))}" for fault, names in faults if names]
    if listings:
        raise DataError(f"{source}: the model does not fit the checkpoint; {'; '.join(listings)}")
    return notes


def is_opaque(value: Any) -> bool:
    """Return whether a module's extra state is bytes; Transformer Engine would unpickle them, which may run code."""
    return isinstance(value, bytes) or (isinstance(value, Tensor) and value.dtype == torch.uint8 and value.ndim == 1)


def require_classes(logits: int, classes: int, names: Sequence[str] | None = None) -> None:
    """Raise DataError, with the names of the classes, if a model gives fewer logits than its data have classes."""
    if logits < classes:
        which = f" ({listed(names)})" if names else ""
        raise DataError(f"the model gives {logits} logits, fewer than the data's {classes} classes{which}")


def _load(model: nn.Module, state: Mapping[str, Any], source: str) -> tuple[list[str], list[str]]:
    """Load a state dict through the model's hooks, and return missing and unexpected names."""
    try:
        result = model.load_state_dict(state, strict=False)
    except Exception as error:
        # Hooks and extra state run the model's code, which may raise anything.
        raise DataError(f"{source}: the model refuses the checkpoint ({last_line(error)})") from error
    return list(result.missing_keys), list(result.unexpected_keys)


def _extra_states(entries: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Return the extra state that may be passed to modules, and the names of opaque entries that may not."""
    extra = {name: value for name, value in entries.items() if is_extra_state(name)}
    opaque = {name for name, value in extra.items() if is_opaque(value)}
    return {name: value for name, value in extra.items() if name not in opaque}, opaque


def _absent(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that a checkpoint may omit: counters of batch norm, and tensors tied to ones that it has."""
    counters = {name: tensor for name, tensor in wanted.items() if name.endswith(COUNTER)}
    known = [(names, [name for name in names if name in tensors]) for names in shared_names(wanted)]
    return counters | {name: tensors[present[-1]] for names, present in known if present for name in names}


def _require_floats(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise DataError for quantised weights, before names and shapes are compared."""
    floating = [name for name, tensor in wanted.items() if tensor.is_floating_point()]
    integers = [name for name in floating if name in tensors and not tensors[name].is_floating_point()]
    if integers:
        kind = str(tensors[integers[0]].dtype).removeprefix("torch.")
        raise DataError(
            f"{source}: tensor {integers[0]!r} is {kind}, but the model expects floating point ({len(integers)} such): "
            "a quantised checkpoint; dequantise it first"
        )
    packed = [name for name in tensors if f".{name}".endswith(QUANTISED) and name not in wanted]
    if packed:
        raise DataError(f"{source}: tensor {packed[0]!r} belongs to a quantised checkpoint; dequantise it first")
