"""Save and restore the state of an interrupted run exactly, in one safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_probe.checkpoints import open_checkpoint, save_checkpoint
from ckpt_probe.errors import DataError
from ckpt_probe.models import load_weights

STEP = "training_state.step"
SECONDS = "training_state.seconds"
ANOTHER = "the state of a different model or optimizer; train again with `overwrite=True`"


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    """Write model, optimizer and random state after `step` updates; the order of data depends on seed and step only."""
    tensors: dict[str, Tensor] = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in entries.items() if isinstance(value, Tensor)}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"random.cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        tensors["random.mps"] = torch.mps.get_rng_state()
    save_checkpoint(path, tensors, {STEP: str(step), SECONDS: json.dumps(seconds)}, overwrite=True)


def restore_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Load a saved state into model, optimizer and random generators.

    Returns:
        The step, and the duration of the training in seconds.

    Raises:
        DataError: If the file is not a training state, or belongs to another model.
    """
    with open_checkpoint(path) as file:
        if STEP not in file.raw_metadata:
            raise DataError(f"{path}: not a training state; train again with `overwrite=True`")
        tensors = file.state_dict()
        step, seconds = int(file.raw_metadata[STEP]), float(file.raw_metadata[SECONDS])
    load_weights(model, _under("model.", tensors), source=f"{path}: {ANOTHER}")
    try:
        optimizer.load_state_dict(_optimizer_state(optimizer, _under("optimizer.", tensors)))
    except (ValueError, KeyError) as error:
        why = str(error).strip().partition("\n")[0]
        raise DataError(f"{path}: {ANOTHER}: {why}") from error
    torch.set_rng_state(tensors["random.cpu"])
    for index, state in _under("random.cuda.", tensors).items():
        if int(index) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(index))
    if "random.mps" in tensors and torch.backends.mps.is_available():
        torch.mps.set_rng_state(tensors["random.mps"])
    return step, seconds


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
