"""The device on which a model runs."""

from typing import overload

import torch
from torch import Tensor

from ckpt_probe.errors import UsageError
from ckpt_probe.models.calling import Batch


def choose_device(name: str) -> torch.device:
    """Return a device by name.

    Args:
        name: `auto` (CUDA if available, else MPS, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        UsageError: For another name, or a device that is not available.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"`device={name!r}`: expected auto, cpu, cuda[:n] or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"`device={name!r}`: {torch.cuda.device_count()} CUDA devices are available; try `device='auto'`"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"`device={name!r}`: not available on this machine; try `device='auto'`")
    if device.type not in {"cpu", "cuda", "mps"}:
        raise UsageError(f"`device={name!r}`: expected auto, cpu, cuda[:n] or mps")
    return device


@overload
def on_device(inputs: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor: ...
@overload
def on_device(inputs: Batch, device: torch.device, dtype: torch.dtype | None = None) -> Batch: ...
def on_device(inputs: Batch, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
    """Copy inputs to a device.

    Copies to CUDA are asynchronous; an asynchronous copy to MPS may read memory that was freed meanwhile.

    Args:
        inputs: A tensor, or several by name.
        device: The device.
        dtype: Type of floating-point numbers; unchanged if None.
    """
    if not isinstance(inputs, Tensor):
        return {name: on_device(tensor, device, dtype) for name, tensor in inputs.items()}
    kind = dtype if dtype is not None and inputs.is_floating_point() else inputs.dtype
    return inputs.to(device=device, dtype=kind, non_blocking=device.type == "cuda")
