"""Tensors by the names that transformers gives them today; what it writes to a file has those of earlier versions."""

import copy
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_probe.plugins import hub_switched_off


def renamed(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A state dict by the names of a model of transformers, translated by its own loader; any other as it is.

    What the model lacks stays under its old name, what the file lacks is absent, and a tensor of another shape is one
    without memory, so that whoever puts them into the model sees what does not fit.
    """
    # No import: a model of transformers exists only where it has been imported.
    transformers: Any = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return state_dict
    if set(state_dict) == set(model.state_dict()):
        return state_dict
    with hub_switched_off(), told_nothing(transformers):
        loader: Any = type(model)
        loaded, found = loader.from_pretrained(
            None,
            config=copy.deepcopy(model.config),
            state_dict=dict(state_dict),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    told = {name: tensor for name, tensor in loaded.state_dict().items() if name not in found["missing_keys"]}
    told |= {name: state_dict[name] for name in found["unexpected_keys"] if name in state_dict}
    return told | {name: torch.empty(shape, device="meta") for name, shape, _ in found["mismatched_keys"]}


@contextmanager
def told_nothing(transformers: Any) -> Iterator[None]:
    """While entered, transformers logs errors alone and shows no bars: what matters is raised by whoever calls it."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
