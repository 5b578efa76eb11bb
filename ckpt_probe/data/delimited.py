"""Diagnosis of CSV files that cannot be read: undecodable bytes, a wrong separator, repeated column names."""

import codecs
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ckpt_probe.errors import DataError, UsageError, listed

ENCODING = "encoding"
"""The data argument with the encoding of a table's texts."""

DEFAULT_ENCODING = "utf-8"
SEPARATORS = ";\t|,"
LONGEST_HEADER = 2**20
"""Number of bytes of the first line that are searched for a separator."""

INDEX = re.compile(r"(Unnamed: \d+(\.\d+)?)?|__index_level_\d+__")
"""Names that pandas gives to columns without a name, mostly the index of a frame."""


def checked_encoding(name: Any) -> str:
    """Return the name of an encoding, UTF-8 by default.

    Raises:
        UsageError: If Python has no text encoding of this name.
    """
    try:
        "".encode(DEFAULT_ENCODING if name is None else name)
    except (LookupError, TypeError, ValueError) as error:
        raise UsageError(f"{ENCODING}: expected one such as utf-8, cp1252 or utf-16, found {name!r}") from error
    return DEFAULT_ENCODING if name is None else str(name)


def undecodable(path: Path, encoding: str, longest: int) -> str | None:
    """Return a description of the first row that cannot be decoded, for a message; None if there is no such row.

    Args:
        path: The file.
        encoding: Its supposed encoding; returns None for encodings whose line break has several bytes.
        longest: Maximum length of a line in bytes.
    """
    with path.open("rb") as file:
        if "\n".encode(encoding) != b"\n":
            return None
        for number, line in enumerate(iter(lambda: file.readline(longest), b"")):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as error:
                return f"row {number} (line {number + 1} of the file): {no_text(line, error)}"
    return None


def no_text(content: bytes, error: UnicodeDecodeError) -> str:
    """Return a description of the byte that cannot be decoded, with a suggested encoding."""
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    byte = f"byte 0x{content[error.start]:02x} is no text in {error.encoding}"
    return f"{byte}; name the encoding, such as --data-argument {ENCODING}={'utf-16' if marked else 'cp1252'}"


def separator_hint(path: Path, delimiter: str, encoding: str) -> str:
    """Return a suggestion if the first line of a file seems to have a separator other than `delimiter`, else ""."""
    with path.open("rb") as file:
        header = file.readline(LONGEST_HEADER).decode(encoding, errors="replace")
    likely = max(SEPARATORS, key=header.count)
    if header.count(likely) <= header.count(delimiter):
        return ""
    argument = "'delimiter=\"\\t\"'" if likely == "\t" else f"'delimiter={likely}'"
    return f"its first line seems to be separated by {likely!r}, not by {delimiter!r}: --data-argument {argument}"


def require_distinct(path: Path, names: Sequence[str]) -> None:
    """Raise DataError if two columns have the same name, unless it is empty."""
    twice = [repr(name) for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise DataError(
            f"{path}: two columns have one name: {listed(twice)}; rename one (a CSV file begins with names)"
        )
