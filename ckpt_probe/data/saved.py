"""`hf-dataset:DIR`: data sets written by `save_to_disk` of `datasets`, of images, texts or sound."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.data.arguments import ModelHints, suggestion
from ckpt_probe.data.audio import EXTRACTOR, RATE, SoundPreparation, sound_of_row, sound_preparation
from ckpt_probe.data.dataset import DatasetSplit, Unreadable
from ckpt_probe.data.documents import ARGUMENTS as WINDOW_ARGUMENTS
from ckpt_probe.data.documents import MASKED, NEXT, labelled_windows, wanted_labels
from ckpt_probe.data.images.folder import TOLERANCE, stacked
from ckpt_probe.data.images.pictures import Steps, read_picture
from ckpt_probe.data.images.preparation import TRANSFORM, Preparation, image_preparation
from ckpt_probe.data.labels import class_labels, label_column, shared_names
from ckpt_probe.data.samples import UNLABELLED, LabelledData, Split, first_samples, sample_shape
from ckpt_probe.data.saved_files import encoded_source, require_own_files
from ckpt_probe.data.text import MAX_LENGTH, TOKENIZER, TextSplit, padding_of, tokenization
from ckpt_probe.errors import DataError, last_line, listed
from ckpt_probe.keywords import require_known
from ckpt_probe.plugins import require_extra

SPOKEN = {"image": "images", "audio": "sound", "text": "texts", "numbers": "lists of numbers"}
COLUMNS = ("label", "image", "text", "text_pair", "audio")
ARGUMENTS = frozenset(
    {*COLUMNS, TOKENIZER, MAX_LENGTH, TRANSFORM, EXTRACTOR, RATE, *Steps.__dataclass_fields__, *WINDOW_ARGUMENTS}
)


def load(path: str, arguments: Mapping[str, Any], hints: ModelHints, workers: int) -> LabelledData:
    """Load images, texts or sound of a data set on disk.

    Columns are chosen by the arguments `label`, `image`, `audio`, `text` and `text_pair`. By default labels are the
    column `label` or `labels`, else the only one of class labels; inputs are the only column of their kind. Labels
    that are texts become classes sorted by name. Splits whose labels are all −1 are left out, with a note. For a
    language model the texts become windows of tokens, see `labelled_windows`.

    Args:
        path: The directory.
        arguments: The columns, and arguments of `image_preparation`, `tokenization`, `sound_preparation` or
            `labelled_windows`.
        hints: The model that will receive the data.
        workers: Number of reading processes.

    Raises:
        DataError: If there is no such data set, or no such columns.
    """
    require_known("hf-dataset", arguments, ARGUMENTS)
    tables = _opened(Path(path))
    features = next(iter(tables.values())).features
    if wanted_labels(arguments, hints) in (NEXT, MASKED):
        return _of_documents(path, tables, arguments, hints)
    label, labels, names, notes = _labels(path, tables, arguments)
    tables = {split: tables[split] for split in labels}
    kind, columns = _input_columns(path, features, arguments, label)
    preparation = None
    splits: dict[str, Split]
    if kind == "text":
        tokenize = tokenization(arguments, hints)
        texts = {
            split: [_Texts(table.select_columns([name]), name) for name in columns] for split, table in tables.items()
        }
        splits = {split: TextSplit(part[0], labels[split], tokenize, *part[1:]) for split, part in texts.items()}
        recorded = tokenize.arguments
    else:
        prepare = image_preparation if kind == "image" else sound_preparation
        preparation = prepare(arguments, hints)
        splits, recorded = _of_encoded(path, tables, labels, columns[0], preparation, workers)
    inputs, _ = first_samples(next(iter(splits.values())), 1)
    classes = len(names) if names else 1 + max(int(part.max()) for part in labels.values())
    chosen = {key: value for key, value in arguments.items() if key in COLUMNS}
    arguments_used, shape = {**chosen, **recorded}, sample_shape(inputs)
    return LabelledData(
        f"hf-dataset:{path}",
        splits,
        classes,
        shape,
        arguments_used,
        names,
        tuple(notes),
        preparation=preparation.described(shape) if isinstance(preparation, Preparation) else "",
        padding=padding_of(splits),
    )


def _labels(
    path: str, tables: Mapping[str, Any], arguments: Mapping[str, Any]
) -> tuple[str | None, dict[str, Tensor], tuple[str, ...] | None, list[str]]:
    """Read the labels of a data set.

    With the argument `label` set to None, all labels are −1.

    Returns:
        The name of the column, the labels of each split that has some, the names of the classes, and notes.
    """
    if "label" in arguments and arguments["label"] is None:
        none = {split: torch.full((len(table),), UNLABELLED) for split, table in tables.items() if len(table)}
        return None, none, None, []
    features = next(iter(tables.values())).features
    typed = [name for name, feature in features.items() if hasattr(feature, "names")]
    label = label_column(path, features, arguments.get("label"), typed)
    labelled: dict[str, np.ndarray] = {}
    notes = []
    for split, table in tables.items():
        values = _values(path, split, table, label)
        if not len(values):
            notes.append(f"split {split}: has no row, and is left out")
        elif values.dtype.kind == "i" and (values == UNLABELLED).all():
            notes.append(f"split {split}: {len(values)} rows without labels (all are {UNLABELLED}), left out")
        else:
            labelled[split] = values
    if not labelled:
        raise DataError(f"{path}: no split with labels in column {label!r}; {'; '.join(notes)}")
    labels, names = class_labels(labelled)
    stated = {split: tuple(getattr(table.features[label], "names", None) or ()) for split, table in tables.items()}
    return label, labels, shared_names(stated) or names, notes


def _of_documents(
    path: str, tables: Mapping[str, Any], arguments: Mapping[str, Any], hints: ModelHints
) -> LabelledData:
    features = next(iter(tables.values())).features
    texts_only = {name: feature for name, feature in features.items() if _kind(feature) == "text"}
    columns = _input_columns(path, texts_only, arguments, None)[1] if texts_only else []
    if len(columns) != 1:
        raise DataError(f"{path}: a language model takes one column of texts; there are: {_listing(features)}")
    texts = {split: _Texts(table.select_columns(columns), columns[0]) for split, table in tables.items()}
    chosen = {key: value for key, value in arguments.items() if key in COLUMNS}
    return labelled_windows(f"hf-dataset:{path}", texts, arguments, hints, chosen)


@dataclass(frozen=True)
class _Rows:
    """A map-style dataset of the images or sounds in a column.

    Args:
        table: The table of `datasets`.
        column: Name of the column.
        labels: Label of each row, shape (N,).
        preparation: Preparation of images or sounds.
        feature: Type of the column.
        directory: Directory of the data set.
        name: Name of the table in messages.
    """

    table: Any
    column: str
    labels: Tensor
    preparation: Preparation | SoundPreparation
    feature: Any
    directory: Path
    name: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        value, name = self.table[number][self.column], f"{self.name}, row {number}"
        read: Any = _image_of_row if isinstance(self.preparation, Preparation) else sound_of_row
        return read(value, self.feature, self.directory, name, self.preparation), int(self.labels[number])


def _image_of_row(value: Any, feature: Any, directory: Path, name: str, preparation: Any) -> Tensor:
    """Return the prepared image, shape (C, H, W), of a row; see `sound_of_row`."""
    source = encoded_source(value, directory, name)
    if source is None:
        raise Unreadable(f"{name} (no image)")
    # `datasets` rotates and converts only images that it decodes.
    mode = feature.mode if feature.decode else None
    return preparation.prepare(read_picture(source, name, preparation.channels, upright=feature.decode, mode=mode))


@dataclass(frozen=True)
class _Texts(Sequence[str]):
    """A column of texts, read from disk row by row."""

    table: Any
    column: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> str:
        text = self.table[number][self.column]
        if text is None:
            raise DataError(f"row {number}: column {self.column!r} is empty")
        return text


def _of_encoded(
    path: str,
    tables: Mapping[str, Any],
    labels: Mapping[str, Tensor],
    column: str,
    preparation: Preparation | SoundPreparation,
    workers: int,
) -> tuple[dict[str, Split], dict[str, Any]]:
    """Return the splits of a column of images or sounds, and the arguments that were chosen automatically."""
    splits: dict[str, Split] = {}
    for split, table in tables.items():
        encoded, feature = table.select_columns([column]), table.features[column]
        if _kind(feature) in ("image", "audio"):
            # The decoding of `datasets` raises in the middle of a batch, and accepts any format.
            encoded = encoded.cast_column(column, type(feature)(decode=False))
        rows = _Rows(encoded, column, labels[split], preparation, feature, Path(path), f"{path}: {split}")
        collate = stacked if isinstance(preparation, Preparation) else preparation.collate
        splits[split] = DatasetSplit(rows, labels=labels[split], collate=collate, workers=workers, tolerance=TOLERANCE)
    return splits, preparation.arguments


def _opened(path: Path) -> dict[str, Any]:
    datasets = require_extra("datasets", "datasets")
    if not path.is_dir():
        raise DataError(f"{path}: no such directory")
    require_own_files(path)
    try:
        dataset = datasets.load_from_disk(str(path))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no data set that datasets' save_to_disk wrote ({last_line(error)})") from error
    except Exception as error:
        raise DataError(f"{path}: the data set cannot be read, it may be damaged: {last_line(error)}") from error
    if not isinstance(dataset, datasets.Dataset):
        return {str(split): table.with_format(None) for split, table in dataset.items()}
    return {str(dataset.split or path.resolve().name): dataset.with_format(None)}


def _values(path: str, split: str, table: Any, label: str) -> np.ndarray:
    values = table[label][:]
    empty = next((row for row, value in enumerate(values) if value is None), None)
    if empty is not None:
        raise DataError(f"{path}: {split}, row {empty}: column {label!r} is empty")
    if values and isinstance(values[0], list | dict):
        raise DataError(f"{path}: column {label!r} holds several values a row, where one label is needed")
    return np.asarray(values, dtype=object if values and isinstance(values[0], str) else None)


def _input_columns(path: str, features: Any, arguments: Mapping[str, Any], label: str | None) -> tuple[str, list[str]]:
    """Return the kind of the inputs, "image", "audio" or "text", and their columns."""
    kinds = {name: _kind(feature) for name, feature in features.items() if name != label}
    for kind, keys in (("image", ("image",)), ("audio", ("audio",)), ("text", ("text", "text_pair"))):
        names = [str(arguments[key]) for key in keys if key in arguments]
        also = "numbers" if kind == "audio" else kind
        wrong = [name for name in names if kinds.get(name) not in (kind, also)]
        if wrong:
            raise DataError(f"{path}: no column {wrong[0]!r} of {SPOKEN[kind]}; there are: {_listing(features)}")
        if names:
            return kind, names
    for kind in ("image", "audio", "text", "numbers"):
        candidates = [name for name, other in kinds.items() if other == kind]
        key = "audio" if kind == "numbers" else kind
        if len(candidates) == 1:
            return key, candidates
        if candidates:
            message = f"{path}: several columns of {SPOKEN[kind]}: {listed(candidates)}"
            raise DataError(f"{message}; choose one by {suggestion(**{key: 'NAME'})}")
    raise DataError(f"{path}: no column of images, texts or sound; there are: {_listing(features)}")


def _kind(feature: Any) -> str | None:
    if type(feature).__name__ in ("Image", "Audio"):
        return type(feature).__name__.lower()
    if getattr(getattr(feature, "feature", None), "dtype", None) in ("float32", "float64"):
        return "numbers"
    return "text" if getattr(feature, "dtype", None) in ("string", "large_string") else None


def _listing(features: Any) -> str:
    """Return the names and types of columns for a message."""
    kinds = {name: f"{type(feature).__name__} {getattr(feature, 'dtype', '')}" for name, feature in features.items()}
    return listed([f"{name} ({kind.strip()})" for name, kind in kinds.items()])
