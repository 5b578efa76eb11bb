"""Inputs of the record of a split from elsewhere than its rows: documents, the training split, and other dumps."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.addresses import is_address, without_secrets
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.dumps import PENULTIMATE, Dump, SplitView, open_dump
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.metrics.rows import Array
from ckpt_probe.moments import Moments
from ckpt_probe.moments.documents import NUMBERS, DocumentNumbers, Documents
from ckpt_probe.moments.registry import DOCUMENTS, REFERENCE

TRAIN = "train"
"""Name of the training split."""

BLOCK_BYTES = 2**20, 16 * 2**20
"""Least and most bytes of a block of rows as float64; between them, a block takes a sixteenth of the memory budget."""

ROWS_AT_ONCE = 8192

NO_DOCUMENTS = "no document and position of each row is stored (dumps of language models have them from format 4 on)"
NOT_ALL_ROWS = "not all rows of the documents are stored"
NO_REFERENCE = "no dump of a model with random weights (`reference=`)"

Read = Callable[[], DocumentNumbers]
"""Computes the numbers of documents from rows."""


@dataclass(frozen=True)
class Context:
    """Inputs of the record of a split from elsewhere than its rows and the classifier.

    Attributes:
        outside_mean: Mean feature of data of other classes, shape (D,), or None.
        training: Whether the split is the training split.
        train_means: Class means of the training split, shape (C, D), NaN for absent classes; None without such a split.
        documents: Numbers of each document, or None if rows have no documents.
        reference: Numbers of each document of the reference dump, or None.
        unavailable: Reason for each requirement of metrics that the split and the settings name, but that is not
            fulfilled.
    """

    outside_mean: Tensor | None = None
    training: bool = False
    train_means: Tensor | None = None
    documents: DocumentNumbers | None = None
    reference: DocumentNumbers | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict)


def layers_of(view: SplitView) -> dict[str, SplitView]:
    """Return the split itself, as its penultimate layer, and its other layers in execution order, by name."""
    return {PENULTIMATE: view, **{layer.name: layer for layer in view.layers if layer.name != PENULTIMATE}}


def rows_at_once(view: SplitView, settings: Settings) -> int:
    """Return the number of rows of a block, which depends on their width and on the memory budget."""
    size = sorted((*BLOCK_BYTES, settings.memory // 16))[1]
    return max(1, size // (8 * view.dimension))


def fill_moments(moments: Moments, view: SplitView, at_once: int, *, labelled: bool = True) -> dict[str, Any]:
    """Fill empty moments with those that are stored for a split or a layer, or else with its rows.

    Args:
        moments: Receives the moments.
        view: The split or the layer.
        at_once: Largest number of rows that are read at a time.
        labelled: Whether to use the labels of rows; otherwise all rows are of one class.

    Returns:
        Numbers of accuracy and loss that are stored beside the moments; none for rows.

    Raises:
        DataError: If neither is stored, or a row is invalid.
    """
    if view.features is None:
        stored = view.read_moments()
        if stored is None:
            raise DataError("neither features nor moments are stored; extract again")
        moments.load_state_dict(stored[0])
        return stored[1]
    blocks = view.blocks(at_once, scores=False)
    for features, labels, _ in blocks if labelled else one_class(blocks):
        moments.update(features, labels)
    return {}


def one_class(blocks: Iterable[tuple[Any, Any, Any]]) -> Iterator[tuple[Array, Array, None]]:
    """Yield blocks without scores, all rows in one class."""
    for features, _, _ in blocks:
        yield features, torch.zeros(len(features), dtype=torch.int64), None


def means_of_training(dump: Dump, layer: str, settings: Settings) -> Tensor | None:
    """Return the class means (C, D) of a layer of the training split, NaN for absent classes; None without them."""
    view = layers_of(dump[TRAIN]).get(layer) if TRAIN in dump.splits and dump[TRAIN].labelled else None
    if view is None or not view.samples:
        return None
    moments = Moments(None if dump.weights is None else len(dump.weights), only=["nc2"])
    fill_moments(moments, view, rows_at_once(view, settings))
    return moments.means_of_classes(settings.min_samples).cpu()


def outside_dump(dump: Dump, outside: Path | str) -> Path:
    """Return the dump of data of other classes that belongs to a dump.

    Args:
        dump: The dump.
        outside: A file, or a directory with a file of the same name.

    Raises:
        DataError: If the directory has no such file.
        UsageError: If `outside` is an address.
    """
    _require_local(outside, "dumps of other data must be local; download them first")
    file = Path(outside) if Path(outside).is_file() else Path(outside) / dump.path.name
    if not file.is_file():
        raise DataError(f"{file}: no dump of other data for {dump.path}: extract the same checkpoints with both data")
    return file


def mean_of_outside(dump: Dump, view: SplitView, outside: Path | str) -> Tensor:
    """Return the mean feature (D,) of the split of the same name in a dump of other data, or of its only split.

    Raises:
        DataError: As `outside_dump`, and if that dump has no such split, or another number of features.
    """
    path = outside_dump(dump, outside)
    with open_dump(path) as other:
        if view.name not in other.splits and len(other.splits) > 1:
            raise DataError(f"{path}: no split {view.name}, and several others: {', '.join(other.splits)}")
        split = other[view.name if view.name in other.splits else other.splits[0]]
        if split.dimension != view.dimension:
            raise DataError(f"{path}: {split.dimension} features, where the dump itself has {view.dimension}")
        moments = Moments(None, only=["nc2"])
        fill_moments(moments, split, ROWS_AT_ONCE, labelled=False)
        return moments.mean


def documents_of(view: SplitView, layer: str, settings: Settings, read: Read | None = None) -> Context:
    """Return what the record of a split or a layer takes from its documents and from the reference dump.

    Args:
        view: The split, whose rows have documents.
        layer: Name of one of its layers.
        settings: Options of the analysis.
        read: Computes the numbers from the rows of the layer, if it is not to be done here.

    Raises:
        DataError: If rows or stored numbers cannot be read.
    """
    if "documents" not in settings.families:
        return Context()
    numbers = _numbers_of(view, layer, settings.memory, read)
    named = settings.only is not None or settings.reference is not None
    if isinstance(numbers, str):
        return Context(unavailable={DOCUMENTS: numbers, REFERENCE: numbers}) if named else Context()
    if settings.reference is None:
        return Context(documents=numbers, unavailable={REFERENCE: NO_REFERENCE} if named else {})
    path = reference_dump(settings.reference)
    status = path.stat()
    samples, reference = _reference(path, (status.st_size, status.st_mtime_ns), view.name, layer, settings.memory)
    if not isinstance(reference, str) and samples != view.samples:
        reference = f"{samples} rows, but {view.samples} of this dump"
    if isinstance(reference, str):
        return Context(documents=numbers, unavailable={REFERENCE: f"{path.name}: {reference}"})
    return Context(documents=numbers, reference=reference)


def numbers_of_rows(
    view: SplitView, layer: SplitView, memory: int, start: int = 0, stop: int | None = None, at_once: int = ROWS_AT_ONCE
) -> DocumentNumbers:
    """Compute the numbers of documents from the rows `start` … `stop` of a layer, which begin and end with a document.

    Raises:
        DataError: If the rows of a document do not follow one another, or cannot be read.
    """
    documents, first = Documents(memory), start
    for features, _, _ in layer.blocks(at_once, start, stop, scores=False):
        part = slice(first, first + len(features))
        documents.update(features, view.read(view.documents, part), view.read(view.positions, part))
        first = part.stop
    return documents.finish()


def reference_dump(reference: Path | str) -> Path:
    """Return the path of the reference dump; raise UsageError if it is not a local file."""
    _require_local(reference, "the reference dump must be local; download it first")
    if not Path(reference).is_file():
        raise UsageError(
            f"`reference={str(reference)!r}`: expected the dump of a model with random weights, one .h5 file"
        )
    return Path(reference)


def _numbers_of(view: SplitView, name: str, memory: int, read: Read | None = None) -> DocumentNumbers | str:
    """Return the numbers of the documents of a layer of a split, or the reason for their absence."""
    layer = layers_of(view).get(name)
    if layer is None:
        return f"layer {name} is not stored"
    stored = layer.read_documents()
    if stored is not None:
        return DocumentNumbers({name: torch.from_numpy(stored[0][name]) for name in NUMBERS}, stored[1])
    if view.positions is None or view.documents is None or layer.features is None:
        return NO_DOCUMENTS
    if view.not_stored or layer.samples != len(view.documents):
        return NOT_ALL_ROWS
    return numbers_of_rows(view, layer, memory) if read is None else read()


@lru_cache(maxsize=64)
def _reference(
    path: Path, _state: tuple[int, int], split: str, layer: str, memory: int
) -> tuple[int, DocumentNumbers | str]:
    """Return the number of rows of the reference dump, and the numbers of its documents, or why they are missing."""
    with open_dump(path) as dump:
        return dump[split].samples, _numbers_of(dump[split], layer, memory)


def _require_local(path: Path | str, requirement: str) -> None:
    if is_address(path):
        raise UsageError(f"{without_secrets(str(path))}: {requirement}")
