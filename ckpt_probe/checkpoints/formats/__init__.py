"""Kinds of checkpoints, one file each: to add one is a file here and a line in the list below."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckpt_probe.checkpoints.contents import Asked, Contents
from ckpt_probe.checkpoints.folders import checkpoint_in
from ckpt_probe.checkpoints.formats.adapters import ADAPTER
from ckpt_probe.checkpoints.formats.distributed import DISTRIBUTED
from ckpt_probe.checkpoints.formats.foreign import what_it_is
from ckpt_probe.checkpoints.formats.pickled import PICKLED
from ckpt_probe.checkpoints.formats.safe import SAFETENSORS, SHARDED
from ckpt_probe.checkpoints.formats.shards import PICKLED_SHARDS
from ckpt_probe.errors import DataError

FORMATS = (ADAPTER, DISTRIBUTED, SHARDED, PICKLED_SHARDS, PICKLED, SAFETENSORS)
"""Asked in this order; the first that recognises a file opens it."""
HEAD = 64
"""Bytes by which a file is recognised, whatever its name."""


@contextmanager
def opened(path: Path, asked: Asked) -> Iterator[Contents]:
    """Open what is at `path`: a file by its first bytes, a directory by the one checkpoint that is in it.

    Raises DataError where there is nothing, nothing that is known, or several, and as the formats do.
    """
    file = checkpoint_in(path) if path.is_dir() else path
    try:
        with file.open("rb") as beginning:
            head = beginning.read(HEAD)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    for kind in FORMATS:
        if kind.recognises(file, head):
            with kind.open(file, asked) as contents:
                yield contents
            return
    raise DataError(f"{file}: {what_it_is(head)}")
