"""Translation of tensor names in files of transformers, which keep the names of earlier versions."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ckpt_probe.models.tying import is_of_transformers
from ckpt_probe.plugins import loaded_by_transformers


def translate_names(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Translate a state dict to the names of a transformers model with its own loader.

    Args:
        model: The model; for other models the state dict is returned unchanged.
        state_dict: Tensors by name.

    Returns:
        Tensors by the model's names. Tensors that the model lacks keep their old names, and tensors of another shape
        are on the meta device, so that the caller can report what does not fit.
    """
    if not is_of_transformers(model) or set(state_dict) == set(model.state_dict()):
        return state_dict
    translated, report = loaded_by_transformers(type(model), model.config, state_dict)
    translated |= {name: state_dict[name] for name in report["unexpected_keys"] if name in state_dict}
    return translated | {name: torch.empty(shape, device="meta") for name, shape, _ in report["mismatched_keys"]}
