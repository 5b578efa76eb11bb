"""Folders and files of a directory of samples, without those that an operating system or an editor created."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from ckpt_probe.errors import DataError
from ckpt_probe.files import require_regular

SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "icon\r"),  # macOS, in archives and in folders
        *("desktop.ini", "thumbs.db", "ehthumbs.db", "$recycle.bin", "system volume information"),  # Windows
        *("@eadir", "#recycle", "@recycle", "@recently-snapshot", "lost+found"),  # network drives and file systems
    }
)
"""Lower-case names of files and folders that contain no sample; hidden ones are excluded too."""


def is_system_name(name: str) -> bool:
    """Return whether a name is hidden (`._x.png`, `.git`) or belongs to an operating system or editor."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def split_files(path: Path, suffixes: Collection[str], *, folders: bool = False) -> dict[str, list[Path]]:
    """Return the files of each split: each file of a directory is one with the name of the file, or the file itself.

    Args:
        path: A file, or a directory.
        suffixes: Suffixes of the files in the directory, in lower case.
        folders: Whether each folder of the directory is a split too, of the files in it at any depth, sorted by path.

    Raises:
        DataError: If there is no such path, it is a pipe or a device, or a directory has no such file.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    require_regular(path)
    if not path.is_dir():
        return {path.stem: [path]}
    files_of: dict[str, list[Path]] = {}
    entries = sorted(entry for entry in path.iterdir() if not is_system_name(entry.name))
    for entry in sorted(entries, key=Path.is_dir):
        inside = sorted(entry.rglob("*")) if folders and entry.is_dir() else [entry]
        for file in inside:
            hidden = any(map(is_system_name, file.relative_to(path).parts))
            if file.suffix.lower() in suffixes and not hidden and file.is_file():
                files_of.setdefault(entry.name if entry.is_dir() else entry.stem, []).append(file)
    if not files_of:
        raise DataError(f"{path}: no file in it whose name ends in {' or '.join(suffixes)}")
    return files_of


def subfolders(directory: str | Path, *, of_system: bool = False) -> list[str]:
    """Return the sorted names of a directory's folders; links are followed.

    Args:
        directory: The directory.
        of_system: Return only folders with a system name (see `is_system_name`) instead of all others.

    Raises:
        DataError: If the directory cannot be read.
    """
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and is_system_name(entry.name) is of_system)
    except OSError as error:
        raise DataError(f"{directory}: cannot be read: {error.strerror}") from error


def files_below(folder: str | Path) -> Iterator[tuple[str, bool]]:
    """Yield every file below a folder in the order of torchvision's ImageFolder; links are followed.

    Yields:
        The path of a file, and whether it or a folder above it, below `folder`, has a system name.
    """
    seen: set[str] = set()
    visited = []
    for path, folders, files in os.walk(folder, followlinks=True):
        # A link to a folder above would be followed endlessly.
        seen.add(os.path.realpath(path))
        folders[:] = [name for name in folders if os.path.realpath(f"{path}/{name}") not in seen]
        visited.append((path, sorted(files)))
    for path, files in sorted(visited):
        system = any(map(is_system_name, path.removeprefix(str(folder)).split("/")[1:]))
        yield from ((f"{path}/{name}", system or is_system_name(name)) for name in files)


def require_utf8(directory: Path, names: list[str]) -> None:
    """Raise DataError if the name of a class folder cannot be stored as UTF-8."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            content = os.fsencode(name)
            raise DataError(f"{directory}: the name {content!r} of a class folder is not UTF-8; rename it") from error
