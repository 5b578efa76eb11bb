"""Documents of `text:FILE|DIR`: files, blocks between blank lines, or lines of text, and lines of JSON."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ckpt_probe.data.arguments import require_known, suggestion
from ckpt_probe.data.columns import ENCODING, checked_encoding
from ckpt_probe.data.directories import is_system_name
from ckpt_probe.data.hints import ModelHints
from ckpt_probe.data.language.windows import ARGUMENTS, labelled_windows
from ckpt_probe.data.samples import LabelledData
from ckpt_probe.errors import DataError, UsageError

DOCUMENT, FIELD = "document", "text"
"""Data arguments: the unit that is a document in a .txt file, and the JSON field with the text."""

CUT: dict[str, Callable[[str], list[str]]] = {
    "file": lambda text: [text],
    "block": lambda text: [part for part in _blocks(text) if part.strip()],
    "line": lambda text: [line for line in text.splitlines() if line.strip()],
}
"""Functions that split the text of a .txt file into documents, by the argument `document`."""

SUFFIXES = (".txt", ".jsonl")


def load(path: str, arguments: Mapping[str, Any], hints: ModelHints, workers: int) -> LabelledData:
    """Load documents in files as windows of tokens; see `labelled_windows`.

    A file is a split with the file's name. In a directory every file and every folder is a split; a folder's documents
    are in its files at any depth, sorted by path.

    Args:
        path: A .txt or .jsonl file, or a directory.
        arguments: `document`, the unit of a .txt file ("file" by default, "block" between blank lines, or "line");
            `text`, the field of a .jsonl line with its text; `encoding`, by default UTF-8; and those of
            `labelled_windows`.
        hints: The model that will receive the data.
        workers: Unused.

    Raises:
        UsageError: For invalid arguments.
        DataError: If there is no such file, or a line has no text.
    """
    require_known("text", arguments, {DOCUMENT, FIELD, ENCODING, *ARGUMENTS})
    encoding = checked_encoding(arguments.get(ENCODING))
    cut, field = arguments.get(DOCUMENT, "file"), str(arguments.get(FIELD, FIELD))
    if cut not in CUT:
        raise UsageError(f"{DOCUMENT}: expected one of {', '.join(CUT)}, found {cut!r}")
    texts = {name: [*_documents(files, cut, field, encoding)] for name, files in _splits(Path(path)).items()}
    recorded = {key: arguments[key] for key in (DOCUMENT, FIELD, ENCODING) if key in arguments}
    return labelled_windows(f"text:{path}", texts, arguments, hints, recorded)


def _splits(path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(f"{path}: expected a file whose name ends in {' or '.join(SUFFIXES)}")
        return {path.stem: [path]}
    if not path.is_dir():
        raise DataError(f"{path}: no such file or directory")
    entries = [entry for entry in sorted(path.iterdir()) if not is_system_name(entry.name)]
    files_of = {entry.stem: [entry] for entry in entries if entry.is_file() and entry.suffix in SUFFIXES}
    for folder in (entry for entry in entries if entry.is_dir()):
        files = [
            file
            for file in sorted(folder.rglob("*"))
            if file.suffix in SUFFIXES
            and not any(map(is_system_name, file.relative_to(folder).parts))
            and file.is_file()
        ]
        if files:
            files_of[folder.name] = [*files_of.get(folder.name, []), *files]
    if not files_of:
        raise DataError(f"{path}: no file in it whose name ends in {' or '.join(SUFFIXES)}")
    return files_of


def _documents(files: list[Path], cut: str, field: str, encoding: str) -> Iterator[str]:
    for file in files:
        if file.suffix == ".jsonl":
            yield from _of_lines(file, field, encoding)
            continue
        try:
            yield from CUT[cut](file.read_text(encoding=encoding))
        except (OSError, UnicodeError) as error:
            hint = f"name the encoding by {suggestion(encoding='cp1252')}"
            raise DataError(f"{file}: cannot be read as {encoding.upper()} text ({error}); {hint}") from error


def _of_lines(file: Path, field: str, encoding: str) -> Iterator[str]:
    try:
        with file.open(encoding=encoding) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _text(json.loads(line), field, f"{file}, line {number}")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as lines of JSON in {encoding.upper()} ({error})") from error


def _text(entry: Any, field: str, where: str) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get(field), str):
        fields = f"; its fields are {', '.join(map(str, entry))}" if isinstance(entry, dict) else ""
        raise DataError(f"{where}: no string in a field {field!r}{fields}; name another by {suggestion(text='NAME')}")
    return entry[field]


def _blocks(text: str) -> Iterator[str]:
    block: list[str] = []
    for line in text.splitlines():
        if line.strip():
            block.append(line)
        elif block:
            yield "\n".join(block)
            block = []
    if block:
        yield "\n".join(block)
