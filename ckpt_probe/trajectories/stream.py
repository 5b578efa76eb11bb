"""One stream over the tensors of a series, block by block with the versions of all checkpoints side by side.

Each byte is read once. A block of b entries of T checkpoints is a matrix (T, b), so that memory does not depend on the
size of a tensor. The Gram matrix of successive displacements θ_{t+1} − θ_t gives that of θ_t − θ_0 by summation, and
keeps the digits of small steps far from the start.

A sketch of one checkpoint has 4,096 random projections of every tensor, from which distances to other sketches follow:
each entry is added with a random sign to one of 4,096 sums (Charikar, Chen and Farach-Colton 2002), the same of every
checkpoint. A squared distance of two sketches has the relative standard error √(2/4096) = 2.2 %. A tensor with no more
entries is its own sketch, without an error.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import reduce
from itertools import chain, groupby
from zlib import crc32

import numpy as np

from ckpt_probe.addresses import Address
from ckpt_probe.checkpoints import Checkpoint, Member
from ckpt_probe.checkpoints.statistics import MOST_THREADS
from ckpt_probe.checkpoints.tensors import ITEM_BYTES, decode
from ckpt_probe.trajectories.layout import WeightOptions

BLOCK = 2**22
"""Largest number of entries of a block, which a thread reads at once, over all checkpoints."""
SMALLEST, LARGEST = 2**12, 2**18
"""Limits of the number of entries of a block of one checkpoint. Each block of a remote file is a request."""
TILE = 2**17
"""Number of entries that are in double precision at once, over all checkpoints: more would not fit the cache of a
processor's core."""
SPREAD = 8
"""Number of blocks of a local tensor of which a sample is read, if they are not smaller than `SMALLEST`."""
PER_TASK = 4
"""Number of blocks of a task of a thread."""
PROJECTIONS = 4096
"""Number of sums of the sketch of a tensor."""
SKETCHED = ("squares", "broken", "lowest", "highest", "digests")
"""Arrays of the trace of one checkpoint that its sketch has."""


Trace = dict[str, np.ndarray]
"""One tensor, or some of its entries, over the T checkpoints of a series, by name:

- squares: ‖θ_t‖², shape (T,); of the finite entries;
- steps: Gram matrix of successive displacements θ_{t+1} − θ_t, shape (T − 1, T − 1); an entry that is not finite keeps
  its last finite value;
- signs: number of entries that changed their sign since the checkpoint before, (T − 1,);
- broken: numbers of NaN and of infinities, (T, 2);
- lowest, highest: smallest and largest entry, (T,);
- digests: fingerprints (T,), uint64, that are equal for equal bytes;
- entries: number of entries, ().
"""


def merged(first: Trace, second: Trace) -> Trace:
    """Return the trace of the entries of both."""
    bounds = {"lowest": np.minimum, "highest": np.maximum}
    return {name: bounds.get(name, np.add)(first[name], second[name]) for name in first}


def traces(
    members: Sequence[Member], names: Sequence[str], options: WeightOptions, threads: int | None = None
) -> Iterator[tuple[str, Trace]]:
    """Yield the trace of every tensor, in the order of `names`.

    Args:
        members: Checkpoints in order.
        names: Floating-point tensors that all of them have, with the same shape in each.
        options: Options; `sample` limits the number of entries.
        threads: Number of threads; at most `MOST_THREADS` if None.

    Raises:
        DataError: If a tensor cannot be read.
    """
    import os

    with ExitStack() as stack:
        files = [options.open(member, stack) for member in members]
        remote = any(isinstance(file.file, Address) for file in files)
        count = min(LARGEST, max(SMALLEST, 1 << int(math.log2(max(1, BLOCK // len(files))))))
        size = LARGEST if remote else count
        limit = None if options.sample is None else max(SMALLEST, options.sample // max(1, len(names)))
        if limit is not None:
            size = min(size, limit if remote else max(SMALLEST, limit // SPREAD))
        pool = stack.enter_context(ThreadPoolExecutor(threads or min(MOST_THREADS, os.cpu_count() or 1)))
        tasks = [(name, starts) for name in names for starts in _tasks(math.prod(files[0].shape(name)), size, limit)]
        results = pool.map(lambda task: reduce(merged, map(Blocks(files, task[0], size).trace, task[1])), tasks)
        for name, parts in groupby(zip(tasks, results, strict=True), key=lambda task_and_part: task_and_part[0][0]):
            yield name, reduce(merged, (part for _, part in parts))


def sketch_of(member: Member, names: Sequence[str], options: WeightOptions) -> dict[str, np.ndarray]:
    """Read a checkpoint once and compute its sketch.

    Args:
        member: The checkpoint.
        names: Floating-point tensors.
        options: Options.

    Returns:
        Arrays with one row for each tensor: the `sums` (n, 4096), padded by zeros for a smaller tensor, and the
        arrays `SKETCHED` of its `Trace`.
    """
    rows = []
    with ExitStack() as stack:
        file = options.open(member, stack)
        for name in names:
            entries, sums, parts, start = math.prod(file.shape(name)), np.zeros(PROJECTIONS), [], 0
            blocks = Blocks([file], name, LARGEST)
            for part, numbers in chain.from_iterable(map(blocks.tiles, range(0, entries, LARGEST))):
                parts.append(part)
                sums += _projected(numbers[0], name, start, entries)
                start += numbers.shape[1]
            trace = reduce(merged, parts)
            rows.append({"sums": sums} | {key: trace[key][0] for key in SKETCHED})
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _tasks(entries: int, size: int, sample: int | None) -> list[list[int]]:
    """Return tasks of the first entries of blocks: all of a tensor, or evenly spaced ones with `sample` entries."""
    starts = list(range(0, entries, size))
    if sample is not None and len(starts) > (most := max(1, sample // size)):
        starts = [starts[i] for i in np.linspace(0, len(starts) - 1, most).round().astype(int)]
    return [starts[i : i + PER_TASK] for i in range(0, len(starts), PER_TASK)]


class Blocks:
    """Blocks of one tensor with the versions of all checkpoints side by side, in memory that is used again."""

    def __init__(self, files: Sequence[Checkpoint], name: str, size: int) -> None:
        self._files, self._name = files, name
        self._dtypes = [file.dtype(name) for file in files]
        self._entries = math.prod(files[0].shape(name))
        self._size = size = min(size, self._entries)
        # Whole words of 8 bytes for the fingerprints.
        items = max(ITEM_BYTES[dtype] for dtype in self._dtypes)
        self._raw = np.zeros((len(files), -(-size * items // 8) * 8), np.uint8)
        self._exact = np.float64 if "F64" in self._dtypes else np.float32
        self._width = min(size, max(SMALLEST // 4, 1 << int(math.log2(max(1, TILE // len(files))))))
        self._single = np.zeros((len(files), 4 * self._width), np.uint8)
        self._numbers = np.empty((len(files), self._width))
        self._displacements = np.empty((len(files) - 1, self._width))

    def trace(self, start: int) -> Trace:
        """Return the trace of a block."""
        return reduce(merged, (trace for trace, _ in self.tiles(start)))

    def tiles(self, start: int) -> Iterator[tuple[Trace, np.ndarray]]:
        """Yield the traces of the parts of a block, and their entries (T, count), all of them finite."""
        count = min(self._size, self._entries - start)
        for raw, file, dtype in zip(self._raw, self._files, self._dtypes, strict=True):
            used = count * ITEM_BYTES[dtype]
            file.fill(self._name, start * ITEM_BYTES[dtype], raw[:used].data)
            raw[used:] = 0
        digests = digest(self._raw, start)
        for first in range(0, count, self._width):
            width = min(self._width, count - first)
            stored, numbers = self._decoded(first, width), self._numbers[:, :width]
            np.copyto(numbers, stored)
            yield self._traced(stored, numbers, digests if first == 0 else np.zeros_like(digests)), numbers

    def _decoded(self, first: int, width: int) -> np.ndarray:
        """Return some entries of the block, in the precision of the files or in float32."""

        def part(raw: np.ndarray, dtype: str, single: np.ndarray) -> np.ndarray:
            used = slice(first * ITEM_BYTES[dtype], (first + width) * ITEM_BYTES[dtype])
            return decode(raw[..., used], dtype, single, self._exact)

        if len(set(self._dtypes)) == 1:
            return part(self._raw, self._dtypes[0], self._single)
        return np.stack(list(map(part, self._raw, self._dtypes, self._single)))

    def _traced(self, stored: np.ndarray, numbers: np.ndarray, digests: np.ndarray) -> Trace:
        width = numbers.shape[1]
        squares = np.einsum("ij,ij->i", numbers, numbers)
        broken = np.zeros((len(numbers), 2), dtype=np.int64)
        for t in np.flatnonzero(~np.isfinite(squares)):
            finite = np.isfinite(numbers[t])
            nan = int(np.isnan(numbers[t]).sum())
            broken[t] = nan, width - int(finite.sum()) - nan
            squares[t] = float(np.square(numbers[t, finite]).sum())
        if broken.any():
            _hold(numbers)
            stored = numbers
        displacements = np.subtract(numbers[1:], numbers[:-1], out=self._displacements[:, :width])
        return {
            "squares": squares,
            "steps": displacements @ displacements.T,
            "signs": _sign_changes(stored),
            "broken": broken,
            "lowest": stored.min(axis=1).astype(np.float64),
            "highest": stored.max(axis=1).astype(np.float64),
            "digests": digests,
            "entries": np.array(width),
        }


def _sign_changes(numbers: np.ndarray) -> np.ndarray:
    """Count the entries of each row, but the first, whose sign is opposite to that in the row before."""
    negative, zero = np.signbit(numbers), numbers == 0
    changed = negative[1:] != negative[:-1]
    if zero.any():
        changed &= ~(zero[1:] | zero[:-1])
    return np.array([np.count_nonzero(row) for row in changed], dtype=np.int64)


def _projected(values: np.ndarray, name: str, start: int, entries: int) -> np.ndarray:
    if entries <= PROJECTIONS:
        return np.pad(values, (start, PROJECTIONS - start - len(values)))
    random = np.random.default_rng([0, crc32(name.encode()), start])
    drawn = random.integers(0, 2 * PROJECTIONS, len(values), dtype=np.uint16)
    signed = np.where(drawn & 1, values, -values)
    return np.bincount(drawn >> 1, weights=signed, minlength=PROJECTIONS)


def _hold(numbers: np.ndarray) -> None:
    """Replace entries that are not finite by their last finite value, those before it by the next, else by 0."""
    bad = ~np.isfinite(numbers)
    for rows in (range(1, len(numbers)), range(len(numbers) - 2, -1, -1)):
        for row in rows:
            source = row - 1 if rows.step > 0 else row + 1
            taken = bad[row] & ~bad[source]
            numbers[row, taken] = numbers[source, taken]
            bad[row, taken] = False
    numbers[bad] = 0


def digest(raw: np.ndarray, start: int) -> np.ndarray:
    """Compute fingerprints of bytes at an entry of a tensor: sums modulo 2^64 with fixed odd factors.

    Args:
        raw: Bytes (T, 8 · n), uint8, with zeros after the last.
        start: First entry.

    Returns:
        Fingerprints (T,), uint64.
    """
    words = raw.view(np.uint64)
    seed = (start * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) % 2**64 | 1
    return np.einsum("ij,j->i", words, _factors(words.shape[1])) * np.uint64(seed)


def _factors(count: int) -> np.ndarray:
    if len(_FACTORS[0]) < count:
        _FACTORS[0] = np.random.default_rng(0).integers(0, 2**64, 2 * count, dtype=np.uint64) | np.uint64(1)
    return _FACTORS[0][:count]


_FACTORS: list[np.ndarray] = [np.zeros(0, np.uint64)]
