"""Formats of checkpoints, one module each: a new format is a module and an entry in the list below."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path

from ckpt_probe.checkpoints.checkpoint import Checkpoint
from ckpt_probe.checkpoints.folders import checkpoint_in
from ckpt_probe.checkpoints.parts import ADAPTER, DISTRIBUTED, INDICES, SHARDS, ModelFiles, model_files
from ckpt_probe.errors import DataError
from ckpt_probe.files import require_regular

ZIP = b"PK\x03\x04"
"""First bytes of a zip file, as torch.save writes since version 1.6."""
STREAM = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of the streams that earlier versions of torch.save wrote: a pickled number."""
HEAD = 64
"""Number of bytes by which a format is recognised."""

IN_PLACE = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run: git lfs pull"),
    (b"<", "a page of HTML or XML, perhaps of a failed download, not the file itself; download it again"),
)  # fmt: skip
"""First bytes of files that lie in the place of another, whatever their name, with a description and advice."""
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
    *IN_PLACE,
)  # fmt: skip
"""First bytes of other formats, with a description and advice."""
SUPPORTED = (
    "expected safetensors, a file of torch.save, a directory of torch.distributed.checkpoint, or shards with an index"
)


FORMATS: tuple[tuple[Callable[[str, bytes], bool], str], ...] = (
    (lambda kind, head: kind == ADAPTER, "adapters:open_adapter"),
    (lambda kind, head: kind == DISTRIBUTED, "distributed:open_distributed"),
    (
        lambda kind, head: kind == INDICES[1] or (kind.startswith(SHARDS) and head.startswith(ZIP)),
        "pickled:open_pickled_shards",
    ),
    (lambda kind, head: head.startswith((ZIP, STREAM)), "pickled:open_pickled"),
    # The length of a header and its first brace. A damaged file with this suffix is opened too, so that the error
    # describes the damage.
    (
        lambda kind, head: head[6:9] == b"\0\0{" or kind == INDICES[0] or kind.endswith(".safetensors"),
        "safe:open_safetensors",
    ),
)
"""Formats in the order in which they are tried: a function that recognises the format by `ModelFiles.kind` and the
first bytes of the file, and "module:function" of this package, imported when it is needed, which takes the files, the
`state_key`, the open base of an adapter and the stack that closes what it opens, and returns the checkpoint."""


@contextmanager
def open_checkpoint(path: Path, *, state_key: str | None = None, base: Path | None = None) -> Iterator[Checkpoint]:
    """Open a checkpoint, within a `with` block.

    Args:
        path: File, or directory with one checkpoint.
        state_key: Key of the tensors in a pickled object with several mappings of tensors, joined by dots; also a
            prefix of the names of tensors.
        base: Checkpoint that an adapter is merged onto.

    Yields:
        The checkpoint.

    Raises:
        DataError: If there is no checkpoint, or it is damaged, claims more bytes than its files have, or needs classes
            that could run code.
        UsageError: If `state_key` or `base` is required, or does not fit.
    """
    with ExitStack() as stack:
        merged = None if base is None else stack.enter_context(open_checkpoint(base, state_key=state_key))
        files = model_files(checkpoint_in(path) if path.is_dir() else path)
        require_regular(files.file)
        try:
            checkpoint = opener(files)(files, state_key, merged, stack)
        except DataError as error:
            for file in files.shards:
                if description := _described(_head(file), IN_PLACE):
                    raise DataError(f"{file}: {description}") from error
            raise
        checkpoint.path = path
        yield checkpoint


def opener(files: ModelFiles) -> Callable[..., Checkpoint]:
    """Return the function that opens a model: the first of `FORMATS` that recognises its file.

    Raises:
        DataError: If the file cannot be read, or its format is not known.
    """
    head = _head(files.file)
    for recognises, name in FORMATS:
        if recognises(files.kind, head):
            module, _, function = name.partition(":")
            return getattr(import_module(f"{__name__}.{module}"), function)
    unknown = f"not a checkpoint of a known format; {SUPPORTED}" if head else "an empty file"
    raise DataError(f"{files.file}: {_described(head, FOREIGN) or unknown}")


def _head(file: Path) -> bytes:
    try:
        with file.open("rb", buffering=0) as stream:
            return stream.read(HEAD)
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error


def _described(head: bytes, formats: Sequence[tuple[bytes, str]]) -> str | None:
    return next((text for start, text in formats if head.startswith(start)), None)
