"""Statistics of every tensor, computed in blocks of fixed memory and without torch.

Sums are computed in float64, squares after the mean of the block is subtracted, and blocks are merged by the formulas
of Chan et al. (1979), so that the result is identical, bit for bit, for any number of threads.
"""

import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ckpt_probe.checkpoints.checkpoint import Checkpoint
from ckpt_probe.checkpoints.tensors import BITS, TORCH_NAMES, decode

ENTRIES = 2**18
"""Number of entries of a block."""
BLOCKS_PER_TASK = 16
"""Number of blocks of a task: starting a task costs half as much as the work on one block."""
UNDIVIDED = 2**13
"""Length of a dot product that BLAS computes in the calling thread. Its own threads, used for longer ones, disturb ours
and make the last digits depend on their number."""
MOST_THREADS = 4
NEARLY_CONSTANT = 1e-6
"""Ratio of variance to mean square of a block below which their difference would keep too few digits."""
INTEGERS = {
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32,
    "U16": np.uint16, "U8": np.uint8, "BOOL": np.uint8,
}  # fmt: skip
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class Statistics:
    """Statistics of a tensor. Norm, mean and spread are those of the finite entries, or None without any.

    Attributes:
        norm: Euclidean norm.
        mean: Mean.
        spread: Standard deviation (population).
        zeros: Fraction of zeros among all entries.
        nan: Number of NaN.
        inf: Number of infinities.
    """

    norm: float | None
    mean: float | None
    spread: float | None
    zeros: float
    nan: int
    inf: int


@dataclass(frozen=True)
class _Part:
    """Sums over some entries of a tensor.

    Attributes:
        finite: Number of finite entries.
        mean: Their mean.
        squares: Sum of their squared differences from the mean.
        zeros: Number of zeros.
        nan: Number of NaN.
        inf: Number of infinities.
    """

    finite: int = 0
    mean: float = 0.0
    squares: Any = 0.0
    zeros: int = 0
    nan: int = 0
    inf: int = 0

    def merged(self, other: "_Part") -> "_Part":
        finite = self.finite + other.finite
        difference = np.longdouble(other.mean) - self.mean
        share = other.finite / finite if finite else 0.0
        return _Part(
            finite,
            float(self.mean + difference * share),
            self.squares + other.squares + difference * difference * share * self.finite,
            self.zeros + other.zeros,
            self.nan + other.nan,
            self.inf + other.inf,
        )


def statistics_of(checkpoint: Checkpoint, threads: int | None = None) -> Iterator[tuple[str, Statistics | None]]:
    """Yield name and statistics of each tensor, in the order of names.

    Args:
        checkpoint: The open checkpoint.
        threads: Number of threads; chosen by the number of processors if None.

    Yields:
        Name and statistics; None for a dtype without statistics, such as complex.

    Raises:
        DataError: If a tensor cannot be read.
    """
    workers = threads or min(MOST_THREADS, os.cpu_count() or 1)
    per_thread = threading.local()
    with ThreadPoolExecutor(workers, thread_name_prefix="statistics") as pool:
        for name in checkpoint.names:
            dtype = checkpoint.dtype(name)
            if dtype not in FLOATING and dtype not in INTEGERS and not dtype.startswith("F8"):
                yield name, None
                continue
            entries = math.prod(checkpoint.shape(name))

            def part(first: int, name: str = name, dtype: str = dtype, entries: int = entries) -> _Part:
                if not hasattr(per_thread, "buffers"):
                    per_thread.buffers = _Buffers()
                merged, end = _Part(), min(first + BLOCKS_PER_TASK * ENTRIES, entries)
                for start in range(first, end, ENTRIES):
                    count = min(ENTRIES, end - start)
                    merged = merged.merged(_block(per_thread.buffers, checkpoint, name, dtype, start, count))
                return merged

            total = _Part()
            for result in pool.map(part, range(0, entries, BLOCKS_PER_TASK * ENTRIES)):
                total = total.merged(result)
            yield name, _statistics(total, entries)


def _statistics(total: _Part, entries: int) -> Statistics:
    zeros = total.zeros / entries if entries else 0.0
    if not total.finite:
        return Statistics(None, None, None, zeros, total.nan, total.inf)
    mean = np.longdouble(total.mean)
    norm = float(np.sqrt(total.squares + total.finite * mean * mean))
    return Statistics(norm, total.mean, float(np.sqrt(total.squares / total.finite)), zeros, total.nan, total.inf)


class _Buffers:
    """Memory of one thread: raw bytes, decoded numbers, and numbers in double precision."""

    def __init__(self) -> None:
        self.raw = np.empty(8 * ENTRIES, np.uint8)
        self.decoded = np.zeros(8 * ENTRIES, np.uint8)
        self.double = np.empty(ENTRIES, np.float64)


def _block(buffers: _Buffers, checkpoint: Checkpoint, name: str, dtype: str, first: int, count: int) -> _Part:
    item = BITS[dtype] // 8
    raw = buffers.raw[: count * item]
    checkpoint.fill(name, first * item, raw.data)
    double = buffers.double[:count]
    if dtype in FLOATING:
        np.copyto(double, decode(raw, dtype, buffers.decoded, np.float64 if dtype == "F64" else np.float32))
    elif dtype in INTEGERS:
        np.copyto(double, raw.view(INTEGERS[dtype]), casting="unsafe")
    else:
        np.take(_numbers_of_bytes(dtype), raw, out=double)
    zeros = count - int(np.count_nonzero(double))
    return replace(_summed(double), zeros=zeros)


def _summed(double: np.ndarray) -> _Part:
    """Return the sums of a block, which may be overwritten."""
    with np.errstate(over="ignore", invalid="ignore"):
        total, squares = float(np.add.reduce(double)), _squares(double)
        mean = total / len(double)
        centred = squares - mean * total
        if math.isfinite(squares) and centred < NEARLY_CONSTANT * squares:
            # The difference of two nearly equal sums loses digits, so the mean is subtracted before squaring.
            double -= mean
            centred = _squares(double)
    return _Part(len(double), mean, centred) if math.isfinite(centred) else _exact_sums(double)


def _squares(double: np.ndarray) -> float:
    divided = len(double) // UNDIVIDED * UNDIVIDED
    rows, rest = double[:divided].reshape(-1, 1, UNDIVIDED), double[divided:]
    return float(np.matmul(rows, rows.swapaxes(1, 2)).sum()) + float(np.dot(rest, rest))


def _exact_sums(double: np.ndarray) -> _Part:
    """Return the sums of a block with NaN, infinities, or numbers whose squares overflow double precision."""
    finite = double[np.isfinite(double)].astype(np.longdouble)
    nan = int(np.count_nonzero(np.isnan(double)))
    inf = len(double) - len(finite) - nan
    if not len(finite):
        return _Part(nan=nan, inf=inf)
    mean = np.add.reduce(finite) / len(finite)
    centred = finite - mean
    return _Part(len(finite), float(mean), np.add.reduce(centred * centred), nan=nan, inf=inf)


def _numbers_of_bytes(dtype: str) -> np.ndarray:
    """Return the 256 numbers of an eight-bit dtype, by their bits."""
    if dtype not in _NUMBERS_OF_BYTES:
        import torch

        kind = getattr(torch, TORCH_NAMES[dtype])
        _NUMBERS_OF_BYTES[dtype] = torch.arange(256, dtype=torch.uint8).view(kind).to(torch.float64).numpy()
    return _NUMBERS_OF_BYTES[dtype]


_NUMBERS_OF_BYTES: dict[str, np.ndarray] = {}
