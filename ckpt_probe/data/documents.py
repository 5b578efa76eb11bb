"""Documents of files as windows of tokens for language models, with a label for each token."""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.data.arguments import ModelHints, suggestion
from ckpt_probe.data.columns import ENCODING, checked_encoding
from ckpt_probe.data.directories import split_files
from ckpt_probe.data.samples import DOCUMENTS, LEFT_OUT, LENGTHS, UNLABELLED, LabelledBatch, LabelledData, Split
from ckpt_probe.data.text import TOKENIZER, Vocabulary, vocabulary
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.keywords import require_known, whole_argument

DOCUMENT, FIELD = "document", "text"
"""Data arguments: the unit that is a document in a .txt file, and the JSON field with the text."""

CUT: dict[str, Callable[[str], list[str]]] = {
    "file": lambda text: [text],
    "block": lambda text: ["\n".join(lines) for is_text, lines in groupby(text.split("\n"), _is_text) if is_text],
    "line": lambda text: list(filter(_is_text, text.split("\n"))),
}
"""Functions that split the text of a .txt file into documents, by the argument `document`.

`str.splitlines` would end lines at U+2028, form feeds and others that occur inside texts too.
"""

SUFFIXES = (".txt", ".jsonl")

CONTEXT, STRIDE, LABELS, FRACTION, SEED = "context", "stride", "labels", "masked_fraction", "masked_seed"
"""Data arguments: tokens per window, tokens between the starts of windows, kind of labels, and choice of masks."""

ARGUMENTS = (TOKENIZER, CONTEXT, STRIDE, LABELS, FRACTION, SEED)
USUAL_CONTEXT = 512
DOCUMENTS_PER_CALL = 1000
"""Number of documents passed to a tokenizer at a time."""

NEXT, MASKED, NONE = "next", "masked", "none"
LABELS_BY_CLASS = {"ForCausalLM": NEXT, "LMHeadModel": NEXT, "ForMaskedLM": MASKED}
LABELS_BY_TASK = {"text-generation": NEXT, "fill-mask": MASKED}
"""Kind of labels by the ending of a transformers class name, and by task."""


def load(path: str, arguments: Mapping[str, Any], hints: ModelHints, workers: int) -> LabelledData:
    """Load documents in files as windows of tokens; see `labelled_windows`.

    A file is a split with the file's name. In a directory every file and every folder is a split; a folder's documents
    are in its files at any depth, sorted by path.

    Args:
        path: A .txt or .jsonl file, or a directory.
        arguments: `document`, the unit of a .txt file ("file" by default, "block" between blank lines, or "line");
            `text`, the field of a .jsonl line with its text; `encoding`, by default UTF-8; and those of
            `labelled_windows`.
        hints: The model that will receive the data.
        workers: Unused.

    Raises:
        UsageError: For invalid arguments.
        DataError: If there is no such file, or a line has no text.
    """
    require_known("text", arguments, {DOCUMENT, FIELD, ENCODING, *ARGUMENTS})
    encoding = checked_encoding(arguments.get(ENCODING))
    cut, field = arguments.get(DOCUMENT, "file"), str(arguments.get(FIELD, FIELD))
    if cut not in CUT:
        raise UsageError(f"{DOCUMENT}: expected one of {', '.join(CUT)}, found {cut!r}")
    files_of = split_files(Path(path), SUFFIXES, folders=True)
    if Path(path).is_file() and Path(path).suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: expected a file whose name ends in {' or '.join(SUFFIXES)}")
    texts = {name: [*_documents(files, cut, field, encoding)] for name, files in files_of.items()}
    recorded = {key: arguments[key] for key in (DOCUMENT, FIELD, ENCODING) if key in arguments}
    return labelled_windows(f"text:{path}", texts, arguments, hints, recorded)


def wanted_labels(arguments: Mapping[str, Any], hints: ModelHints) -> str:
    """Return the kind of labels of tokens: the argument `labels`, else by the model's task or class.

    Args:
        arguments: Arguments of the data.
        hints: The model that will receive the data.

    Returns:
        "next" for causal language models, "masked" for masked language models, "none" for others.

    Raises:
        UsageError: If the argument has another value.
    """
    requested = arguments.get(LABELS)
    if requested is not None:
        if requested not in (NEXT, MASKED, NONE):
            raise UsageError(f"{LABELS}: expected {NEXT}, {MASKED} or {NONE}, found {requested!r}")
        return requested
    task = hints.arguments.get("task")
    if task is not None:
        return LABELS_BY_TASK.get(str(task), NONE)
    names = [str(name) for name in hints.configuration().get("architectures") or ()]
    return next((kind for end, kind in LABELS_BY_CLASS.items() if any(name.endswith(end) for name in names)), NONE)


def labelled_windows(
    name: str,
    texts: Mapping[str, Iterable[str]],
    arguments: Mapping[str, Any],
    hints: ModelHints,
    recorded: Mapping[str, Any],
) -> LabelledData:
    """Divide documents into windows of at most `context` tokens, starting every `stride` tokens.

    A window never spans two documents. A token in several windows has a label only in the first. Classes are the
    tokenizer's tokens.

    Args:
        name: Name of the data.
        texts: Documents of each split.
        arguments: Arguments of the data: `tokenizer`, `context`, `stride`, `labels`, `masked_fraction`, `masked_seed`.
        hints: The model that will receive the data.
        recorded: Further data arguments for the record.

    Raises:
        UsageError: For a context longer than the model's, or a stride longer than the context.
        DataError: For the tokenizer of another model, or a split without a label.
    """
    kind = wanted_labels(arguments, hints)
    vocab = vocabulary(arguments, hints)
    context = _context(arguments.get(CONTEXT), vocab)
    stride = whole_argument(STRIDE, arguments.get(STRIDE, context), 1, context)
    arguments_used: dict[str, Any] = {TOKENIZER: str(vocab.directory), CONTEXT: context, STRIDE: stride, LABELS: kind}
    fraction, seed = float(arguments.get(FRACTION, 0.15)), whole_argument(SEED, arguments.get(SEED, 0), 0, 2**63)
    if kind == MASKED:
        if not 0 < fraction <= 1:
            raise UsageError(f"{FRACTION}: expected a number above 0 and at most 1, found {fraction}")
        if vocab.mask is None:
            raise UsageError(f"{vocab.directory}: its tokenizer has no token that masks; use {LABELS}={NEXT} or {NONE}")
        arguments_used |= {FRACTION: fraction, SEED: seed}
    splits: dict[str, Split] = {}
    for split, documents in texts.items():
        ids, notes = _tokens(vocab, documents, kind)
        if not ids:
            raise DataError(f"split {split}: no text with a token to predict; {'; '.join(notes) or 'it is empty'}")
        tokens, masked = torch.cat(ids).to(torch.int32), None
        if kind == MASKED:
            drawn = torch.rand(len(tokens), generator=torch.Generator().manual_seed(seed)) < fraction
            masked = drawn & ~torch.isin(tokens, torch.tensor(sorted(vocab.special), dtype=torch.int32))
        windows = _windows([len(part) for part in ids], context, stride, short=int(kind == NEXT))
        splits[split] = of_windows = WindowSplit(tokens, kind, vocab, masked, windows, notes)
        if kind != NONE and not of_windows.rows_of(len(windows)):
            raise DataError(f"split {split}: no token has a label; raise {FRACTION}, or use more text")
    classes, names = (0, None) if kind == NONE else (vocab.size, vocab.names())
    return LabelledData(name, splits, classes, (), {**recorded, **arguments_used}, names)


@dataclass(eq=False)
class WindowSplit:
    """Windows of tokens in order, padded on the right to the longest of each batch.

    Args:
        ids: Ids of the tokens of all documents, document after document, shape (total,).
        kind: Kind of labels.
        vocab: The tokenizer.
        masked: Whether each token is masked, shape (total,): at random, and never a special one. None without masks.
        windows: Start, stop, first labelled token and end of the document of each window, shape (N, 4).
        notes: Notes on documents that were left out.
    """

    ids: Tensor
    kind: str
    vocab: Vocabulary
    masked: Tensor | None
    windows: Tensor
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Each document ends at another token.
        self._documents = torch.unique_consecutive(self.windows[:, 3], return_inverse=True)[1]
        self._begins = torch.cat([torch.zeros(1, dtype=torch.int64), self.windows[:, 3].unique()])

    @property
    def labels(self) -> Tensor:
        """Return labels of all windows, int64, shape (N, longest), −100 for positions without label.

        Without labels, all are −1, shape (N,).
        """
        return self.batch(slice(None))[1]

    def rows_of(self, count: int) -> int:
        """Return the number of labelled positions in the first `count` windows."""
        starts, stops, fresh, ends = self.windows[:count].unbind(1)
        if self.kind == NONE:
            return int((stops - starts).sum())
        if self.kind == NEXT:
            return int((torch.minimum(stops, ends - 1) - fresh).clamp(min=0).sum())
        assert self.masked is not None
        before = torch.cat([torch.zeros(1, dtype=torch.int64), self.masked.cumsum(0)])
        return int((before[stops] - before[fresh]).sum())

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, indices: Tensor | slice) -> LabelledBatch:
        """Return input_ids and attention_mask, each (n, T), and labels (n, T), else (n,) of −1.

        Lengths, and the documents of the windows with their first positions, are among the inputs.
        """
        starts, stops, fresh, ends = (part[:, None] for part in self.windows[indices].unbind(1))
        positions = starts + torch.arange(int((stops - starts).max()))
        inside = positions < stops
        ids = self.ids[positions.clamp(max=len(self.ids) - 1)].to(torch.int64)
        labels, labelled = torch.full((len(ids),), UNLABELLED), None
        if self.kind == NEXT:
            labelled = inside & (positions >= fresh) & (positions < ends - 1)
            labels = self.ids[(positions + 1).clamp(max=len(self.ids) - 1)].to(torch.int64)
        elif self.masked is not None and self.vocab.mask is not None:
            hidden = inside & self.masked[positions.clamp(max=len(self.ids) - 1)]
            labelled, labels = hidden & (positions >= fresh), ids
            ids = ids.masked_fill(hidden, self.vocab.mask)
        ids = ids.masked_fill(~inside, self.vocab.padding)
        labels = labels if labelled is None else labels.masked_fill(~labelled, LEFT_OUT)
        documents = self._documents[indices]
        places = torch.stack([documents, starts[:, 0] - self._begins[documents]], dim=1)
        inputs = {"input_ids": ids, "attention_mask": inside.to(torch.int64), LENGTHS: (stops - starts)[:, 0]}
        return {**inputs, DOCUMENTS: places}, labels


def _documents(files: list[Path], cut: str, field: str, encoding: str) -> Iterator[str]:
    for file in files:
        if file.suffix.lower() == ".jsonl":
            yield from _of_lines(file, field, encoding)
            continue
        try:
            yield from CUT[cut](file.read_text(encoding=_after_mark(encoding)))
        except (OSError, UnicodeError) as error:
            hint = f"name the encoding by {suggestion(encoding='cp1252')}"
            raise DataError(f"{file}: cannot be read as {encoding.upper()} text ({error}); {hint}") from error


def _of_lines(file: Path, field: str, encoding: str) -> Iterator[str]:
    try:
        with file.open(encoding=_after_mark(encoding)) as lines:
            for number, line in enumerate(lines, 1):
                if _is_text(line):
                    yield _text(json.loads(line), field, f"{file}, line {number}")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as lines of JSON in {encoding.upper()} ({error})") from error


def _after_mark(encoding: str) -> str:
    """Return the encoding that skips a byte order mark, as programs of Windows write at the start of UTF-8."""
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _text(entry: Any, field: str, where: str) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get(field), str):
        fields = f"; its fields are {', '.join(map(str, entry))}" if isinstance(entry, dict) else ""
        raise DataError(f"{where}: no string in a field {field!r}{fields}; name another by {suggestion(text='NAME')}")
    try:
        entry[field].encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: half of a pair of surrogates in {field!r}, which is no text ({error})") from error
    return entry[field]


def _is_text(line: str) -> bool:
    return line.strip() != ""


def _windows(lengths: list[int], context: int, stride: int, *, short: int) -> Tensor:
    """Return start, stop, first labelled token and end of document of each window, shape (N, 4).

    Args:
        lengths: Number of tokens of each document.
        context: Maximum number of tokens of a window.
        stride: Number of tokens between the starts of windows.
        short: Number of tokens at the end of a document that need no window: those without a label.
    """
    windows, begin = [], 0
    for length in lengths:
        end = begin + length
        fresh = start = begin
        while True:
            stop = min(start + context, end)
            windows.append((start, stop, fresh, end))
            if stop >= end - short:
                break
            start, fresh = start + stride, stop
        begin = end
    return torch.tensor(windows, dtype=torch.int64)


def _tokens(vocab: Vocabulary, documents: Iterable[str], kind: str) -> tuple[list[Tensor], tuple[str, ...]]:
    """Return token ids of the documents that are long enough, and a note on the others."""
    least = 2 if kind == NEXT else 1
    encoded, short = [], 0
    remaining = iter(documents)
    while block := list(islice(remaining, DOCUMENTS_PER_CALL)):
        for ids in vocab.encode(block):
            if len(ids) >= least:
                encoded.append(torch.tensor(ids))
            else:
                short += 1
    message = f"{short:,} documents of fewer than {least} tokens are left out"
    return encoded, (message,) if short else ()


def _context(requested: Any, vocab: Vocabulary) -> int:
    longest = vocab.positions
    if requested is None:
        return USUAL_CONTEXT if longest is None else min(USUAL_CONTEXT, longest)
    context = whole_argument(CONTEXT, requested, 2, 2**31)
    if longest is not None and context > longest:
        raise UsageError(f"{CONTEXT}: {context} tokens are more than the {longest} that the model takes (config.json)")
    return context
