"""Numbers of the documents of a split or a layer: those that are stored, or those of its rows; and of a reference."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

from ckpt_probe.addresses import is_address, without_secrets
from ckpt_probe.analysis.record import Context
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.dumps import PENULTIMATE, SplitView, open_dump
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.moments.documents import NUMBERS, DocumentNumbers, Documents
from ckpt_probe.moments.registry import DOCUMENTS, REFERENCE

NO_DOCUMENTS = "no document and position of each row is stored (dumps of language models have them from format 4 on)"
NOT_ALL_ROWS = "not all rows of the documents are stored"
NO_REFERENCE = "no dump of a model with random weights (`reference=`)"

ROWS_AT_ONCE = 8192

Read = Callable[[], DocumentNumbers]
"""Computes the numbers of documents from rows."""


def documents_of(view: SplitView, layer: SplitView, settings: Settings, read: Read | None = None) -> Context:
    """Return what the record of a split or a layer takes from its documents and from the reference dump.

    Args:
        view: The split, whose rows have documents.
        layer: The split, or one of its layers.
        settings: Options of the analysis.
        read: Computes the numbers from the rows of `layer`, if it is not to be done here.

    Raises:
        DataError: If rows or stored numbers cannot be read.
    """
    if "documents" not in settings.families:
        return Context()
    numbers = numbers_of(view, layer, settings.memory, read)
    named = settings.only is not None or settings.reference is not None
    if isinstance(numbers, str):
        return Context(unavailable={DOCUMENTS: numbers, REFERENCE: numbers}) if named else Context()
    if settings.reference is None:
        return Context(documents=numbers, unavailable={REFERENCE: NO_REFERENCE} if named else {})
    name = PENULTIMATE if layer is view else layer.name
    reference = _reference(reference_dump(settings.reference), view, name, settings.memory)
    if isinstance(reference, str):
        return Context(documents=numbers, unavailable={REFERENCE: reference})
    return Context(documents=numbers, reference=reference)


def numbers_of(view: SplitView, layer: SplitView, memory: int, read: Read | None = None) -> DocumentNumbers | str:
    """Return the numbers of the documents of a layer of a split, or the reason for their absence.

    Args:
        view: The split.
        layer: The split itself, or one of its layers.
        memory: Largest size of the rows of a document in bytes.
        read: Computes the numbers from the rows.

    Raises:
        DataError: If rows or stored numbers cannot be read.
    """
    stored = layer.read_documents()
    if stored is not None:
        return DocumentNumbers({name: torch.from_numpy(stored[0][name]) for name in NUMBERS}, stored[1])
    if view.positions is None or view.documents is None or layer.features is None:
        return NO_DOCUMENTS
    if view.not_stored or layer.samples != len(view.documents):
        return NOT_ALL_ROWS
    return numbers_of_rows(view, layer, memory) if read is None else read()


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
    if is_address(reference):
        raise UsageError(f"{without_secrets(str(reference))}: the reference dump must be local; download it first")
    if not Path(reference).is_file():
        raise UsageError(
            f"`reference={str(reference)!r}`: expected the dump of a model with random weights, one .h5 file"
        )
    return Path(reference)


def _reference(path: Path, view: SplitView, layer: str, memory: int) -> DocumentNumbers | str:
    """Return the numbers of the documents of a layer of the reference dump, or the reason why it has none."""
    status = path.stat()
    samples, numbers = _reference_numbers(path, (status.st_size, status.st_mtime_ns), view.name, layer, memory)
    if isinstance(numbers, str):
        return f"{path.name}: {numbers}"
    if samples != view.samples:
        return f"{path.name}: {samples} rows, but {view.samples} of this dump"
    return numbers


@lru_cache(maxsize=64)
def _reference_numbers(
    path: Path, _state: tuple[int, int], split: str, layer: str, memory: int
) -> tuple[int, DocumentNumbers | str]:
    """Return the number of rows of the reference dump, and the numbers of its documents, or why they are missing."""
    with open_dump(path) as dump:
        if split not in dump.splits:
            raise DataError(f"{path}: no split {split!r}; there are: {', '.join(dump.splits)}")
        view = dump[split]
        layers = {PENULTIMATE: view, **{each.name: each for each in view.layers if each.name != PENULTIMATE}}
        if layer not in layers:
            return view.samples, f"layer {layer} is not stored"
        return view.samples, numbers_of(view, layers[layer], memory)
