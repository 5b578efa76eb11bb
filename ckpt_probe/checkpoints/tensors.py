"""Dtypes and layouts of tensors; parts of them are decoded without torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip

TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
DTYPE_OF_TORCH = dict(zip(TORCH_NAMES.values(), TORCH_NAMES, strict=True))

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name → (safetensors' dtype name, shape), in the order in which the tensors are written."""

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Size in bytes of one number of each floating dtype in which sums are computed."""


def dtype_name(dtype: object) -> str:
    """Return safetensors' name of a torch dtype, torch's own if safetensors has none ("complex128")."""
    name = str(dtype).removeprefix("torch.")
    return DTYPE_OF_TORCH.get(name, name)


def layout_of(tensors: "Mapping[str, Tensor]") -> Layout:
    """Return dtype and shape of each tensor."""
    return {name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}


def exact_dtype(dtype: str) -> "type[np.floating]":
    """Return the dtype in which sums are computed: float64 for float64, else float32."""
    import numpy as np

    return np.float64 if dtype == "F64" else np.float32


def decode(raw: "np.ndarray", dtype: str, into: "np.ndarray", exact: "type[np.floating]") -> "np.ndarray":
    """Return the numbers in raw bytes; numpy has no bfloat16.

    Args:
        raw: Bytes (…, n), uint8.
        dtype: Their dtype: F64, F32, F16 or BF16.
        into: Buffer (…, 2 · n) of zeros, or a larger one, that only this function writes.
        exact: Dtype of the result.
    """
    import numpy as np  # headers are read without it

    if dtype == "BF16":
        # bfloat16 is the upper half of a float32; the lower halves stay zero.
        halves = raw.view(np.uint16)
        single = into[..., : 4 * halves.shape[-1]]
        single.view(np.uint16)[..., 1::2] = halves
        return single.view(np.float32) if exact is np.float32 else single.view(np.float32).astype(exact)
    numbers = raw.view({"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype])
    return numbers if numbers.dtype == exact else numbers.astype(exact)
