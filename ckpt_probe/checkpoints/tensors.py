"""Bytes of tensors: layouts of tensors in memory, copies of parts of them, and decoding without torch."""

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ckpt_probe.checkpoints.writing import DTYPE_OF_TORCH, Layout

if TYPE_CHECKING:
    from torch import Tensor

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Size in bytes of one number of each floating dtype in which sums are computed."""


def dtype_name(dtype: object) -> str:
    """Return safetensors' name of a torch dtype, torch's own if safetensors has none ("complex128")."""
    return DTYPE_OF_TORCH.get(str(dtype), str(dtype).removeprefix("torch."))


def layout_of(tensors: "Mapping[str, Tensor]") -> Layout:
    """Return dtype and shape of each tensor."""
    return {name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}


def filler(read: "Callable[[str], Tensor]") -> Callable[[str, int, memoryview], None]:
    """Return a function that copies bytes of a tensor in C order, from an offset, into a whole buffer.

    The last two tensors are cached, since several threads request the blocks of one tensor after another.

    Args:
        read: Function that returns a tensor by its name.
    """
    lock = threading.Lock()
    cached: dict[str, memoryview] = {}

    def fill(name: str, offset: int, into: memoryview) -> None:
        import torch

        with lock:
            if name not in cached:
                for oldest in list(cached)[:-1]:
                    del cached[oldest]
                flat = read(name).contiguous().reshape(-1)
                cached[name] = flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
            data = cached[name]
        into[:] = data[offset : offset + len(into)]

    return fill


def exact_dtype(dtype: str) -> type[np.floating]:
    """Return the dtype in which sums are computed: float64 for float64, else float32."""
    return np.float64 if dtype == "F64" else np.float32


def decode(raw: np.ndarray, dtype: str, into: np.ndarray, exact: type[np.floating]) -> np.ndarray:
    """Return the numbers in raw bytes; numpy has no bfloat16.

    Args:
        raw: Bytes, uint8.
        dtype: Their dtype: F64, F32, F16 or BF16.
        into: Buffer of zeros that only this function writes.
        exact: Dtype of the result.
    """
    if dtype == "BF16":
        # bfloat16 is the upper half of a float32; the lower halves stay zero.
        halves = raw.view(np.uint16)
        single = into[: 4 * len(halves)]
        single.view(np.uint16)[1::2] = halves
        return single.view(np.float32) if exact is np.float32 else single.view(np.float32).astype(exact)
    numbers = raw.view({"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype])
    return numbers if numbers.dtype == exact else numbers.astype(exact)
