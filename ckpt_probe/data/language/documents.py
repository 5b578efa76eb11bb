"""Documents of `text:FILE|DIR`: whole files, blocks between blank lines or lines of text, and lines of JSON."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ckpt_probe.data.arguments import require_known
from ckpt_probe.data.directories import is_system_name
from ckpt_probe.data.hints import ModelHints
from ckpt_probe.data.language.windows import ARGUMENTS, labelled_windows
from ckpt_probe.data.samples import LabelledData
from ckpt_probe.errors import DataError, UsageError

DOCUMENT, FIELD = "document", "text"
"""Arguments: what a document of a .txt file is, and the field of a line of JSON that has its text."""

CUT: dict[str, Callable[[str], list[str]]] = {
    "file": lambda text: [text],
    "block": lambda text: [part for part in _blocks(text) if part.strip()],
    "line": lambda text: [line for line in text.splitlines() if line.strip()],
}
"""What may be a document of a .txt file."""

SUFFIXES = (".txt", ".jsonl")


def load(place: str, arguments: Mapping[str, Any], hints: ModelHints, workers: int) -> LabelledData:
    """Documents in files, as windows of tokens: see `labelled_windows`.

    A file is one split, called after it; of a directory each file is one, and each folder one whose documents are in
    its files, at any depth, in the order of their names. `document` says what a document of a .txt file is: "file" (the
    default), "block" between blank lines, or "line"; of a .jsonl file it is the string in the field `text` of a line.
    Raises DataError where there is no such file, or a line is none.
    """
    require_known("text", arguments, {DOCUMENT, FIELD, *ARGUMENTS})
    cut, field = arguments.get(DOCUMENT, "file"), str(arguments.get(FIELD, FIELD))
    if cut not in CUT:
        raise UsageError(f"{DOCUMENT}: expected one of {', '.join(CUT)}, found {cut!r}")
    texts = {name: [*_documents(files, cut, field)] for name, files in _splits(Path(place)).items()}
    kept = {key: arguments[key] for key in (DOCUMENT, FIELD) if key in arguments}
    return labelled_windows(f"text:{place}", texts, arguments, hints, kept)


def _splits(place: Path) -> dict[str, list[Path]]:
    if place.is_file():
        if place.suffix not in SUFFIXES:
            raise DataError(f"{place}: expected a file whose name ends in {' or '.join(SUFFIXES)}")
        return {place.stem: [place]}
    if not place.is_dir():
        raise DataError(f"{place}: no such file or directory")
    entries = [entry for entry in sorted(place.iterdir()) if not is_system_name(entry.name)]
    found = {entry.stem: [entry] for entry in entries if entry.is_file() and entry.suffix in SUFFIXES}
    for folder in (entry for entry in entries if entry.is_dir()):
        files = [
            file
            for file in sorted(folder.rglob("*"))
            if file.suffix in SUFFIXES
            and not any(map(is_system_name, file.relative_to(folder).parts))
            and file.is_file()
        ]
        if files:
            found[folder.name] = [*found.get(folder.name, []), *files]
    if not found:
        raise DataError(f"{place}: no file in it whose name ends in {' or '.join(SUFFIXES)}")
    return found


def _documents(files: list[Path], cut: str, field: str) -> Iterator[str]:
    for file in files:
        if file.suffix == ".jsonl":
            yield from _of_lines(file, field)
            continue
        try:
            yield from CUT[cut](file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: cannot be read as UTF-8 text ({error})") from error


def _of_lines(file: Path, field: str) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _text(json.loads(line), field, f"{file}, line {number}")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as lines of JSON in UTF-8 ({error})") from error


def _text(found: Any, field: str, where: str) -> str:
    if not isinstance(found, dict) or not isinstance(found.get(field), str):
        there = f"; its fields are {', '.join(map(str, found))}" if isinstance(found, dict) else ""
        raise DataError(f"{where}: no string in a field {field!r}{there}; --data-argument {FIELD}=NAME names another")
    return found[field]


def _blocks(text: str) -> Iterator[str]:
    held: list[str] = []
    for line in text.splitlines():
        if line.strip():
            held.append(line)
        elif held:
            yield "\n".join(held)
            held = []
    if held:
        yield "\n".join(held)
