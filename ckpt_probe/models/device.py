"""Where a model runs."""

import torch

from ckpt_probe.errors import UsageError


def choose_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda`, `cuda:N` or `mps` names; auto takes CUDA, then MPS, then the CPU.

    Raises UsageError for another name, or a device that is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda[:n] or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: {torch.cuda.device_count()} CUDA devices are available; try --device auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"--device {name}: not available here; try --device auto")
    if device.type not in {"cpu", "cuda", "mps"}:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda[:n] or mps")
    return device
