"""Formats of checkpoints, one module each: a new format is a module and an entry in the list below."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from ckpt_probe.checkpoints.contents import Contents
from ckpt_probe.checkpoints.folders import DISTRIBUTED, INDICES, checkpoint_in, is_adapter, opening_file, shard_name
from ckpt_probe.errors import DataError
from ckpt_probe.files import require_regular

ZIP = b"PK\x03\x04"
"""First bytes of a zip file, as torch.save writes since version 1.6."""
STREAM = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of the streams that earlier versions of torch.save wrote: a pickled number."""
HEAD = 64
"""Number of bytes by which a format is recognised."""

FOREIGN = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, not a checkpoint; a dump is analyzed (ckpt-probe analyze)"),
    (b"\x80", "a plain pickle, not written by torch.save: opening it could run code; if you trust it, load it and "
     "save its tensors with safetensors.torch.save_file"),
    (b"GGUF", "a GGUF file, whose weights are quantised for inference; use the checkpoint it was made from"),
    (b"\x93NUMPY", "a numpy array; save its tensors with safetensors.numpy.save_file"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"BZh", "compressed with bzip2; unpack it first"),
    (b"\xfd7zXZ", "compressed with xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run: git lfs pull"),
)  # fmt: skip
"""First bytes of other formats, with a description and advice."""
SUPPORTED = (
    "expected safetensors, a file of torch.save, a directory of torch.distributed.checkpoint, or shards with an index"
)


def is_safetensors(head: bytes) -> bool:
    """Return whether a file starts like safetensors: the length of a header, and its first brace."""
    return len(head) > 8 and head[8:9] == b"{" and head[6:8] == b"\0\0"


FORMATS: tuple[tuple[Callable[[Path, bytes], bool], str], ...] = (
    (lambda path, head: is_adapter(path), "adapters:open_adapter"),
    (lambda path, head: path.name == DISTRIBUTED, "distributed:open_distributed"),
    (
        lambda path, head: path.name.endswith(INDICES[0]) or (is_safetensors(head) and bool(shard_name(path.name))),
        "safe:open_shards",
    ),
    (
        lambda path, head: path.name.endswith(INDICES[1]) or (head.startswith(ZIP) and bool(shard_name(path.name))),
        "pickled:open_pickled_shards",
    ),
    (lambda path, head: head.startswith((ZIP, STREAM)), "pickled:open_pickled"),
    # A damaged file with this suffix is opened too, so that the error describes the damage.
    (lambda path, head: is_safetensors(head) or path.suffix == ".safetensors", "safe:open_file"),
)
"""Formats in the order in which they are tried: a function of a file's path and first bytes that recognises the format,
and "module:function" of this package, imported when it is needed, which takes the arguments of `open_contents`."""


@contextmanager
def open_contents(path: Path, state_key: str | None = None, base: Contents | None = None) -> Iterator[Contents]:
    """Open a file of any format, or a directory with one checkpoint, within a `with` block.

    Raises:
        DataError: If there is no checkpoint, several, or one of an unknown format; also as the format does.
        UsageError: As the format does.
    """
    file = checkpoint_in(path) if path.is_dir() else opening_file(path)
    require_regular(file)
    try:
        with file.open("rb", buffering=0) as stream:
            head = stream.read(HEAD)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    opener = next((opener for recognises, opener in FORMATS if recognises(file, head)), None)
    if opener is None:
        raise DataError(f"{file}: {_describe_unknown(head)}")
    module, _, function = opener.partition(":")
    with getattr(import_module(f"{__name__}.{module}"), function)(file, state_key, base) as contents:
        yield contents


def _describe_unknown(head: bytes) -> str:
    if not head:
        return "an empty file"
    description = next((text for start, text in FOREIGN if head.startswith(start)), None)
    return description or f"not a checkpoint of a known format; {SUPPORTED}"
