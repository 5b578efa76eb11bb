"""`hf-dataset:DIR`: what `datasets` wrote by `save_to_disk`, one split or several, of images, of texts or of sound."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.data.arguments import require_known
from ckpt_probe.data.audio import EXTRACTOR, RATE, SoundPreparation, Sounds, sound_preparation
from ckpt_probe.data.dataset import LABEL_NAMES, DatasetSplit, Unreadable
from ckpt_probe.data.hints import ModelHints
from ckpt_probe.data.images.folder import TOLERANCE, stacked
from ckpt_probe.data.images.pictures import Decoding, read_picture
from ckpt_probe.data.images.preparation import TRANSFORM, Preparation, image_preparation
from ckpt_probe.data.images.steps import Steps
from ckpt_probe.data.labels import class_labels
from ckpt_probe.data.language.windows import ARGUMENTS as OF_WINDOWS
from ckpt_probe.data.language.windows import MASKED, NEXT, labelled_windows, wanted_labels
from ckpt_probe.data.samples import UNLABELLED, LabelledData, Split, first_samples, sample_shape
from ckpt_probe.data.text import MAX_LENGTH, TOKENIZER, TextSplit, Tokenization, padding_of, tokenization
from ckpt_probe.errors import DataError, last_line, listed
from ckpt_probe.plugins import require_extra

SPOKEN = {"image": "images", "audio": "sound", "text": "texts", "numbers": "lists of numbers"}
COLUMNS = ("label", "image", "text", "text_pair", "audio")
ARGUMENTS = frozenset(
    {*COLUMNS, TOKENIZER, MAX_LENGTH, TRANSFORM, EXTRACTOR, RATE, *Steps.__dataclass_fields__, *OF_WINDOWS}
)


def load(place: str, arguments: Mapping[str, Any], hints: ModelHints, workers: int) -> LabelledData:
    """Images, texts or sound of a data set on disk, its columns found by what they hold.

    For a language model the texts are documents, as `labelled_windows` makes them; their labels are tokens.

    label: the column of labels, else `label` or `labels`, else the only one of class labels, whose names are kept; its
    texts become classes sorted by name. image, audio, or text (and text_pair): the column of inputs, else the only
    one. A split of nothing but labels of -1 is left out, and said. Images are prepared as `image_preparation` says,
    texts as `tokenization`, and sound, which may be a column of lists of numbers, as `sound_preparation` do. Raises
    DataError where there is no such data set, or no such columns.
    """
    require_known("hf-dataset", arguments, ARGUMENTS)
    tables = _opened(Path(place))
    features = next(iter(tables.values())).features
    if wanted_labels(arguments, hints) in (NEXT, MASKED):
        return _of_documents(place, tables, arguments, hints)
    label, labels, names, notes = _labels(place, tables, arguments)
    tables = {split: tables[split] for split in labels}
    kind, columns = _input_columns(place, features, arguments, label)
    preparation = image_preparation(arguments, hints) if kind == "image" else None
    if preparation is not None:
        splits, kept = _of_images(place, tables, labels, columns[0], preparation, workers)
    elif kind == "audio":
        splits, kept = _of_sound(place, tables, labels, columns[0], sound_preparation(arguments, hints), workers)
    else:
        splits, kept = _of_texts(tables, labels, columns, tokenization(arguments, hints))
    inputs, _ = first_samples(next(iter(splits.values())), 1)
    classes = len(names) if names else 1 + max(int(part.max()) for part in labels.values())
    chosen = {key: value for key, value in arguments.items() if key in COLUMNS}
    stated, shape = {**chosen, **kept}, sample_shape(inputs)
    return LabelledData(
        f"hf-dataset:{place}",
        splits,
        classes,
        shape,
        stated,
        names,
        tuple(notes),
        preparation="" if preparation is None else preparation.described(shape),
        padding=padding_of(splits),
    )


def _labels(
    place: str, tables: Mapping[str, Any], arguments: Mapping[str, Any]
) -> tuple[str | None, dict[str, Tensor], tuple[str, ...] | None, list[str]]:
    """The column of labels, those of each split that has some, the names of their classes, and what is to be said.

    Where the argument `label` is None, nobody asks for any, and all are −1.
    """
    if "label" in arguments and arguments["label"] is None:
        none = {split: torch.full((len(table),), UNLABELLED) for split, table in tables.items() if len(table)}
        return None, none, None, []
    features = next(iter(tables.values())).features
    label = _label_column(place, features, arguments.get("label"))
    values, notes = _labelled(place, tables, label)
    labels, names = class_labels(values)
    return label, labels, _class_names(place, tables, label) or names, notes


def _class_names(path: str, tables: Mapping[str, Any], label: str) -> tuple[str, ...] | None:
    """Return the names of a column of class labels, None if it has none.

    Raises:
        DataError: If two splits name their classes differently, so that one number means two classes.
    """
    names = {split: tuple(getattr(table.features[label], "names", None) or ()) for split, table in tables.items()}
    first = next(iter(names))
    other = next((split for split in names if names[split] != names[first]), None)
    if other is not None:
        raise DataError(
            f"{path}: column {label!r} has the classes {listed(names[first])} in split {first}, but "
            f"{listed(names[other])} in split {other}; give both the same names in the same order, or load one split"
        )
    return names[first] or None


def _of_documents(
    place: str, tables: Mapping[str, Any], arguments: Mapping[str, Any], hints: ModelHints
) -> LabelledData:
    features = next(iter(tables.values())).features
    texts_only = {name: feature for name, feature in features.items() if _kind(feature) == "text"}
    columns = _input_columns(place, texts_only, arguments, None)[1] if texts_only else []
    if len(columns) != 1:
        raise DataError(f"{place}: a language model takes one column of texts; there are: {_told(features)}")
    texts = {split: _each(_Texts(table.select_columns(columns), columns[0])) for split, table in tables.items()}
    chosen = {key: value for key, value in arguments.items() if key in COLUMNS}
    return labelled_windows(f"hf-dataset:{place}", texts, arguments, hints, chosen)


def _each(texts: "_Texts") -> Iterator[str]:
    return (texts[number] for number in range(len(texts)))


@dataclass(frozen=True)
class _Images:
    """A map-style dataset of encoded images in a column."""

    table: Any
    column: str
    labels: Tensor
    preparation: Preparation
    decoding: Decoding
    name: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        held = self.table[number][self.column]
        name = f"{self.name}, row {number}"
        if held is None or (held["bytes"] is None and held["path"] is None):
            raise Unreadable(f"{name} (no image)")
        source = Path(held["path"]) if held["bytes"] is None else held["bytes"]
        picture = read_picture(source, name, self.preparation.channels, self.decoding)
        return self.preparation.prepare(picture), int(self.labels[number])


@dataclass(frozen=True)
class _Texts:
    """A column of texts, read from the disk row by row."""

    table: Any
    column: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> str:
        text = self.table[number][self.column]
        if text is None:
            raise DataError(f"row {number}: column {self.column!r} is empty")
        return text


def _of_images(
    place: str, tables: Mapping[str, Any], labels: Mapping[str, Tensor], column: str, how: Preparation, workers: int
) -> tuple[dict[str, Split], dict[str, Any]]:
    datasets = require_extra("datasets", "datasets")
    splits: dict[str, Split] = {}
    for split, table in tables.items():
        # Its own decoding would raise in the middle of a batch, and let any format in.
        encoded = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        feature = table.features[column]
        # datasets neither turns nor converts images that it does not decode.
        decoding = Decoding(upright=True, mode=feature.mode) if feature.decode else Decoding()
        images = _Images(encoded, column, labels[split], how, decoding, f"{place}: {split}")
        splits[split] = DatasetSplit(
            images, labels=labels[split], collate=stacked, workers=workers, tolerance=TOLERANCE
        )
    return splits, how.arguments


def _of_sound(
    place: str,
    tables: Mapping[str, Any],
    labels: Mapping[str, Tensor],
    column: str,
    how: SoundPreparation,
    workers: int,
) -> tuple[dict[str, Split], dict[str, Any]]:
    datasets = require_extra("datasets", "datasets")
    splits: dict[str, Split] = {}
    for split, table in tables.items():
        encoded, feature = table.select_columns([column]), table.features[column]
        if type(feature).__name__ == "Audio":
            encoded = encoded.cast_column(column, datasets.Audio(decode=False))
        sounds = Sounds(encoded, column, labels[split], how, feature, f"{place}: {split}")
        splits[split] = DatasetSplit(
            sounds, labels=labels[split], collate=how.collate, workers=workers, tolerance=TOLERANCE
        )
    return splits, how.arguments


def _of_texts(
    tables: Mapping[str, Any], labels: Mapping[str, Tensor], columns: list[str], how: Tokenization
) -> tuple[dict[str, Split], dict[str, Any]]:
    splits: dict[str, Split] = {}
    for split, table in tables.items():
        texts = [_Texts(table.select_columns([column]), column) for column in columns]
        splits[split] = TextSplit(texts[0], labels[split], how, texts[1] if len(texts) > 1 else None)
    return splits, how.arguments


def _opened(place: Path) -> dict[str, Any]:
    datasets = require_extra("datasets", "datasets")
    if not place.is_dir():
        raise DataError(f"{place}: no such directory")
    try:
        found = datasets.load_from_disk(str(place))
    except FileNotFoundError as error:
        raise DataError(f"{place}: no data set that datasets' save_to_disk wrote ({last_line(error)})") from error
    except Exception as error:
        raise DataError(f"{place}: the data set cannot be read, it may be damaged: {last_line(error)}") from error
    if not isinstance(found, datasets.Dataset):
        return {str(split): table.with_format(None) for split, table in found.items()}
    return {str(found.split or place.resolve().name): found.with_format(None)}


def _label_column(place: str, features: Any, given: Any) -> str:
    there = f"there are: {listed(list(features), 12)}; --data-argument label=NAME"
    if given is not None:
        if given not in features:
            raise DataError(f"{place}: no column {given!r}; {there}")
        return str(given)
    named = [name for name in LABEL_NAMES if name in features]
    found = named or [name for name, feature in features.items() if hasattr(feature, "names")]
    if len(found) != 1:
        raise DataError(f"{place}: which column has the labels? {there}")
    return found[0]


def _labelled(place: str, tables: Mapping[str, Any], label: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """The labels of the splits that have any, and what is said of the others."""
    kept: dict[str, np.ndarray] = {}
    notes = []
    for split, table in tables.items():
        values = _values(place, split, table, label)
        if not len(values):
            notes.append(f"split {split}: has no row, and is left out")
        elif values.dtype.kind == "i" and (values == UNLABELLED).all():
            notes.append(f"split {split}: {len(values)} rows without labels (all are {UNLABELLED}), left out")
        else:
            kept[split] = values
    if not kept:
        raise DataError(f"{place}: no split with labels in column {label!r}; {'; '.join(notes)}")
    return kept, notes


def _values(place: str, split: str, table: Any, label: str) -> np.ndarray:
    values = table[label][:]
    empty = next((row for row, value in enumerate(values) if value is None), None)
    if empty is not None:
        raise DataError(f"{place}: {split}, row {empty}: column {label!r} is empty")
    if values and isinstance(values[0], list | dict):
        raise DataError(f"{place}: column {label!r} holds several values a row, where one label is needed")
    return np.asarray(values)


def _input_columns(place: str, features: Any, given: Mapping[str, Any], label: str | None) -> tuple[str, list[str]]:
    """Whether inputs are images, texts or sound, and in which columns."""
    kinds = {name: _kind(feature) for name, feature in features.items() if name != label}
    for kind, keys in (("image", ("image",)), ("audio", ("audio",)), ("text", ("text", "text_pair"))):
        names = [str(given[key]) for key in keys if key in given]
        also = "numbers" if kind == "audio" else kind
        wrong = [name for name in names if kinds.get(name) not in (kind, also)]
        if wrong:
            raise DataError(f"{place}: no column {wrong[0]!r} of {SPOKEN[kind]}; there are: {_told(features)}")
        if names:
            return kind, names
    for kind in ("image", "audio", "text", "numbers"):
        found = [name for name, other in kinds.items() if other == kind]
        key = "audio" if kind == "numbers" else kind
        if len(found) == 1:
            return key, found
        if found:
            raise DataError(f"{place}: several columns of {SPOKEN[kind]}: {listed(found)}; --data-argument {key}=NAME")
    raise DataError(f"{place}: no column of images, texts or sound; there are: {_told(features)}")


def _kind(feature: Any) -> str | None:
    if type(feature).__name__ in ("Image", "Audio"):
        return type(feature).__name__.lower()
    if getattr(getattr(feature, "feature", None), "dtype", None) in ("float32", "float64"):
        return "numbers"
    return "text" if getattr(feature, "dtype", None) in ("string", "large_string") else None


def _told(features: Any) -> str:
    kinds = {name: f"{type(feature).__name__} {getattr(feature, 'dtype', '')}" for name, feature in features.items()}
    return listed([f"{name} ({kind.strip()})" for name, kind in kinds.items()])
