"""`csv:FILE` and `parquet:FILE`: tables of labels with numbers or texts; a directory has one file per split."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.budget import Budget
from ckpt_probe.data.arguments import ModelHints, as_list, suggestion
from ckpt_probe.data.arrays import stratified
from ckpt_probe.data.columns import (
    ENCODING,
    Columns,
    checked_encoding,
    is_text,
    plain_type,
    separator_hint,
    undecodable,
)
from ckpt_probe.data.directories import split_files
from ckpt_probe.data.labels import class_labels, label_column
from ckpt_probe.data.samples import ArraySplit, LabelledData, Split, of_splits
from ckpt_probe.data.text import MAX_LENGTH, TOKENIZER, TextSplit, padding_of, tokenization
from ckpt_probe.errors import DataError, UsageError, last_line, listed
from ckpt_probe.keywords import require_known
from ckpt_probe.plugins import require_extra

LONGEST_LINE = 16 * 2**20
"""Maximum length of a line of a CSV file in bytes."""

MESSAGE = 300
"""Maximum length of a message of pyarrow, which may contain a complete row."""

ROWS = 1024
"""Number of rows of a Parquet file that are read at a time; dictionary encoding can make a file of any size tiny."""

COLUMN = 8
"""Objects of pyarrow for a column."""

COMPRESSED = frozenset({".gz", ".bz2", ".br", ".lz4", ".snappy", ".zst"})
"""Suffixes by which pyarrow recognises a compressed file."""

SUFFIXES = {"csv": (".csv", ".tsv"), "parquet": (".parquet", ".pq")}
CHANCE = ("test_fraction", "split_seed")
DELIMITER = "delimiter"
COMMON = {"label", "inputs", "shape", "text", "text_pair", "split", *CHANCE, TOKENIZER, MAX_LENGTH, ENCODING}
ARGUMENTS = {"csv": COMMON | {DELIMITER}, "parquet": COMMON}


def load_csv(path: str, arguments: Mapping[str, Any], hints: ModelHints, workers: int) -> LabelledData:
    """Load rows of CSV files that begin with a line of names; see `_load`.

    Columns are separated by commas, in .tsv files by tabs, or by the argument `delimiter`.

    Args:
        path: A file, or a directory with a file per split.
        arguments: Arguments of the data.
        hints: The model that will receive the data.
        workers: Unused.

    Raises:
        UsageError: For invalid arguments.
        DataError: If a file cannot be read.
    """
    delimiter = arguments.get(DELIMITER)
    if delimiter is not None and (not isinstance(delimiter, str) or len(delimiter) != 1):
        raise UsageError(f"{DELIMITER}: expected one character, found {delimiter!r}")
    return _load("csv", Path(path), arguments, hints, _read_csv)


def load_parquet(path: str, arguments: Mapping[str, Any], hints: ModelHints, workers: int) -> LabelledData:
    """Load rows of Parquet files, which may have columns of lists of numbers; see `_load` and `load_csv`."""
    return _load("parquet", Path(path), arguments, hints, lambda file, budget, _: read_parquet(file, budget))


def _load(
    kind: str, path: Path, arguments: Mapping[str, Any], hints: ModelHints, read: Callable[..., Any]
) -> LabelledData:
    """Load the rows of tables as samples.

    A file is one split with the file's name, unless `split` or `test_fraction` is set. Arguments of the data:

    - label: the column of labels, by default `label` or `labels`; integers from 0, or texts, which become classes
      sorted by name
    - text, text_pair: columns of texts
    - inputs: columns of numbers, by default all other columns except an index
    - shape: shape of a sample, such as [1, 28, 28]
    - encoding: encoding of texts, by default UTF-8
    - split: column with the name of each row's split
    - test_fraction, split_seed: a random division of one file into "train" and "test"

    Args:
        kind: "csv" or "parquet".
        path: A file, or a directory with a file per split.
        arguments: Arguments of the data.
        hints: The model that will receive the data.
        read: Reads a file into a table of pyarrow, within its budget and by the arguments.
    """
    require_known(kind, arguments, ARGUMENTS[kind])
    encoding = checked_encoding(arguments.get(ENCODING))
    tables: dict[str, Columns] = {}
    for split, (file, *others) in split_files(path, SUFFIXES[kind]).items():
        if others:
            raise DataError(f"{path}: split {split}: in {file.name} and {others[0].name}; name one file")
        budget = Budget(file, file.stat().st_size)
        tables[split] = Columns(file, read(file, budget, arguments), budget, encoding)
    first = next(iter(tables.values()))
    if "split" in arguments:
        tables = _by_column(tables, arguments["split"])
    label = label_column(first.path, first.table.column_names, arguments.get("label"))
    labels, names = class_labels({split: _labels(columns, label) for split, columns in tables.items()})
    if "test_fraction" in arguments or "split_seed" in arguments:
        tables, labels = _by_chance(tables, labels, **{key: arguments[key] for key in CHANCE if key in arguments})
    index = sorted(first.index - {label, arguments.get("split")})
    others = [name for name in first.table.column_names if name not in {label, arguments.get("split"), *index}]
    notes = [f"columns without a name, or of an index, are no inputs: {listed([repr(name) for name in index])}"]
    splits, recorded = _splits(tables, labels, arguments, hints, others)
    data = of_splits(f"{kind}:{path}", splits, {**arguments, **recorded}, names)
    return replace(data, notes=tuple(notes if index else ()), padding=padding_of(splits))


def _read_csv(path: Path, budget: Budget, arguments: Mapping[str, Any]) -> Any:
    csv = require_extra("pyarrow.csv", "frames")
    import pyarrow

    if path.suffix.lower() in COMPRESSED:
        raise DataError(f"{path}: compressed, so that its size in memory is not known; decompress it first")
    delimiter = arguments.get(DELIMITER) or ("\t" if path.suffix.lower() == ".tsv" else ",")
    encoding = checked_encoding(arguments.get(ENCODING))
    texts = [arguments[name] for name in ("text", "text_pair") if isinstance(arguments.get(name), str)]
    try:
        with path.open("rb") as file:
            budget.spend(entries=COLUMN * file.readline(LONGEST_LINE).count(delimiter.encode(encoding)))
        table = csv.read_csv(
            path,
            # With one thread the error message has the number of the row.
            read_options=csv.ReadOptions(use_threads=False, block_size=LONGEST_LINE, encoding=encoding),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(texts, pyarrow.string())),
        )
        names = [name.strip() for name in table.column_names]
        table = table.rename_columns(names)
    except OSError as error:
        raise DataError(f"{path}: cannot be read as CSV: {last_line(error)[:MESSAGE]}") from error
    except (pyarrow.ArrowException, UnicodeError) as error:
        reason = last_line(error)[:MESSAGE]
        if "straddling" in reason:
            reason = f"a row of more than {LONGEST_LINE >> 20} MiB, or a quote that is never closed"
        elif row := undecodable(path, encoding, LONGEST_LINE):
            reason = row
        elif hint := separator_hint(path, delimiter, encoding):
            reason += f"; {hint}"
        raise DataError(f"{path}: cannot be read as CSV: {reason}") from error
    if any(map(pyarrow.types.is_binary, table.schema.types)) and (row := undecodable(path, encoding, LONGEST_LINE)):
        raise DataError(f"{path}: cannot be read as CSV: {row}")
    if len(names) == 1 and (hint := separator_hint(path, delimiter, encoding)):
        raise DataError(f"{path}: only one column, {names[0]!r}; {hint}")
    return table


def read_parquet(path: Path, budget: Budget) -> Any:
    """Read a Parquet file into a table of pyarrow; raise DataError if it is damaged or beyond its budget."""
    parquet = require_extra("pyarrow.parquet", "frames")
    import pyarrow

    try:
        # The sizes in the headers of pages, which Arrow believes, may differ from those in the metadata.
        with parquet.ParquetFile(path) as file, budget.enforced():
            _spend_claims(file.metadata, budget)
            written = file.schema_arrow
            plain = [pyarrow.field(column.name, plain_type(column.type)) for column in written]
            schema = pyarrow.schema(plain, metadata=written.metadata)
            tables = [schema.empty_table()]
            for batch in file.iter_batches(ROWS, use_threads=False):
                tables.append(pyarrow.Table.from_batches([batch], schema=written).cast(schema))
                chunks = (chunk for column in tables[-1].columns for chunk in column.chunks)
                budget.spend(sum(getattr(chunk, "indices", chunk).nbytes for chunk in chunks))
            return pyarrow.concat_tables(tables)
    except (OSError, pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"{path}: no Parquet file, or a damaged one: {last_line(error)[:MESSAGE]}") from error


def _spend_claims(metadata: Any, budget: Budget) -> None:
    """Count the columns of a Parquet file and the pages that it unpacks, as its metadata state them."""
    groups, columns = metadata.num_row_groups, metadata.num_columns
    budget.spend(entries=COLUMN * groups * columns)
    for group in map(metadata.row_group, range(groups)):
        # Values that are repeated take hardly any space in a page; rows become numbers of 8 bytes, of lists of 4.
        budget.spend(max(group.total_byte_size, 0) + 16 * max(group.num_rows, 0) * columns)
        budget.spend(sum(4 * max(group.column(number).num_values, 0) for number in range(columns)))


def _by_column(tables: Mapping[str, Columns], name: Any) -> dict[str, Columns]:
    pc = require_extra("pyarrow.compute", "frames")
    parts: dict[str, Columns] = {}
    for columns in tables.values():
        values = columns.texts(str(name), "split")
        for value in values.unique():
            split = str(value.as_py())
            if split in parts:
                raise DataError(f"split {split}: in more than one file; name one file")
            parts[split] = replace(columns, table=columns.table.filter(pc.equal(values, value)))
    return parts


def _by_chance(
    tables: Mapping[str, Columns], labels: Mapping[str, Tensor], test_fraction: float = 0.25, split_seed: int = 0
) -> tuple[dict[str, Columns], dict[str, Tensor]]:
    if len(tables) > 1:
        raise UsageError(f"test_fraction: there are splits already: {', '.join(tables)}")
    columns, numbers = next(iter(tables.values())), next(iter(labels.values()))
    chosen = dict(zip(("train", "test"), stratified(numbers.numpy(), test_fraction, split_seed), strict=True))
    parts = {split: replace(columns, table=columns.table.take(rows)) for split, rows in chosen.items()}
    return parts, {split: numbers[torch.from_numpy(rows)] for split, rows in chosen.items()}


def _labels(columns: Columns, name: str) -> np.ndarray:
    column = columns.texts(name, "label")
    if not len(column):
        raise DataError(f"{columns.path}: no row")
    if is_text(column):
        # Of fixed width, each label would take as much memory as the longest.
        return np.array(column.to_pylist(), dtype=object)
    values = column.to_numpy()
    if values.dtype.kind == "O":
        raise DataError(f"{columns.path}: column {name!r} has {column.type}; labels are whole numbers or texts")
    return values


def _splits(
    tables: Mapping[str, Columns],
    labels: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    hints: ModelHints,
    others: list[str],
) -> tuple[dict[str, Split], dict[str, Any]]:
    """Return the splits, and the arguments that were chosen automatically."""
    first = next(iter(tables.values()))
    names = [arguments[key] for key in ("text", "text_pair") if key in arguments]
    if not names and "inputs" not in arguments:
        names = [name for name in others if is_text(first.table.column(name))]
        if names and len(others) > 1:
            raise DataError(
                f"{first.path}: column {names[0]!r} has text beside others; choose it by {suggestion(text=names[0])}, "
                f"or columns of numbers by {suggestion(inputs='A,B')}"
            )
    if not names:
        inputs = as_list(arguments.get("inputs")) or others
        return {split: _numbers(columns, labels[split], inputs, arguments) for split, columns in tables.items()}, {}
    tokenize = tokenization(arguments, hints)
    columns_of = {split: [_texts(columns, str(name)) for name in names] for split, columns in tables.items()}
    splits = {split: TextSplit(part[0], labels[split], tokenize, *part[1:]) for split, part in columns_of.items()}
    return dict(splits), {"text": names[0], **tokenize.arguments}


def _texts(columns: Columns, name: str) -> list[str]:
    column = columns.texts(name, "text")
    if not is_text(column):
        raise DataError(f"{columns.path}: column {name!r} has {column.type}, no text")
    return column.to_pylist()


def _numbers(columns: Columns, labels: Tensor, names: list[str], arguments: Mapping[str, Any]) -> ArraySplit:
    """Return a split of columns of numbers, float32: inputs of shape (N, D), of one nested column, or of `shape`."""
    if not names:
        raise DataError(f"{columns.path}: no column beside the labels")
    parts = [_matrix(columns, str(name)) for name in names]
    flat = [part.reshape(len(part), math.prod(part.shape[1:])) for part in parts]
    inputs = parts[0] if len(parts) == 1 else np.concatenate(flat, axis=1)
    wild = np.flatnonzero(~np.isfinite(inputs).all(axis=tuple(range(1, inputs.ndim))))
    if len(wild):
        raise DataError(f"{columns.path}: row {wild[0] + 1}: a number is NaN or infinite, also as float32")
    if "shape" in arguments:
        shape = as_list(arguments["shape"])
        if not all(type(side) is int and side > 0 for side in shape) or math.prod(shape) != math.prod(inputs.shape[1:]):
            raise UsageError(f"shape: {arguments['shape']!r} does not hold {math.prod(inputs.shape[1:])} numbers a row")
        inputs = inputs.reshape(len(inputs), *shape)
    return ArraySplit(inputs, labels)


def _matrix(columns: Columns, name: str) -> np.ndarray:
    """Return a column of numbers, or of nested lists of numbers of one shape, as an array (N, ...), float32."""
    import pyarrow.types as kinds

    pc = require_extra("pyarrow.compute", "frames")
    column = columns.named(name, "inputs")
    described, shape = f"{columns.path}: column {name!r}", [len(column)]
    while any(of(column.type) for of in (kinds.is_large_list, kinds.is_fixed_size_list)):
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(lengths) > 1 or not lengths[0]:
            raise DataError(f"{described}: rows of different lengths, or empty; expected numbers of one shape")
        shape.append(lengths[0])
        column = pc.list_flatten(column)
    if not any(of(column.type) for of in (kinds.is_boolean, kinds.is_integer, kinds.is_floating, kinds.is_decimal)):
        raise DataError(f"{described} has {column.type}, no numbers; choose by {suggestion(inputs='A,B')}")
    with np.errstate(over="ignore"):
        return column.to_numpy(zero_copy_only=False).astype(np.float32).reshape(*shape, *[1] * (len(shape) == 1))
