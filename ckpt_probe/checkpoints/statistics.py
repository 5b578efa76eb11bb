"""Statistics of every tensor, read in blocks: memory depends neither on the file nor on its tensors; needs no torch.

Sums are taken in float64, squares of what is left of the block's mean, and blocks are put together by the formulas of
Chan et al. (1979), so that the result is the same, bit for bit, whatever the number of threads.
"""

import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ckpt_probe.checkpoints.numbers import decode
from ckpt_probe.checkpoints.reading import Checkpoint
from ckpt_probe.checkpoints.writing import BITS, TORCH_NAMES

ENTRIES = 2**18
"""Numbers of one block."""
TOGETHER = 16
"""Blocks that a thread takes at a time: to be given one costs as much as half of the work on it."""
UNDIVIDED = 2**13
"""Numbers of a product that BLAS does in the thread that asks for it; its own threads, for more, are in our threads'
way, and make the last digits depend on how many there are."""
MOST_THREADS = 4
NEARLY_CONSTANT = 1e-6
"""Share of a block's squares below which what is left of them without the mean would keep too few digits."""
WHOLE = {
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32,
    "U16": np.uint16, "U8": np.uint8, "BOOL": np.uint8,
}  # fmt: skip
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class Statistics:
    """What a tensor's numbers are like; NaN and infinities are counted, and all else is of the finite numbers.

    norm: Euclidean; spread: standard deviation (population); zeros: their share among all numbers. Where there is no
    finite number, mean, spread and norm are None.
    """

    norm: float | None
    mean: float | None
    spread: float | None
    zeros: float
    nan: int
    inf: int


@dataclass(frozen=True)
class _Part:
    """Finite numbers, their mean and the sum of squares of what is left of it; zeros, NaN and infinities."""

    finite: int = 0
    mean: float = 0.0
    squares: Any = 0.0
    zeros: int = 0
    nan: int = 0
    inf: int = 0

    def merged(self, other: "_Part") -> "_Part":
        finite = self.finite + other.finite
        apart = np.longdouble(other.mean) - self.mean
        share = other.finite / finite if finite else 0.0
        return _Part(
            finite,
            float(self.mean + apart * share),
            self.squares + other.squares + apart * apart * share * self.finite,
            self.zeros + other.zeros,
            self.nan + other.nan,
            self.inf + other.inf,
        )


def statistics_of(checkpoint: Checkpoint, threads: int | None = None) -> Iterator[tuple[str, Statistics | None]]:
    """Name and statistics of each tensor, in the order of names; None for a dtype that has none, such as complex.

    Raises DataError where a tensor cannot be read.
    """
    workers = threads or min(MOST_THREADS, os.cpu_count() or 1)
    own = threading.local()
    with ThreadPoolExecutor(workers, thread_name_prefix="statistics") as pool:
        for name in checkpoint.names:
            dtype = checkpoint.dtype(name)
            if dtype not in FLOATING and dtype not in WHOLE and not dtype.startswith("F8"):
                yield name, None
                continue
            numbers = math.prod(checkpoint.shape(name))

            def part(first: int, name: str = name, dtype: str = dtype, numbers: int = numbers) -> _Part:
                if not hasattr(own, "buffers"):
                    own.buffers = _Buffers()
                found, end = _Part(), min(first + TOGETHER * ENTRIES, numbers)
                for start in range(first, end, ENTRIES):
                    block = _of_block(own.buffers, checkpoint, name, dtype, start, min(ENTRIES, end - start))
                    found = found.merged(block)
                return found

            found = _Part()
            for one in pool.map(part, range(0, numbers, TOGETHER * ENTRIES)):
                found = found.merged(one)
            yield name, _statistics(found, numbers)


def _statistics(found: _Part, numbers: int) -> Statistics:
    zeros = found.zeros / numbers if numbers else 0.0
    if not found.finite:
        return Statistics(None, None, None, zeros, found.nan, found.inf)
    mean = np.longdouble(found.mean)
    norm = float(np.sqrt(found.squares + found.finite * mean * mean))
    return Statistics(norm, found.mean, float(np.sqrt(found.squares / found.finite)), zeros, found.nan, found.inf)


class _Buffers:
    """What one thread works in: raw bytes, decoded numbers, their bits, and the same in double precision."""

    def __init__(self) -> None:
        self.raw = np.empty(8 * ENTRIES, np.uint8)
        self.decoded = np.zeros(8 * ENTRIES, np.uint8)
        self.bits = np.empty(8 * ENTRIES, np.uint8)
        self.double = np.empty(ENTRIES, np.float64)


def _of_block(buffers: _Buffers, checkpoint: Checkpoint, name: str, dtype: str, first: int, count: int) -> _Part:
    item = BITS[dtype] // 8
    raw = buffers.raw[: count * item]
    checkpoint.fill(name, first * item, raw.data)
    double = buffers.double[:count]
    if dtype in FLOATING:
        np.copyto(double, decode(raw, dtype, buffers.decoded, np.float64 if dtype == "F64" else np.float32))
    elif dtype in WHOLE:
        np.copyto(double, raw.view(WHOLE[dtype]), casting="unsafe")
    else:
        np.take(_eights(dtype), raw, out=double)
    part = _summed(double)
    zeros = count - _nonzero(raw, item, buffers.bits, signed=dtype not in WHOLE)
    return replace(part, zeros=zeros) if zeros else part


def _nonzero(raw: np.ndarray, item: int, bits: np.ndarray, *, signed: bool) -> int:
    numbers = raw.view(f"u{item}")
    lowest = np.iinfo(f"i{item}").min
    if signed and numbers.view(f"i{item}").min() == lowest:
        # Zero has two signs, and the other one is there: a shift takes it away.
        shifted = bits[: raw.nbytes].view(numbers.dtype)
        numbers = np.left_shift(numbers, numbers.dtype.type(1), out=shifted)
    return int(np.count_nonzero(numbers))


def _summed(double: np.ndarray) -> _Part:
    """Mean and squares of a block, which may be overwritten."""
    with np.errstate(over="ignore", invalid="ignore"):
        total, squares = float(np.add.reduce(double)), _squares(double)
        mean = total / len(double)
        left = squares - mean * total
        if math.isfinite(squares) and left < NEARLY_CONSTANT * squares:
            # The difference of two sums that nearly agree: take the mean away before squaring.
            double -= mean
            left = _squares(double)
    return _Part(len(double), mean, left) if math.isfinite(left) else _careful(double)


def _squares(double: np.ndarray) -> float:
    whole = len(double) // UNDIVIDED * UNDIVIDED
    rows, rest = double[:whole].reshape(-1, 1, UNDIVIDED), double[whole:]
    return float(np.matmul(rows, rows.swapaxes(1, 2)).sum()) + float(np.dot(rest, rest))


def _careful(double: np.ndarray) -> _Part:
    """As `_summed`, where there are NaN, infinities, or numbers whose squares double precision does not hold."""
    finite = double[np.isfinite(double)].astype(np.longdouble)
    nan = int(np.count_nonzero(np.isnan(double)))
    inf = len(double) - len(finite) - nan
    if not len(finite):
        return _Part(nan=nan, inf=inf)
    mean = np.add.reduce(finite) / len(finite)
    left = finite - mean
    return _Part(len(finite), float(mean), np.add.reduce(left * left), nan=nan, inf=inf)


def _eights(dtype: str) -> np.ndarray:
    """The 256 numbers of an eight-bit dtype, by their bits."""
    if dtype not in _EIGHTS:
        import torch

        kind = getattr(torch, TORCH_NAMES[dtype])
        _EIGHTS[dtype] = torch.arange(256, dtype=torch.uint8).view(kind).to(torch.float64).numpy()
    return _EIGHTS[dtype]


_EIGHTS: dict[str, np.ndarray] = {}
