"""Formats of records: JSON Lines, CSV, a pandas data frame, Parquet, and event files of TensorBoard."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.analysis import Comparison
from ckpt_probe.errors import DataError, UsageError, in_cell, in_json, in_utf8, listed
from ckpt_probe.files import refuse_existing, replacing, write_text
from ckpt_probe.keywords import as_sequence
from ckpt_probe.plugins import require_extra

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Record = Mapping[str, Any]

TEXT = frozenset({"checkpoint", "split", "route", "route_reason", "missing", "note"})
"""Names whose column is text even if no record has a value."""

EXTRA = "frames"

OTHER_FORMATS = frozenset({".bin", ".ckpt", ".h5", ".hdf5", ".npz", ".pt", ".pth", ".safetensors", ".xlsx"})
"""Suffixes of files that records are not; a directory with a file of that name would be misread."""


def to_json_line(record: Record) -> str:
    """Return a record as a line of JSON, a missing value as null; raise DataError for NaN and infinity."""
    try:
        return in_json(json.dumps(record, allow_nan=False, ensure_ascii=False))
    except ValueError as error:
        values = [f"{name} is {value}" for name, value in record.items() if str(value) in {"nan", "inf", "-inf"}]
        raise DataError(f"{listed(values)}, which JSON lacks; write a file of another format, such as .csv") from error


def to_csv(records: Sequence[Record]) -> str:
    """Return records as CSV with a header; columns are in order of appearance, missing values are empty."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([in_cell(name) for name in columns])
    rows = ([record.get(name) for name in columns] for record in records)
    writer.writerows([in_cell(value) if isinstance(value, str) else value for value in row] for row in rows)
    return text.getvalue()


def to_dataframe(records: Iterable[Record | Comparison]) -> "DataFrame":
    """Convert records, or the comparisons of `compare`, to a tidy data frame.

    Args:
        records: Mappings from names to values, or comparisons.

    Returns:
        A frame with one row per record and one column per name, in the order of the first record.
        Numbers are float64, with NaN for a missing value; integers are int64, or Int64 if a value is missing; text is
        the string type of pandas.

    Raises:
        UsageError: If pandas is not installed.
        DataError: If a column has values of different kinds, or a value is not a number, text, true or false.
    """
    require_extra("pandas", EXTRA)
    from pandas import DataFrame

    rows = [asdict(record) if isinstance(record, Comparison) else record for record in as_sequence(records) or ()]
    for position, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(
                f"record {position} is a {type(row).__name__}; read the records of a file by `read_records`"
            )
    names = dict.fromkeys(name for record in rows for name in record)
    return DataFrame({in_utf8(name): _column(name, [record.get(name) for record in rows]) for name in names})


def write_records(records: Sequence[Record], path: Path, *, overwrite: bool = False) -> None:
    """Write records into a file in the format that its suffix names: Parquet, CSV, or JSON Lines for any other."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        write_parquet(records, path, overwrite=overwrite)
        return
    text = to_csv(records) if suffix == ".csv" else "".join(to_json_line(record) + "\n" for record in records)
    write_text(path, text, overwrite=overwrite)


def write_parquet(records: Iterable[Record], path: Path | str, *, overwrite: bool = False) -> int:
    """Write records into a Parquet file atomically and return their number; raises the errors of `to_dataframe`."""
    require_writable(Path(path), overwrite=overwrite)
    frame = to_dataframe(records)
    with replacing(Path(path), overwrite=overwrite) as temporary:
        frame.to_parquet(temporary, engine="pyarrow", index=False)
    return len(frame)


def require_writable(path: Path, *, overwrite: bool) -> None:
    """Raise UsageError if the file exists, has the name of another format, or the libraries of its own are missing.

    Call this before computing.
    """
    if path.suffix.lower() in OTHER_FORMATS:
        raise UsageError(f"{path}: records are no {path.suffix}; name a file that ends in .csv, .parquet or .jsonl")
    refuse_existing(path, overwrite=overwrite)
    for module in ("pandas", "pyarrow") if path.suffix.lower() == ".parquet" else ():
        require_extra(module, EXTRA)


def _column(name: str, values: Sequence[Any]) -> "Series":
    import pandas as pd

    kinds = {_kind(value, f"record {number}: {name}") for number, value in enumerate(values) if value is not None}
    missing = any(value is None for value in values)
    try:
        if kinds <= {"number", "whole number"} and ("number" in kinds or not kinds) and name not in TEXT:
            return pd.Series([float("nan") if value is None else float(value) for value in values], dtype="float64")
        if kinds == {"whole number"}:
            return pd.Series(values, dtype="Int64" if missing else "int64")
    except OverflowError as error:
        raise DataError(f"{name}: a whole number of more than 64 bits, which a column does not hold") from error
    if len(kinds) > 1:
        raise DataError(f"{name}: some records hold a {', some a '.join(sorted(kinds))}, which make no column")
    if kinds == {"truth value"}:
        return pd.Series(values, dtype="boolean")
    return pd.Series([None if value is None else in_utf8(value) for value in values], dtype="string")


def _kind(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "truth value"
    if isinstance(value, Integral):
        return "whole number"
    if isinstance(value, Real):
        return "number"
    if isinstance(value, str):
        return "text"
    raise DataError(f"{where} is a {type(value).__name__}; a record maps names to numbers, text, true or false")
