"""Tensors that a model has under several names, for files with different values under these names."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def is_of_transformers(model: nn.Module) -> bool:
    """Return whether a model is one of transformers, which is imported wherever such a model exists."""
    transformers: Any = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def shared_names(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names of each tensor that a state dict has under several, in the order in which torch loads them."""
    names_of: dict[tuple[int, torch.Size], list[str]] = {}
    for name, tensor in tensors.items():
        # The extra state of a module may be anything.
        if isinstance(tensor, Tensor) and not is_lazy(tensor) and tensor.data_ptr():
            names_of.setdefault((tensor.data_ptr(), tensor.shape), []).append(name)
    return [names for names in names_of.values() if len(names) > 1]


def untie(model: nn.Module, values: Mapping[str, Tensor]) -> tuple[str, ...]:
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
    for names in shared_names(model.state_dict()):
        different = [name for name in names[1:] if not _are_equal(values[names[0]], values[name])]
        if not different:
            continue
        differ = f"{', '.join((names[0], *different))} are one tensor of the model, but differ in the file"
        if is_of_transformers(model):
            for name in different:
                _separate(model, name)
            notes.append(f"{differ}: they are kept apart, as transformers does")
        else:
            notes.append(f"{differ}: {names[-1]} counts, as in torch's load_state_dict")
    return tuple(notes)


def _are_equal(first: Tensor, second: Tensor) -> bool:
    return first is second or torch.equal(first.double(), second.double())


def _separate(model: nn.Module, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    parent = model.get_submodule(module)
    shared = getattr(parent, attribute)
    separate = shared.detach().clone()
    setattr(
        parent,
        attribute,
        nn.Parameter(separate, shared.requires_grad) if isinstance(shared, nn.Parameter) else separate,
    )
