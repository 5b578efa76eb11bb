"""Kinds of checkpoints, one file each: to add one is a file here and an entry in the list below."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ckpt_probe.checkpoints.contents import Asked, Contents
from ckpt_probe.checkpoints.folders import DISTRIBUTED, INDICES, checkpoint_in, is_adapter, whole_of
from ckpt_probe.checkpoints.formats.signatures import STREAM, ZIP, is_safetensors, what_it_is
from ckpt_probe.checkpoints.parts import shard_name
from ckpt_probe.errors import DataError
from ckpt_probe.files import require_regular


@dataclass(frozen=True)
class Format:
    """One kind of checkpoint: how a file is recognised, by its path and first bytes, and "module:function" that opens.

    The function takes the path and what is `Asked`, and gives `Contents` for the time of a `with`.
    """

    recognises: Callable[[Path, bytes], bool]
    opener: str

    def open(self, path: Path, asked: Asked) -> AbstractContextManager[Contents]:
        """The contents; only now its module is loaded, since looking at one kind should not cost the others."""
        module, _, function = self.opener.partition(":")
        return getattr(import_module(f"{__name__}.{module}"), function)(path, asked)


FORMATS = (
    Format(lambda path, head: is_adapter(path), "adapters:open_adapter"),
    Format(lambda path, head: path.name == DISTRIBUTED, "distributed:open_distributed"),
    Format(
        lambda path, head: path.name.endswith(INDICES[0]) or (is_safetensors(head) and bool(shard_name(path.name))),
        "safe:open_shards",
    ),
    Format(
        lambda path, head: path.name.endswith(INDICES[1]) or (head.startswith(ZIP) and bool(shard_name(path.name))),
        "shards:open_pickled_shards",
    ),
    Format(lambda path, head: head.startswith((ZIP, STREAM)), "pickled:open_pickled"),
    # What is called so is taken for it, to say what is wrong with it.
    Format(lambda path, head: is_safetensors(head) or path.suffix == ".safetensors", "safe:open_file"),
)
"""Asked in this order; the first that recognises a file opens it."""
HEAD = 64
"""Bytes by which a file is recognised."""


@contextmanager
def opened(path: Path, asked: Asked) -> Iterator[Contents]:
    """Open what is at `path`: a file by its first bytes, a directory by the one checkpoint that is in it.

    Raises DataError where there is nothing, nothing that is known, or several, and as the formats do.
    """
    file = checkpoint_in(path) if path.is_dir() else whole_of(path)
    require_regular(file)
    try:
        with file.open("rb", buffering=0) as stream:
            head = stream.read(HEAD)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    kind = next((kind for kind in FORMATS if kind.recognises(file, head)), None)
    if kind is None:
        raise DataError(f"{file}: {what_it_is(head)}")
    with kind.open(file, asked) as contents:
        yield contents
