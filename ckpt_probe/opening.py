"""Open checkpoints, dumps and data that are local or at an address, such as `s3://bucket/run/step-100.safetensors`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.remote import local_data, resolve

if TYPE_CHECKING:
    from ckpt_probe.checkpoints import Checkpoint
    from ckpt_probe.data import LabelledData
    from ckpt_probe.dumps import Dump


@contextmanager
def open_checkpoint(
    path: Path | str, *, state_key: str | None = None, base: Path | str | None = None
) -> "Iterator[Checkpoint]":
    """Open a checkpoint, within a `with` block.

    Args:
        path: File, directory with one checkpoint, or address. Headers and single tensors of remote safetensors files
            are read by ranges; other files are downloaded into the cache.
        state_key: Key of the tensors in a pickled checkpoint with several mappings of tensors, or a prefix of their
            names.
        base: Checkpoint that a PEFT adapter is merged onto.

    Yields:
        The checkpoint, which reads tensors by name.

    Raises:
        DataError: If there is no checkpoint, or it is damaged or could run code; if it is remote, also if its host
            cannot be reached or it changes while it is read.
        UsageError: If `state_key` or `base` is required or does not fit.
    """
    from ckpt_probe import checkpoints

    base = resolve(base)
    with checkpoints.open_checkpoint(resolve(path), state_key=state_key, base=base) as checkpoint:
        yield checkpoint


@contextmanager
def open_dump(path: Path | str) -> "Iterator[Dump]":
    """Open a dump for reading, within a `with` block.

    Args:
        path: File or address; a remote dump is downloaded into the cache.

    Yields:
        The dump.

    Raises:
        DataError: If the file is missing, not HDF5, truncated, of a newer format, incomplete (our format without the
            completion mark) or damaged, if the shapes of its arrays do not match, or if it changes while it is open.
    """
    from ckpt_probe import dumps

    with dumps.open_dump(resolve(path)) as dump:
        yield dump


def load_data(name: str, arguments: Mapping[str, Any] | None = None, *, workers: int | None = None) -> "LabelledData":
    """Load labelled data by name.

    Args:
        name: Name as for `extract --data`, such as `digits`, `npz:FILE` or `npz:s3://bucket/FILE`; remote files are
            downloaded into the cache.
        arguments: Arguments of the data, by name.
        workers: Number of processes that read images and datasets; 0 for none, None for a number that suits the
            machine.

    Returns:
        The data, with named splits.

    Raises:
        UsageError: If the name or an argument is unknown.
        DataError: If the files do not contain such data.
    """
    from ckpt_probe import data

    with local_data(name) as local:
        return replace(data.load_data(local, arguments, workers=workers), name=name)
