"""Shards of one checkpoint by the index that Hugging Face's libraries write: which tensor is in which file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt_probe.checkpoints.contents import Asked, Contents
from ckpt_probe.checkpoints.folders import listed_shards
from ckpt_probe.checkpoints.formats.pickled import open_pickled
from ckpt_probe.checkpoints.tensors import filler
from ckpt_probe.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def open_pickled_shards(path: Path, asked: Asked) -> Iterator[Contents]:
    """Open the shards of torch.save that an index names, memory-mapped.

    Raises DataError as `listed_shards`, for a shard that is no state dict, for a tensor that is not where the index
    says, and for one that it does not list.
    """
    wanted = listed_shards(path)
    files = list(dict.fromkeys(wanted.values()))
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    tensors: dict[str, Tensor] = {}
    for file in files:
        with open_pickled(path.parent / file, asked) as shard:
            names = {name for name, home in wanted.items() if home == file}
            for name in sorted(names - set(shard.layout)):
                raise DataError(f"{path}: says that tensor {name!r} is in {file}, but it is not")
            for name in sorted(set(shard.layout) - names):
                raise DataError(f"{path}: does not list tensor {name!r} of {file}")
            layout |= shard.layout
            tensors |= {name: shard.read(name) for name in shard.layout}
    yield Contents(
        path=path,
        format=f"torch zip, {len(files)} shards",
        files=(path, *(path.parent / file for file in files)),
        layout=layout,
        read=tensors.__getitem__,
        fill=filler(tensors.__getitem__),
    )
