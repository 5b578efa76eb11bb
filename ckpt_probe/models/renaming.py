"""Tensors by the names that transformers gives them today; what it writes to a file has those of earlier versions."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ckpt_probe.models.tying import is_of_transformers
from ckpt_probe.plugins import loaded_by_transformers


def renamed(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A state dict by the names of a model of transformers, translated by its own loader; any other as it is.

    What the model lacks stays under its old name, what the file lacks is absent, and a tensor of another shape is one
    without memory, so that whoever puts them into the model sees what does not fit.
    """
    if not is_of_transformers(model) or set(state_dict) == set(model.state_dict()):
        return state_dict
    told, found = loaded_by_transformers(type(model), model.config, state_dict)
    told |= {name: state_dict[name] for name in found["unexpected_keys"] if name in state_dict}
    return told | {name: torch.empty(shape, device="meta") for name, shape, _ in found["mismatched_keys"]}
