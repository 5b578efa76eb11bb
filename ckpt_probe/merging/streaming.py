"""Write interpolations and averages of checkpoints block by block, in memory independent of their size.

Neither a model nor torch is needed. Blocks are independent of each other, so that the output is identical, bit for bit,
for any number of threads.
"""

import json
import math
import os
import shutil
import threading
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ckpt_probe.checkpoints import Checkpoint, open_checkpoint, quantised
from ckpt_probe.checkpoints.checkpoint import Shard
from ckpt_probe.checkpoints.folders import companions
from ckpt_probe.checkpoints.formats.safe import with_hashes, without_hashes
from ckpt_probe.checkpoints.statistics import MOST_THREADS
from ckpt_probe.checkpoints.tensors import BITS, ITEM_BYTES, decode, exact_dtype
from ckpt_probe.checkpoints.writing import header
from ckpt_probe.errors import CkptProbeError, DataError, UsageError
from ckpt_probe.files import read_object, replacing, replacing_directory
from ckpt_probe.merging import blending
from ckpt_probe.merging.blending import Digests
from ckpt_probe.progress import Progress, Task

OF_A_POINT = frozenset(
    f"ckpt_probe.{name}" for name in ("step", "epoch", "metrics", "seed", "sparsity", "pruned", "alignment")
)
"""Metadata that describe a single checkpoint, and are left out of a merged one."""

INTEGERS = frozenset({"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"})
"""Dtypes of integers and booleans, which are copied."""

FLUSH_SECONDS = 0.05
_FLUSH = getattr(os, "fdatasync", os.fsync)  # macOS has only the latter


@dataclass(frozen=True)
class InterpolationSummary:
    """The result of `interpolate` or `average`.

    Attributes:
        interpolated: Number of interpolated tensors.
        copied: Names of the integer and boolean tensors, which were copied from one checkpoint.
    """

    interpolated: int
    copied: tuple[str, ...]


def check_averaged(a: Checkpoint) -> None:
    """Raise DataError if a tensor of a checkpoint is quantised or of a dtype that cannot be averaged."""
    unfit = {
        name: a.dtype(name) for name in a.names if a.dtype(name) not in INTEGERS and a.dtype(name) not in ITEM_BYTES
    }
    unfit |= {name: f"quantised ({how})" for name, how in quantised(a.layout).items() if name not in unfit}
    if unfit:
        name, kind = next(iter(unfit.items()))
        raise DataError(
            f"{a.path}: tensor {name!r} is {kind}, which cannot be averaged ({len(unfit)} such); "
            "convert to float32, float16 or bfloat16 first"
        )


@dataclass(frozen=True)
class _Block:
    """A block of consecutive numbers of a tensor.

    Attributes:
        name: Name of the tensor.
        first: Index of the first number.
        count: Number of numbers.
        target: Offset of the block in the output file, in bytes.
    """

    name: str
    first: int
    count: int
    target: int


@dataclass(frozen=True)
class Merge:
    """A merge of checkpoints with the same tensors.

    Attributes:
        template: Checkpoint whose shards and metadata the output has.
        sources: Checkpoints to merge.
        blend: How blocks are mixed; None if the only source is copied.
        dtype: Name of the output's dtype in safetensors; None for that of the template.
        origin: Description of the merge, for the metadata.
    """

    template: Checkpoint
    sources: list[Checkpoint]
    blend: blending.Blend | None
    dtype: str | None
    origin: dict[str, Any]

    def write(
        self, out: Path, inputs: Sequence[Path], threads: int | None, overwrite: bool, progress: Progress
    ) -> InterpolationSummary:
        read = [*inputs, *(file for source in self.sources for file in source.files)]
        if out.exists() and any(out.samefile(path) for path in read):
            raise UsageError(f"{out}: is one of the input checkpoints; choose another name")
        # Both the target of a link and the link itself, which would be removed with its directory.
        inside = [file for path in read for file in (path.resolve(), path.parent.resolve() / path.name)]
        if any(out.resolve() in file.parents for file in inside):
            raise UsageError(f"{out}: contains one of the input checkpoints; choose another name")
        if threads is not None and threads < 1:
            raise UsageError(f"threads: expected at least 1, found {threads}")
        template = self.template
        if self.blend is not None or self.dtype is not None:
            check_averaged(template)
        workers = threads or min(MOST_THREADS, os.cpu_count() or 1)
        blocks = sum(-(-math.prod(template.shape(name)) // blending.ENTRIES) for name in template.names)
        with progress.task(out.name, blocks, "blocks") as bar:
            if template.index is None:
                # A safetensors file has one shard, with its metadata and in its order.
                every = Shard("", tuple(template.names), template.raw_metadata)
                shard = template.shards[0] if len(template.shards) == 1 else every
                with replacing(out, overwrite=overwrite) as temporary:
                    self._write_shard(shard, temporary, workers, bar)
                if out.suffix in {".bin", ".ckpt", ".pt", ".pth"}:
                    progress.message(f"{out}: written as safetensors, whatever its name; torch.load cannot read it")
            else:
                others = {file.name for file in companions(template.index.parent)}
                if overwrite and out.is_dir():
                    _require_sharded(out, others)
                with replacing_directory(out, overwrite=overwrite) as folder:
                    self._write_shards(template.index, folder, workers, bar)
                    # Other files may have been added while this was written.
                    if overwrite and out.is_dir():
                        _require_sharded(out, others)
        mixed = [name for name in template.names if template.dtype(name) in ITEM_BYTES]
        copied = tuple(name for name in template.names if name not in set(mixed))
        return InterpolationSummary(len(mixed), copied)

    def _write_shards(self, index_file: Path, folder: Path, workers: int, bar: Task) -> None:
        total = 0
        for shard in self.template.shards:
            self._write_shard(shard, folder / shard.name, workers, bar)
            total += sum(map(self._bytes, shard.tensors))
        index = read_object(index_file, "an index of shards")
        index.setdefault("metadata", {})["total_size"] = total
        (folder / index_file.name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for file in companions(index_file.parent):
            shutil.copyfile(file, folder / file.name)

    def _write_shard(self, shard: Shard, path: Path, workers: int, bar: Task) -> None:
        layout = {name: (self._target_dtype(name), self.template.shape(name)) for name in shard.tensors}
        metadata = {name: value for name, value in shard.metadata.items() if name not in OF_A_POINT}
        metadata["ckpt_probe.path"] = json.dumps(self.origin)
        start = header(layout, without_hashes(metadata, layout))
        digests = Digests(self.sources)
        with path.open("wb", buffering=0) as target:
            target.write(start)
            blocks = self._blocks(shard, len(start))
            with _flushing(target):
                _run(partial(self._write_block, target, digests, bar), blocks, len(self.sources), workers)
            digests.require_sources()
            _write(target, header(layout, with_hashes(metadata, digests.hashes(layout))), 0)

    def _blocks(self, shard: Shard, start: int) -> Iterator[_Block]:
        for name in shard.tensors:
            numbers = math.prod(self.template.shape(name))
            for first in range(0, numbers, blending.ENTRIES):
                count = min(blending.ENTRIES, numbers - first)
                yield _Block(name, first, count, start + first * _item(self._target_dtype(name)))
            start += self._bytes(name)

    def _write_block(
        self, target: BinaryIO, digests: Digests, bar: Task, buffers: blending.Buffers, block: _Block
    ) -> None:
        mixed = self.template.dtype(block.name) in ITEM_BYTES
        sources = self.sources if mixed else self.sources[:1]
        raw = [_read(source, buffer, block) for source, buffer in zip(sources, buffers.raw, strict=False)]
        # Before they are mixed, which may overwrite them.
        digests.read(block.name, block.first, raw)
        done = self._mixed(buffers, raw, block) if mixed else raw[0]
        _write(target, done, block.target)
        digests.written(block.name, block.first, done)
        bar.advance()

    def _mixed(self, buffers: blending.Buffers, raw: list[Any], block: _Block) -> Any:
        """Return the bytes to write for a block of floating numbers, from those of every source."""
        kind = self._target_dtype(block.name)
        dtypes = [source.dtype(block.name) for source in self.sources]
        pairs = {kind, *dtypes} == {"BF16"}
        if pairs:
            size = 2 * (block.count + block.count % 2)
            for buffer in buffers.raw if block.count % 2 else ():
                buffer[size - 2 : size] = 0
            halves = zip(buffers.raw[: len(raw)], buffers.decoded, strict=False)
            decoded = [blending.split_pairs(buffer[:size], into) for buffer, into in halves]
        else:
            exact = exact_dtype("F64" if "F64" in (kind, *dtypes) else kind)
            parts = zip(raw, dtypes, buffers.decoded, strict=False)
            decoded = [decode(bytes_, dtype, into, exact) for bytes_, dtype, into in parts]
        with np.errstate(over="ignore", invalid="ignore"):
            mix = decoded[0] if self.blend is None else self.blend(buffers, decoded)
            files = [source.path for source in self.sources]
            blending.settle_range(mix, kind, block.name, self.blend, decoded, files)
        if pairs:
            return blending.join_pairs(mix, buffers.out, buffers.spare)[: 2 * block.count]
        return blending.encode(mix, kind, buffers.out)

    def _target_dtype(self, name: str) -> str:
        dtype = self.template.dtype(name)
        return self.dtype or dtype if dtype in ITEM_BYTES else dtype

    def _bytes(self, name: str) -> int:
        return math.prod(self.template.shape(name)) * _item(self._target_dtype(name))


def _item(dtype: str) -> int:
    if dtype not in BITS:
        raise DataError(f"dtype {dtype} cannot be written")
    return BITS[dtype] // 8


def _read(source: Checkpoint, buffer: Any, block: _Block) -> Any:
    item = _item(source.dtype(block.name))
    part = buffer[: block.count * item]
    source.fill(block.name, block.first * item, memoryview(part))
    return part


def _write(file: BinaryIO, data: Any, offset: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        offset, view = offset + written, view[written:]


@contextmanager
def _flushing(file: BinaryIO) -> Iterator[None]:
    """Flush the file to the disk in the background, so that the flush at the end is short."""
    done = threading.Event()

    def flush() -> None:
        while not done.wait(FLUSH_SECONDS):
            _FLUSH(file.fileno())

    with ThreadPoolExecutor(1, thread_name_prefix="flushing") as pool:
        flushing = pool.submit(flush)
        try:
            yield
        finally:
            done.set()
        # The system reports a write error to only one caller, which may have been this thread.
        flushing.result()


def _require_sharded(out: Path, copied: Set[str]) -> None:
    """Raise UsageError if a directory to be replaced has more than a sharded checkpoint and the files `copied`."""
    try:
        with open_checkpoint(out) as existing:
            files, reason = (() if existing.index is None else existing.files), "no index of shards"
    except CkptProbeError as error:
        files, reason = (), str(error)
    entries = sorted(out.iterdir())
    if not files:
        first = entries[0].name if entries else "nothing"
        problem = f"contains {first} and is not a sharded checkpoint ({reason})"
    else:
        ours = {*files, *(out / name for name in copied)}
        foreign = next((entry.name for entry in entries if entry not in ours), None)
        if foreign is None:
            return
        problem = f"also contains {foreign}"
    raise UsageError(f"{out}: not replaced, because it {problem}; choose another name, or remove it yourself")


def _run(task: Any, blocks: Iterator[_Block], sources: int, workers: int) -> None:
    """Run `task` for every block in several threads, each with its own buffers; the first error ends all of them."""
    lock, ended = threading.Lock(), threading.Event()

    def following() -> _Block | None:
        with lock:
            return None if ended.is_set() else next(blocks, None)

    def work() -> None:
        buffers = blending.Buffers(sources)
        for block in iter(following, None):
            task(buffers, block)

    with ThreadPoolExecutor(workers, thread_name_prefix="blocks") as pool:
        running = [pool.submit(work) for _ in range(workers)]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
        finally:
            # After an error, or Ctrl-C, which only this thread receives, the others end after their current block.
            ended.set()
    for each in running:
        each.result()
