"""Tensors in memory as a checkpoint's: their layout by safetensors' names of dtypes, and their bytes."""

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ckpt_probe.checkpoints.writing import DTYPE_OF_TORCH, Layout

if TYPE_CHECKING:
    from torch import Tensor


def dtype_name(dtype: object) -> str:
    """safetensors' name of a torch dtype; torch's own where safetensors has none ("complex128")."""
    return DTYPE_OF_TORCH.get(str(dtype), str(dtype).removeprefix("torch."))


def layout_of(tensors: "Mapping[str, Tensor]") -> Layout:
    """dtype and shape of each tensor."""
    return {name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}


def filler(read: "Callable[[str], Tensor]") -> Callable[[str, int, memoryview], None]:
    """A function that copies a tensor's bytes, in C order, from an offset on, into the whole of a buffer.

    The last two tensors are kept, since blocks are asked for one after another, by several threads.
    """
    lock = threading.Lock()
    last: dict[str, memoryview] = {}

    def fill(name: str, offset: int, into: memoryview) -> None:
        import torch

        with lock:
            if name not in last:
                for oldest in list(last)[:-1]:
                    del last[oldest]
                flat = read(name).contiguous().reshape(-1)
                last[name] = flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
            held = last[name]
        into[:] = held[offset : offset + len(into)]

    return fill
