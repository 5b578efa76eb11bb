"""Check the files of a data set that `datasets` wrote with `save_to_disk` before it reads them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ckpt_probe.budget import Budget, require_regular
from ckpt_probe.errors import DataError, last_line
from ckpt_probe.files import read_object
from ckpt_probe.plugins import require_extra

SPLITS_FILE, STATE_FILE = "dataset_dict.json", "state.json"

SHARED = ("run_end_encoded", "_view")
"""Parts of the names of types whose values may stand for many rows, besides dictionaries."""


def require_own_files(path: Path) -> None:
    """Check that a data set reads no file outside its directory, and no file that unpacks to more than its size.

    Args:
        path: Directory of a data set, or of a data set for each split.

    Raises:
        DataError: If a file of it names a file outside the directory, is a link to such a file, or contains compressed
            Arrow data, whose size in memory is not limited by the size of the file.
    """
    for directory in _directories(path):
        state = directory / STATE_FILE
        if not state.is_file():
            continue
        files = read_object(state, "the state of a data set").get("_data_files")
        for entry in files if isinstance(files, list) else []:
            name = entry.get("filename") if isinstance(entry, dict) else None
            _require_plausible(own_file(directory, name, state))


def own_file(directory: Path, name: Any, source: Path | str) -> Path:
    """Return the path of a file of a data set.

    Args:
        directory: Directory of the data set.
        name: Path of the file, absolute or relative to the directory.
        source: The file or row that names it, for messages.

    Raises:
        DataError: If it is outside the directory, also by a link. Links of a Hugging Face cache to the folder with all
            files of a repository are accepted.
    """
    if not isinstance(name, str) or not name:
        raise DataError(f"{source}: expected the name of a file, found {str(name)[:200]!r}")
    path = directory / name
    target = path.resolve()
    # In a Hugging Face cache the files of a snapshot are links to the folder with all files of the repository.
    state = directory / STATE_FILE
    cached = path.parent == directory and path.is_symlink() and state.is_symlink()
    cached = cached and target.parent == state.resolve().parent
    if not cached and not target.is_relative_to(directory.resolve()):
        raise DataError(f"{source}: names the file {name[:200]!r}, which is outside the directory of the data set")
    return path


def encoded_source(value: Any, directory: Path, row: str) -> Path | bytes | None:
    """Return the content, or the file, of an encoded image or sound; None if the row has neither.

    Args:
        value: Mapping with "bytes" and "path", as `datasets` stores them, or None.
        directory: Directory of the data set.
        row: Name of the row, for messages.

    Raises:
        DataError: If the file is outside the directory.
    """
    if value is None or value["bytes"] is not None:
        return None if value is None else value["bytes"]
    return None if value["path"] is None else own_file(directory, value["path"], row)


def _directories(path: Path) -> Iterator[Path]:
    """Yield the directory of each split, or the directory itself for a data set without splits."""
    listing = path / SPLITS_FILE
    if not listing.is_file():
        yield path
        return
    names = read_object(listing, "the splits of a data set").get("splits")
    for name in names if isinstance(names, list) else []:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name:
            raise DataError(f"{listing}: names the split {str(name)[:200]!r}, which is not a folder beside it")
        yield own_file(path, name, listing)


def _require_plausible(path: Path) -> None:
    """Raise DataError if an Arrow file is damaged, is compressed, or its rows are beyond its budget.

    Values of a file without compression are not copied to memory.
    """
    require_regular(path)
    pyarrow = require_extra("pyarrow", "datasets")
    ipc = require_extra("pyarrow.ipc", "datasets")
    try:
        with pyarrow.memory_map(str(path)) as source:
            mapped = source.read_buffer()
            ends, budget = (mapped.address, mapped.address + mapped.size), Budget(path, mapped.size)
            source.seek(0)
            reader = ipc.open_stream(source)
            budget.spend(entries=len(reader.schema.names))
            for kind in map(str, reader.schema.types):
                if any(shared in kind for shared in SHARED):
                    raise DataError(f"{path}: a column of {kind}, whose rows may share values; cast it to plain values")
            # The sizes of compressed values are claims until they are unpacked.
            with budget.enforced():
                for batch in reader:
                    if not all(ends[0] <= buffer.address < ends[1] for buffer in _values(batch.columns)):
                        raise DataError(
                            f"{path}: compressed Arrow data; load and save the data set again with `datasets`"
                        )
                    batch.validate()
                    # Rows without values, or of lists without entries, take no space in the file.
                    budget.spend(batch.num_rows)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: the data set cannot be read, it may be damaged: {last_line(error)}") from error


def _values(columns: Iterable[Any]) -> Iterator[Any]:
    """Yield the buffers of columns that hold values, with those of their dictionaries."""
    for column in columns:
        yield from (buffer for buffer in column.buffers() if buffer is not None and buffer.size)
        yield from _values([column.dictionary] if hasattr(column, "dictionary") else [])
