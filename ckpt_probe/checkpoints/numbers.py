"""Numbers of raw bytes as files hold them; numpy has no bfloat16."""

import numpy as np

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Dtypes of floating numbers in which sums are taken, and the bytes of one number."""


def exact_dtype(dtype: str) -> type[np.floating]:
    """What sums are taken in: float64 for float64, else float32."""
    return np.float64 if dtype == "F64" else np.float32


def decode(raw: np.ndarray, dtype: str, into: np.ndarray, exact: type[np.floating]) -> np.ndarray:
    """Numbers of raw bytes (uint8) as `exact`; `into` is a buffer of zeros that only this function writes."""
    if dtype == "BF16":
        # bfloat16 is the upper half of a float32; the lower halves stay zero.
        halves = raw.view(np.uint16)
        single = into[: 4 * len(halves)]
        single.view(np.uint16)[1::2] = halves
        return single.view(np.float32) if exact is np.float32 else single.view(np.float32).astype(exact)
    numbers = raw.view({"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype])
    return numbers if numbers.dtype == exact else numbers.astype(exact)
