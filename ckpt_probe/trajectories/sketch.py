"""Sketch of a checkpoint: 4,096 random projections of every tensor, from which distances to other sketches follow.

Each entry is added with a random sign to one of 4,096 sums (Charikar, Chen and Farach-Colton 2002), the same of every
checkpoint. A squared distance of two sketches has the relative standard error √(2/4096) = 2.2 %. A tensor with no more
entries is its own sketch, without an error.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from ckpt_probe.checkpoints import Member
from ckpt_probe.trajectories.stream import LARGEST, Opening, digest, read_block

PROJECTIONS = 4096


@dataclass(frozen=True)
class Sketch:
    """One checkpoint; rows of all arrays are its tensors in order.

    Attributes:
        sums: Projections (n, 4096), padded by zeros for a smaller tensor.
        squares: ‖θ‖² of the finite entries, (n,).
        broken: Numbers of NaN and of infinities, (n, 2).
        constant: Whether all entries are equal, (n,).
        lowest: Smallest entry, (n,).
        digests: Fingerprints, (n,).
    """

    sums: np.ndarray
    squares: np.ndarray
    broken: np.ndarray
    constant: np.ndarray
    lowest: np.ndarray
    digests: np.ndarray


def sketch_of(member: Member, names: Sequence[str], opening: Opening, seed: int = 0) -> Sketch:
    """Read a checkpoint once and compute its sketch.

    Args:
        member: The checkpoint.
        names: Floating-point tensors.
        opening: How it is opened.
        seed: Seed of the projections, equal for all checkpoints that are compared.
    """
    count = len(names)
    sums, squares = np.zeros((count, PROJECTIONS)), np.zeros(count)
    broken, constant = np.zeros((count, 2), np.int64), np.ones(count, bool)
    lowest, digests = np.full(count, np.inf), np.zeros(count, "U16")
    with ExitStack() as stack:
        file = opening.open(member.path, stack)
        for row, name in enumerate(names):
            entries, total, first = math.prod(file.shape(name)), 0, None
            for start in range(0, entries, LARGEST):
                raw, stored = read_block(file, name, start, min(LARGEST, entries - start))
                total = (total + int(digest(raw, start), 16)) % 2**64
                values = stored.astype(np.float64)
                finite = np.isfinite(values)
                if not finite.all():
                    nan = int(np.isnan(values).sum())
                    broken[row] += nan, len(values) - int(finite.sum()) - nan
                    values = np.where(finite, values, 0.0)
                first = values[0] if first is None else first
                constant[row] &= bool((values == first).all())
                lowest[row] = min(lowest[row], values.min())
                squares[row] += float(values @ values)
                sums[row] += _projected(values, name, start, entries, seed)
            digests[row] = f"{total:016x}"
    return Sketch(sums, squares, broken, constant, lowest, digests)


def _projected(values: np.ndarray, name: str, start: int, entries: int, seed: int) -> np.ndarray:
    if entries <= PROJECTIONS:
        return np.pad(values, (start, PROJECTIONS - start - len(values)))
    random = np.random.default_rng([seed, crc32(name.encode()), start])
    drawn = random.integers(0, 2 * PROJECTIONS, len(values), dtype=np.uint16)
    signed = np.where(drawn & 1, values, -values)
    return np.bincount(drawn >> 1, weights=signed, minlength=PROJECTIONS)
