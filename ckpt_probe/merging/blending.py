"""Weighted sums of blocks of numbers as files hold them: bytes in, bytes out, in buffers that are used again."""

from collections.abc import Callable, Sequence

import numpy as np

from ckpt_probe.errors import DataError

ENTRIES = 2**18
"""Numbers of one block: fewer, and threads wait for each other's turns; more, and buffers leave the cache."""

HIGH = np.uint32(0xFFFF0000)

Blend = Callable[["Buffers", Sequence[np.ndarray]], np.ndarray]
"""Decoded blocks of every source → their mix, in one of the buffers."""


class Buffers:
    """What one thread works in: a raw block of each source, decoded ones, one of output."""

    def __init__(self, sources: int) -> None:
        self.raw = [np.empty(8 * ENTRIES, np.uint8) for _ in range(sources)]
        self.decoded = [np.zeros(8 * ENTRIES, np.uint8) for _ in range(sources)]
        self.sum = np.empty(8 * ENTRIES, np.uint8)
        self.spare = np.empty(8 * ENTRIES, np.uint8)
        self.out = np.empty(8 * ENTRIES, np.uint8)


def encode(numbers: np.ndarray, dtype: str, into: np.ndarray) -> np.ndarray:
    """Numbers rounded to nearest, ties to even, as bytes (uint8); bfloat16 overwrites `numbers`, which are float32."""
    if dtype == "BF16":
        bits = numbers.astype(np.float32, copy=False).view(np.uint32)
        halves = into[: 2 * len(bits)].view(np.uint16)
        odd = (bits >> 16) & 1
        bits += odd
        bits += 0x7FFF
        halves[:] = bits.view(np.uint16)[1::2]
        return into[: 2 * len(bits)]
    kind = {"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype]
    if numbers.dtype == kind:
        return numbers.view(np.uint8)
    target = into[: np.dtype(kind).itemsize * len(numbers)]
    with np.errstate(over="ignore"):
        target.view(kind)[:] = numbers
    return target


def split_pairs(raw: np.ndarray, into: np.ndarray) -> np.ndarray:
    """bfloat16 bytes as float32, the numbers at even places first and those at odd ones after them.

    Two numbers share four bytes, of which either half is reached without moving single numbers; a sum of blocks asks
    for no order, and `join_pairs` restores it. Where the count is odd, two bytes of zeros are expected after `raw`.
    """
    pairs = raw.view(np.uint32)
    split = into[: 8 * len(pairs)].view(np.uint32)
    np.left_shift(pairs, 16, out=split[: len(pairs)])
    np.bitwise_and(pairs, HIGH, out=split[len(pairs) :])
    return split.view(np.float32)


def join_pairs(numbers: np.ndarray, into: np.ndarray, spare: np.ndarray) -> np.ndarray:
    """The reverse of `split_pairs`, rounded to nearest, ties to even, as bytes; overwrites `numbers`."""
    bits = numbers.view(np.uint32)
    half = len(bits) // 2
    odd = spare[: 4 * len(bits)].view(np.uint32)
    np.right_shift(bits, 16, out=odd)
    np.bitwise_and(odd, 1, out=odd)
    np.add(bits, odd, out=bits)
    np.add(bits, 0x7FFF, out=bits)
    joined = into[: 4 * half].view(np.uint32)
    np.right_shift(bits[:half], 16, out=joined)
    np.bitwise_and(bits[half:], HIGH, out=bits[half:])
    np.bitwise_or(joined, bits[half:], out=joined)
    return into[: 4 * half]


def line(alpha: float) -> Blend:
    """The point at `alpha` between two sources, exact where both agree: a + α (b − a), from the nearer end."""

    def blend(buffers: Buffers, sources: Sequence[np.ndarray]) -> np.ndarray:
        a, b = sources
        mix = buffers.sum[: a.nbytes].view(a.dtype)
        kind = a.dtype.type
        np.subtract(b, a, out=mix)
        if abs(alpha) < 0.5:
            np.multiply(mix, kind(alpha), out=mix)
            return np.add(a, mix, out=mix)
        np.multiply(mix, kind(1 - alpha), out=mix)
        return np.subtract(b, mix, out=mix)

    return blend


def weighted(weights: Sequence[float]) -> Blend:
    """The sum of all sources, each times its weight, in their order."""

    def blend(buffers: Buffers, sources: Sequence[np.ndarray]) -> np.ndarray:
        first = sources[0]
        mix = buffers.sum[: first.nbytes].view(first.dtype)
        spare = buffers.spare[: first.nbytes].view(first.dtype)
        np.multiply(first, first.dtype.type(weights[0]), out=mix)
        for source, weight in zip(sources[1:], weights[1:], strict=True):
            np.multiply(source, source.dtype.type(weight), out=spare)
            np.add(mix, spare, out=mix)
        return mix

    return blend


def require_finite(numbers: np.ndarray, name: str) -> None:
    """Raise DataError where a mix holds NaN or infinity, which it does where a source does."""
    # A sum is one pass; only where it is not finite does each number have to be looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.add.reduce(numbers)
    if not np.isfinite(total) and not np.isfinite(numbers).all():
        raise DataError(f"tensor {name!r} contains NaN or infinity and cannot be interpolated")


def require_range(encoded: np.ndarray, dtype: str, name: str) -> None:
    """Raise DataError where numbers became infinite in a smaller dtype."""
    if dtype == "F16" and np.isinf(encoded.view(np.float16)).any():
        raise DataError(f"tensor {name!r} contains numbers over 65504, the largest in float16; choose another --dtype")
