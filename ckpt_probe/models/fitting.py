"""Loading a checkpoint's tensors into a model, with exact messages if they do not fit."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ckpt_probe.errors import DataError, last_line, listed
from ckpt_probe.models.calling import cast_floats
from ckpt_probe.plugins import loaded_by_transformers
from ckpt_probe.wrappers import COUNTER, extra_states, fitting_prefixes, trained_first, unwrapped, wrapper_note

QUANTISED = (".qweight", ".weight_packed", ".weight.absmax", ".SCB", ".weight_scale_inv")
"""Endings of tensor names that occur only in quantised checkpoints."""


def fill_model(
    model: nn.Module,
    target: torch.device,
    state: Mapping[str, Tensor],
    source: str,
    extra: Mapping[str, Any] | None = None,
    state_key: str | None = None,
) -> tuple[str, ...]:
    """Move a model to its device, and to the dtype that represents a checkpoint's weights exactly, and load them.

    Args:
        model: The model, changed in place.
        target: Device of the forward passes; the CPU is used instead if it lacks the dtype.
        state: Tensors by name.
        source: Path of the checkpoint.
        extra: Extra state of modules.
        state_key: Key of the tensors in the checkpoint.

    Returns:
        The notes of `load_weights`.

    Raises:
        DataError: If the weights do not fit.
    """
    double = any(tensor.dtype == torch.float64 for tensor in state.values())
    # The last forward pass may have left the model in a narrower dtype.
    model.to("cpu" if double and target.type == "mps" else target)
    cast_floats(model, torch.float64 if double else torch.float32)
    return load_weights(model, state, source=source, extra=extra, state_key=state_key)


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
        model: The model, changed in place; `_untie` decides about tied tensors whose values differ.
        state_dict: Tensors by name.
        source: The file, for messages.
        extra: Values for modules' `set_extra_state` by name; if None, the model's values are unchanged.
        state_key: Key of the state dict in the file, for messages.

    Returns:
        Notes for the user, one sentence each: about changed names, values that are left out, and tied tensors.

    Raises:
        DataError: For names that are missing or unexpected, other shapes, quantised weights, values that a module
            refuses, or if the names fit after several prefixes. The message lists them.
    """
    state = model.state_dict()
    prefixes = fitting_prefixes(state_dict, set(state))
    if len(prefixes) > 1:
        keys = trained_first(".".join(filter(None, [state_key, prefix.rstrip(".")])) for prefix in prefixes)
        raise DataError(
            f"{source}: contains weights for the whole model under several prefixes: {', '.join(keys)}; choose one "
            f"with `state_key={keys[0]!r}`"
        )
    entries = unwrapped({**state_dict, **(extra or {})}, set(state))
    expected, settings = extra_states(state), extra_states(entries)
    notes = [wrapper_note(state_dict, set(state))]
    opaque = [name for name, value in settings.items() if _is_opaque(value)]
    if opaque:
        notes.append(f"extra state that is bytes, which a module may unpickle, is left out: {listed(opaque)}")
    wanted = {name: tensor for name, tensor in state.items() if name not in expected}
    tensors = _translate_names(model, {name: tensor for name, tensor in entries.items() if name not in settings})
    _require_floats(wanted, tensors, source)
    tensors = {**_absent(wanted, tensors), **tensors}
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(wanted[name].shape)}"
        for name in sorted(set(wanted) & set(tensors))
        if not is_lazy(wanted[name]) and tensors[name].shape != wanted[name].shape
    ]
    if misshapen:
        missing, unexpected = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    else:
        notes += _untie(model, tensors)
        passed = {name: value for name, value in settings.items() if name not in opaque}
        try:
            result = model.load_state_dict({**tensors, **passed}, strict=False)
        except Exception as error:
            # Hooks and extra state run the model's code, which may raise anything.
            raise DataError(f"{source}: the model refuses the checkpoint ({last_line(error)})") from error
        missing, unexpected = result.missing_keys, result.unexpected_keys
        missing = [name for name in missing if name not in expected or (extra is not None and name not in opaque)]
    faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)]
    listings = [f"{len(names)} {fault}: {listed(sorted(names))}" for fault, names in faults if names]
    if listings:
        raise DataError(f"{source}: the model does not fit the checkpoint; {'; '.join(listings)}")
    return tuple(filter(None, notes))


def _is_opaque(value: Any) -> bool:
    """Return whether a module's extra state is bytes; Transformer Engine would unpickle them, which may run code."""
    return isinstance(value, bytes) or (isinstance(value, Tensor) and value.dtype == torch.uint8 and value.ndim == 1)


def _absent(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that a checkpoint may omit: counters of batch norm, and tensors tied to ones that it has."""
    counters = {name: tensor for name, tensor in wanted.items() if name.endswith(COUNTER)}
    known = [(names, [name for name in names if name in tensors]) for names in _shared_names(wanted)]
    return counters | {name: tensors[present[-1]] for names, present in known if present for name in names}


def _require_floats(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise DataError for quantised weights, before names and shapes are compared."""
    floating = [name for name, tensor in wanted.items() if tensor.is_floating_point()]
    integers = [name for name in floating if name in tensors and not tensors[name].is_floating_point()]
    if integers:
        kind = str(tensors[integers[0]].dtype).removeprefix("torch.")
        cause = "convert it first" if "complex" in kind else "a quantised checkpoint; dequantise it first"
        raise DataError(
            f"{source}: tensor {integers[0]!r} is {kind}, but the model expects floating point ({len(integers)} such): "
            f"{cause}"
        )
    packed = [name for name in tensors if f".{name}".endswith(QUANTISED) and name not in wanted]
    if packed:
        raise DataError(f"{source}: tensor {packed[0]!r} belongs to a quantised checkpoint; dequantise it first")


def _translate_names(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Translate a state dict to the names of a transformers model with its own loader.

    Args:
        model: The model; for other models the state dict is returned unchanged.
        state_dict: Tensors by name.

    Returns:
        Tensors by the model's names. Tensors that the model lacks keep their old names, and tensors of another shape
        are on the meta device, so that the caller can report what does not fit.
    """
    if not _is_of_transformers(model) or set(state_dict) == set(model.state_dict()):
        return state_dict
    translated, report = loaded_by_transformers(type(model), model.config, state_dict)
    translated |= {name: state_dict[name] for name in report["unexpected_keys"] if name in state_dict}
    for entry in report["mismatched_keys"]:
        # Before version 5, transformers states the names of these tensors alone.
        name, shape = entry[:2] if isinstance(entry, tuple) else (entry, _shape_under(entry, state_dict))
        translated |= {name: torch.empty(shape, device="meta")}
    return translated


def _shape_under(name: str, state_dict: Mapping[str, Tensor]) -> Sequence[int]:
    """Return the shape of the tensor of a name that has a prefix more or less in the state dict."""
    return next(
        (t.shape for key, t in state_dict.items() if f".{key}".endswith(f".{name}") or f".{name}".endswith(f".{key}")),
        (0,),
    )


def _is_of_transformers(model: nn.Module) -> bool:
    """Return whether a model is one of transformers, which is imported wherever such a model exists."""
    transformers: Any = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def _shared_names(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names of each tensor that a state dict has under several, in the order in which torch loads them."""
    names_of: dict[tuple[int, torch.Size], list[str]] = {}
    for name, tensor in tensors.items():
        # The extra state of a module may be anything.
        if isinstance(tensor, Tensor) and not is_lazy(tensor) and tensor.data_ptr():
            names_of.setdefault((tensor.data_ptr(), tensor.shape), []).append(name)
    return [names for names in names_of.values() if len(names) > 1]


def _untie(model: nn.Module, values: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Prepare a model for values that differ under two names of one tensor.

    A transformers model gets a separate tensor for each name, like with its own loader. Other models are unchanged;
    torch's `load_state_dict` then uses the value of the last name.

    Args:
        model: The model, changed in place.
        values: A value for each name of the model's state dict, of its shape.

    Returns:
        One note for each tensor whose values differ.
    """
    notes = []
    for names in _shared_names(model.state_dict()):
        first = values[names[0]]
        others = {name: values[name] for name in names[1:] if values[name] is not first}
        different = [name for name, value in others.items() if not torch.equal(first.double(), value.double())]
        if not different:
            continue
        differ = f"{', '.join((names[0], *different))} are one tensor of the model, but differ in the file"
        if _is_of_transformers(model):
            for name in different:
                _separate(model, name)
            notes.append(f"{differ}: they are kept apart, as transformers does")
        else:
            notes.append(f"{differ}: {names[-1]} counts, as in torch's load_state_dict")
    return tuple(notes)


def _separate(model: nn.Module, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    parent = model.get_submodule(module)
    shared = getattr(parent, attribute)
    separate = shared.detach().clone()
    if isinstance(shared, nn.Parameter):
        separate = nn.Parameter(separate, shared.requires_grad)
    setattr(parent, attribute, separate)
