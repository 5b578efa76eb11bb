"""Compute weighted sums of blocks of numbers, from bytes of files to bytes of files, and hash the blocks."""

import math
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_probe.checkpoints import Checkpoint
from ckpt_probe.checkpoints.formats.safe import piece_digests, require_hash, tensor_hash
from ckpt_probe.checkpoints.tensors import TORCH_NAMES, Layout
from ckpt_probe.errors import DataError

ENTRIES = 2**18
"""Numbers per block: with fewer, threads wait for each other; with more, buffers exceed the processor's cache."""

HIGH = np.uint32(0xFFFF0000)

OVERFLOW = {"F64": math.inf, "F32": 2.0**128 - 2.0**103, "F16": 2.0**16 - 2.0**4, "BF16": 2.0**128 - 2.0**119}
"""Smallest magnitude that becomes infinite when it is rounded to a dtype."""

LARGEST = {"F64": 2.0**1023 * (2 - 2**-52), "F32": 2.0**128 - 2.0**104, "F16": 65504.0, "BF16": 2.0**128 - 2.0**120}
"""Largest number of a dtype."""

HEADROOM = 2.0**-64
"""Factor by which numbers are scaled if their sum overflows; exact, because it is a power of two."""

Blend = Callable[["Buffers", Sequence[np.ndarray]], np.ndarray]
"""Decoded blocks of every source → their mix, in one of the buffers."""


class Buffers:
    """Buffers of one thread: a raw and a decoded block of each source, and blocks for sum and output."""

    def __init__(self, sources: int) -> None:
        self.raw = [np.empty(8 * ENTRIES, np.uint8) for _ in range(sources)]
        self.decoded = [np.zeros(8 * ENTRIES, np.uint8) for _ in range(sources)]
        self.sum = np.empty(8 * ENTRIES, np.uint8)
        self.spare = np.empty(8 * ENTRIES, np.uint8)
        self.out = np.empty(8 * ENTRIES, np.uint8)


def encode(numbers: np.ndarray, dtype: str, into: np.ndarray) -> np.ndarray:
    """Return numbers as bytes of a dtype, rounded once to nearest, ties to even.

    Args:
        numbers: Numbers that `settle_range` has passed, float32 or float64; bfloat16 overwrites them if float32.
        dtype: Name of the dtype in safetensors.
        into: Buffer for the result, uint8.
    """
    if dtype == "BF16":
        bits = (numbers if numbers.dtype == np.float32 else _round_to_odd(numbers)).view(np.uint32)
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
    target.view(kind)[:] = numbers
    return target


def split_pairs(raw: np.ndarray, into: np.ndarray) -> np.ndarray:
    """Decode bfloat16 bytes to float32, first all numbers at even positions, then all at odd ones.

    Two numbers share four bytes, so that this takes one shift and one mask. A sum of blocks does not depend on the
    order, and `join_pairs` restores it.

    Args:
        raw: Bytes of an even count of numbers; two zero bytes are appended to an odd one.
        into: Buffer for the result, uint8.
    """
    pairs = raw.view(np.uint32)
    split = into[: 8 * len(pairs)].view(np.uint32)
    np.left_shift(pairs, 16, out=split[: len(pairs)])
    np.bitwise_and(pairs, HIGH, out=split[len(pairs) :])
    return split.view(np.float32)


def join_pairs(numbers: np.ndarray, into: np.ndarray, spare: np.ndarray) -> np.ndarray:
    """Encode numbers in the order of `split_pairs` as bfloat16 bytes, rounded to nearest, ties to even.

    `numbers` is overwritten.
    """
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
    """Return the interpolation a + α (b − a) of two sources, computed from the nearer end and exact if both agree."""

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
    """Return the weighted sum of all sources, added in their order."""

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


def settle_range(
    mix: np.ndarray, dtype: str, name: str, blend: Blend | None, sources: Sequence[np.ndarray], files: Sequence[Path]
) -> None:
    """Make sure that a mix is finite once it is written; sums that overflow on the way are computed anew, in place.

    Args:
        mix: Mix of the sources, float32 or float64.
        dtype: Name of the dtype that is written, in safetensors.
        name: Name of the tensor, for messages.
        blend: How the mix was computed; None if it is the only source.
        sources: Blocks that were mixed, in the dtype of the mix.
        files: Files of the sources, for messages.

    Raises:
        DataError: If a source holds NaN or infinity, or the mix a number too large for `dtype`.
    """
    bound = OVERFLOW[dtype]
    # Comparisons with NaN are false.
    if -bound < mix.min() and mix.max() < bound:
        return
    places = np.flatnonzero(~(np.abs(mix) < bound))
    parts = [source[places] * np.float64(HEADROOM) for source in sources]
    for part, file in zip(parts, files, strict=True):
        if not np.isfinite(part).all():
            raise DataError(f"{file}: tensor {name!r} contains NaN or infinity and cannot be interpolated")
    exact = parts[0] if blend is None else blend(Buffers(len(parts)), parts)
    mix[places] = exact / HEADROOM
    over = np.flatnonzero(~(np.abs(mix[places]) < bound))
    if len(over):
        value = f"{Decimal(float(exact[over[0]])) / Decimal(HEADROOM):.6g}"
        limit = f"{LARGEST[dtype]:.6g}, the largest in {TORCH_NAMES[dtype]}"
        raise DataError(f"tensor {name!r} contains numbers over {limit}, such as {value}; choose another `dtype`")


class Digests:
    """Hashes of the pieces of each block; every block of a tensor except the last must consist of complete pieces.

    Args:
        sources: Checkpoints that are read.
    """

    def __init__(self, sources: Sequence[Checkpoint]) -> None:
        self._sources = sources
        # Flat mappings, because several threads add to them at the same time.
        self._read: dict[tuple[int, str, int], list[bytes]] = {}
        self._written: dict[tuple[str, int], list[bytes]] = {}

    def read(self, name: str, first: int, parts: Sequence[Any]) -> None:
        """Hash a block of a tensor as read from each source; sources without stored hashes are skipped.

        Args:
            name: Name of the tensor.
            first: Index of the block's first number.
            parts: Bytes of the block in each source.
        """
        for number, (source, part) in enumerate(zip(self._sources, parts, strict=False)):
            if source.is_hashed(name):
                self._read[number, name, first] = piece_digests(part)

    def written(self, name: str, first: int, part: Any) -> None:
        """Hash a block of a tensor as written.

        Args:
            name: Name of the tensor.
            first: Index of the block's first number.
            part: Bytes of the block.
        """
        self._written[name, first] = piece_digests(part)

    def require_sources(self) -> None:
        """Raise DataError, naming file and tensor, if bytes that were read do not match the stored hash."""
        for (number, name), digests in _in_order(self._read):
            source = self._sources[number]
            computed = tensor_hash(source.layout[name], digests)
            require_hash(source.path, name, computed, source.stated_hashes.get(name))

    def hashes(self, layout: Layout) -> dict[str, str]:
        """Return the hash of every tensor that was written."""
        digests = {name: list(pieces) for (name,), pieces in _in_order(self._written)}
        return {name: tensor_hash(kind, digests.get(name, ())) for name, kind in layout.items()}


def _round_to_odd(numbers: np.ndarray) -> np.ndarray:
    """Return float64 numbers as float32 whose last bit is set if any was lost, so that rounding on rounds only once."""
    single = numbers.astype(np.float32)
    inexact, away = single != numbers, np.abs(single) > np.abs(numbers)
    bits = single.view(np.uint32)
    bits -= away
    bits |= inexact
    return single


def _in_order(blocks: dict[Any, list[bytes]]) -> Iterator[tuple[tuple, Iterator[bytes]]]:
    for tensor, keys in groupby(sorted(blocks), key=lambda key: key[:-1]):
        yield tensor, chain.from_iterable(blocks[key] for key in keys)
