"""Columns of a table by name with decoded texts, and the diagnosis of CSV files that cannot be read."""

import codecs
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_probe.budget import Budget
from ckpt_probe.data.arguments import suggestion
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.plugins import require_extra

ENCODING = "encoding"
"""The data argument with the encoding of a table's texts."""

DEFAULT_ENCODING = "utf-8"
SEPARATORS = ";\t|,"
LONGEST_HEADER = 2**20
"""Number of bytes of the first line that are searched for a separator."""

TEXT = 64
"""Bytes of an object of Python for a text, besides its characters."""

INDEX = re.compile(r"(Unnamed: \d+(\.\d+)?)?|__index_level_\d+__")
"""Names that pandas gives to columns without a name, mostly the index of a frame."""


@dataclass(frozen=True)
class Columns:
    """A table with its source.

    Args:
        path: The file of the table.
        table: The table of pyarrow.
        budget: Budget of the file.
        encoding: Encoding of columns of bytes.

    Raises:
        DataError: If two columns have the same name, unless it is empty.
    """

    path: Path
    table: Any
    budget: Budget = field(compare=False)
    encoding: str = DEFAULT_ENCODING

    def __post_init__(self) -> None:
        twice = [repr(name) for name, count in Counter(self.table.column_names).items() if count > 1 and name]
        if twice:
            raise DataError(
                f"{self.path}: two columns have one name: {listed(twice)}; rename one (a CSV file begins with names)"
            )

    def named(self, name: str, option: str) -> Any:
        """Return a column by name.

        Args:
            name: Name of the column.
            option: The data argument that selects it, for the message.

        Raises:
            DataError: If there is no such column (the message lists the others), or a value of it is missing.
        """
        if name not in self._positions:
            names = listed(self.table.column_names, 12)
            raise DataError(
                f"{self.path}: no column {name!r}; there are: {names}; choose one by {suggestion(**{option: 'NAME'})}"
            )
        return self._without_gaps(name, self.table.column(self._positions[name]))

    @cached_property
    def _positions(self) -> Mapping[str, int]:
        # pyarrow compares a name with those of all columns, of which the pixels of images are thousands.
        return {name: position for position, name in enumerate(self.table.column_names)}

    def _without_gaps(self, name: str, column: Any) -> Any:
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]) + 1
            raise DataError(f"{self.path}: row {row}: column {name!r} is empty ({column.null_count} such)")
        return column

    def texts(self, name: str, option: str) -> Any:
        """Return a column like `named`, with bytes decoded to text.

        Raises:
            DataError: If there is no such column, its texts are beyond the budget, or a row cannot be decoded.
        """
        import pyarrow as pa

        column = self.named(name, option)
        self._spend_texts(column)
        if pa.types.is_dictionary(column.type):
            decoded = [chunk.dictionary_decode() for chunk in column.chunks]
            column = self._without_gaps(name, pa.chunked_array(decoded, column.type.value_type))
        if not any(is_bytes(column.type) for is_bytes in (pa.types.is_binary, pa.types.is_large_binary)):
            return column
        values = column.to_pylist()
        for row, value in enumerate(values):
            try:
                values[row] = value.decode(self.encoding)
            except UnicodeDecodeError as error:
                reason = no_text(value, error)
                raise DataError(f"{self.path}: row {row + 1}: column {name!r}: {reason}") from error
        return pa.chunked_array([values], pa.string())

    def _spend_texts(self, column: Any) -> None:
        """Count a column of texts, which become objects of Python, each by itself and not a number in a dictionary."""
        import pyarrow as pa

        kinds, pc = pa.types, require_extra("pyarrow.compute", "frames")
        numbered = kinds.is_dictionary(column.type)
        kind = column.type.value_type if numbered else column.type
        if not any(of(kind) for of in (kinds.is_string, kinds.is_large_string, kinds.is_binary, kinds.is_large_binary)):
            return
        size = column.nbytes
        if numbered:
            lengths = (pc.take(pc.binary_length(chunk.dictionary), chunk.indices) for chunk in column.chunks)
            size = sum(pc.sum(part).as_py() or 0 for part in lengths)
        self.budget.spend(2 * size + TEXT * len(column))

    @property
    def index(self) -> set[str]:
        """Return the names of columns that are the index of a pandas frame, or have no name."""
        stated: list[Any] = []
        with suppress(ValueError, KeyError, TypeError):
            stated = (self.table.schema.pandas_metadata or {}).get("index_columns", [])
        named = {name for name in stated if isinstance(name, str)}
        return {name for name in self.table.column_names if name in named or INDEX.fullmatch(name)}


def plain_type(kind: Any) -> Any:
    """Return the type of pyarrow to which a column is converted: functions of pyarrow lack the others."""
    import pyarrow as pa

    match str(kind).partition("<")[0].partition("[")[0].partition("(")[0]:
        case "string_view":
            return pa.large_string()
        case "binary_view" | "fixed_size_binary":
            return pa.large_binary()
        case "list" | "large_list" | "list_view" | "large_list_view":
            return pa.large_list(plain_type(kind.value_type))
        case "fixed_size_list":
            return pa.list_(plain_type(kind.value_type), kind.list_size)
        case "extension":
            return plain_type(kind.storage_type)
    return kind


def is_text(column: Any) -> bool:
    """Return whether a column holds texts."""
    import pyarrow.types as kinds

    return kinds.is_string(column.type) or kinds.is_large_string(column.type)


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
    return f"{byte}; name the encoding, such as {suggestion(encoding='utf-16' if marked else 'cp1252')}"


def separator_hint(path: Path, delimiter: str, encoding: str) -> str:
    """Return a suggestion if the first line of a file seems to have a separator other than `delimiter`, else ""."""
    with path.open("rb") as file:
        header = file.readline(LONGEST_HEADER).decode(encoding, errors="replace")
    likely = max(SEPARATORS, key=header.count)
    if header.count(likely) <= header.count(delimiter):
        return ""
    return f"its first line seems to be separated by {likely!r}, not by {delimiter!r}: {suggestion(delimiter=likely)}"
