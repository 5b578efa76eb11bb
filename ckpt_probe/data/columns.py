"""Columns of a table by name, with decoded texts and checks for missing values."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_probe.data.delimited import DEFAULT_ENCODING, INDEX, no_text
from ckpt_probe.errors import DataError, listed


@dataclass(frozen=True)
class Columns:
    """A table with its source.

    Args:
        path: The file of the table.
        table: The table of pyarrow.
        encoding: Encoding of columns of bytes.
    """

    path: Path
    table: Any
    encoding: str = DEFAULT_ENCODING

    def named(self, name: str, option: str) -> Any:
        """Return a column by name.

        Args:
            name: Name of the column.
            option: The data argument that selects it, for the message.

        Raises:
            DataError: If there is no such column; the message lists the others.
        """
        if name not in self.table.column_names:
            names = listed(self.table.column_names, 12)
            raise DataError(f"{self.path}: no column {name!r}; there are: {names}; --data-argument {option}=NAME")
        return self.table.column(name)

    def texts(self, name: str, option: str) -> Any:
        """Return a column like `named`, with bytes decoded to text.

        Raises:
            DataError: If there is no such column, or a row cannot be decoded.
        """
        import pyarrow as pa

        column = self.named(name, option)
        if pa.types.is_dictionary(column.type):
            column = pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], column.type.value_type)
        if not any(is_bytes(column.type) for is_bytes in (pa.types.is_binary, pa.types.is_large_binary)):
            return column
        values = column.to_pylist()
        for row, value in enumerate(values):
            try:
                values[row] = None if value is None else value.decode(self.encoding)
            except UnicodeDecodeError as error:
                reason = no_text(value, error)
                raise DataError(f"{self.path}: row {row + 1}: column {name!r}: {reason}") from error
        return pa.chunked_array([values], pa.string())

    @property
    def index(self) -> set[str]:
        """Return the names of columns that are the index of a pandas frame, or have no name."""
        stated: list[Any] = []
        with suppress(ValueError, KeyError, TypeError):
            stated = (self.table.schema.pandas_metadata or {}).get("index_columns", [])
        named = {name for name in stated if isinstance(name, str)}
        return {name for name in self.table.column_names if name in named or INDEX.fullmatch(name)}


def without_gaps(columns: Columns, name: str, column: Any) -> Any:
    """Return a column unchanged.

    Raises:
        DataError: If a value is missing; the message names the first row.
    """
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]) + 1
        raise DataError(f"{columns.path}: row {row}: column {name!r} is empty ({column.null_count} such)")
    return column


def is_text(column: Any) -> bool:
    """Return whether a column holds texts."""
    import pyarrow.types as kinds

    return kinds.is_string(column.type) or kinds.is_large_string(column.type)
