"""Shards of one checkpoint that torch.save wrote, by the index of Hugging Face's libraries or by their names."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.checkpoints.contents import Asked, Contents, below
from ckpt_probe.checkpoints.folders import present_twice, shards_of
from ckpt_probe.checkpoints.formats.pickled import open_pickled
from ckpt_probe.checkpoints.tensors import filler
from ckpt_probe.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def open_pickled_shards(path: Path, asked: Asked) -> Iterator[Contents]:
    """Open the shards of torch.save that an index names, or of which this is one, memory-mapped.

    Raises DataError as `shards_of`, for a shard that is no state dict, for a tensor that is not where the index says,
    that it does not list, or that two shards hold.
    """
    files, wanted = shards_of(path)
    homes: dict[str, str] = {}
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    tensors: dict[str, Tensor] = {}
    extra: dict[str, Any] = {}
    beside: Mapping[str, Any] = {}
    keys: set[str | None] = set()
    for file in files:
        with open_pickled(file, Asked()) as shard:
            names = set(shard.layout) if wanted is None else {n for n, home in wanted.items() if home == file.name}
            for name in sorted(names - set(shard.layout)):
                raise DataError(f"{path}: says that tensor {name!r} is in {file.name}, but it is not")
            for name in sorted(set(shard.layout) - names):
                raise DataError(f"{path}: does not list tensor {name!r} of {file.name}")
            for name in sorted(set(shard.layout) & set(layout)):
                raise present_twice(path, name, homes[name], file.name)
            homes |= dict.fromkeys(names, file.name)
            layout |= shard.layout
            tensors |= {name: shard.read(name) for name in shard.layout}
            extra |= shard.extra()
            beside = beside or shard.beside
            keys.add(shard.state_key)
    contents = Contents(
        path=path,
        format=f"torch zip, {len(files)} shards" if len(files) > 1 or wanted is not None else "torch zip",
        files=tuple(files) if wanted is None else (path, *files),
        layout=layout,
        read=tensors.__getitem__,
        fill=filler(tensors.__getitem__),
        beside=beside,
        extra=lambda: extra,
        state_key=keys.pop() if len(keys) == 1 else None,
    )
    within = asked.state_key not in {None, contents.state_key}
    yield below(contents, str(asked.state_key)) if within else contents
