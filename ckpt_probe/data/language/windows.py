"""Windows of tokens for language models: each within one document, and what each token's label is."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.data.hints import ModelHints
from ckpt_probe.data.samples import LEFT_OUT, LENGTHS, UNLABELLED, Batch, LabelledData, Split
from ckpt_probe.data.text import TOKENIZER, Vocabulary, vocabulary
from ckpt_probe.errors import DataError, UsageError

CONTEXT, STRIDE, LABELS, FRACTION, SEED = "context", "stride", "labels", "masked_fraction", "masked_seed"
"""Arguments: tokens of a window, tokens between the starts of two, what labels are, and how masked tokens are drawn."""

ARGUMENTS = (TOKENIZER, CONTEXT, STRIDE, LABELS, FRACTION, SEED)
USUAL_CONTEXT = 512
AT_ONCE = 1000
"""Documents that are given to a tokenizer at a time."""

NEXT, MASKED, NONE = "next", "masked", "none"
OF_CLASSES = {"ForCausalLM": NEXT, "LMHeadModel": NEXT, "ForMaskedLM": MASKED}
OF_TASKS = {"text-generation": NEXT, "fill-mask": MASKED}
"""What labels are, by the ends of transformers' names of classes, and by task."""


def wanted_labels(arguments: Mapping[str, Any], hints: ModelHints) -> str:
    """What the labels of tokens are: the argument `labels`, else by the task or the class of the model.

    "next" tokens for causal language models, the "masked" ones for masked language models, "none" for any other. Raises
    UsageError where the argument is none of them.
    """
    given = arguments.get(LABELS)
    if given is not None:
        if given not in (NEXT, MASKED, NONE):
            raise UsageError(f"{LABELS}: expected {NEXT}, {MASKED} or {NONE}, found {given!r}")
        return given
    task = hints.arguments.get("task")
    if task is not None:
        return OF_TASKS.get(str(task), NONE)
    names = [str(name) for name in hints.configuration().get("architectures") or ()]
    return next((kind for end, kind in OF_CLASSES.items() if any(name.endswith(end) for name in names)), NONE)


def labelled_windows(
    name: str,
    texts: Mapping[str, Iterable[str]],
    arguments: Mapping[str, Any],
    hints: ModelHints,
    kept: Mapping[str, Any],
) -> LabelledData:
    """Documents of each split as windows of at most `context` tokens, starting every `stride` tokens.

    A window never spans two documents. Where windows overlap, a token is predicted in the first one that can, and is
    context alone in the others. Classes are the tokenizer's tokens. kept: arguments that belong to the source. Raises
    UsageError for a context longer than the model's or a stride longer than the context, DataError for a tokenizer that
    is another model's, and for a split without a token that has a label.
    """
    kind = wanted_labels(arguments, hints)
    known = vocabulary(arguments, hints)
    context = _context(arguments.get(CONTEXT), known)
    stride = _whole(STRIDE, arguments.get(STRIDE, context), 1, context)
    stated: dict[str, Any] = {TOKENIZER: str(known.directory), CONTEXT: context, STRIDE: stride, LABELS: kind}
    fraction, seed = float(arguments.get(FRACTION, 0.15)), _whole(SEED, arguments.get(SEED, 0), 0, 2**63)
    if kind == MASKED:
        if not 0 < fraction <= 1:
            raise UsageError(f"{FRACTION}: expected a number above 0 and at most 1, found {fraction}")
        if known.mask is None:
            raise UsageError(f"{known.directory}: its tokenizer has no token that masks; use {LABELS}={NEXT} or {NONE}")
        stated |= {FRACTION: fraction, SEED: seed}
    splits: dict[str, Split] = {}
    for split, documents in texts.items():
        ids, notes = _tokens(known, documents, kind)
        if not ids:
            raise DataError(f"split {split}: no text with a token to predict; {'; '.join(notes) or 'it is empty'}")
        held = _Tokens(torch.cat(ids).to(torch.int32), kind, known)
        if kind == MASKED:
            held.draw_masked(fraction, seed)
        windows = _windows([len(part) for part in ids], context, stride, short=int(kind == NEXT))
        splits[split] = WindowSplit(held, windows, notes)
        if kind != NONE and not splits[split].rows_of(len(windows)):  # pyright: ignore[reportAttributeAccessIssue]
            raise DataError(f"split {split}: no token has a label; raise {FRACTION}, or use more text")
    classes, names = (0, None) if kind == NONE else (known.size, known.names())
    return LabelledData(name, splits, classes, (), {**kept, **stated}, names)


@dataclass
class _Tokens:
    """The tokens of all documents of a split, one after the other (total,), and which of them are masked (total,)."""

    ids: Tensor
    kind: str
    known: Vocabulary
    masked: Tensor | None = None

    def draw_masked(self, fraction: float, seed: int) -> None:
        """Mask this fraction of the tokens that are no special ones, by a seed."""
        drawn = torch.rand(len(self.ids), generator=torch.Generator().manual_seed(seed)) < fraction
        special = torch.tensor(sorted(self.known.special), dtype=torch.int32)
        self.masked = drawn & ~torch.isin(self.ids, special)


class WindowSplit:
    """Windows of tokens in order, padded on the right to the longest of each batch.

    windows: (N, 4), where each begins and stops, from where on its tokens are labelled, and where its document ends.
    """

    def __init__(self, tokens: _Tokens, windows: Tensor, notes: tuple[str, ...] = ()) -> None:
        self._tokens = tokens
        self._windows = windows
        self.notes = notes

    @property
    def labels(self) -> Tensor:
        """Labels of all windows, (N, longest) int64, −100 where a position has none; (N,) of −1 without labels."""
        return self.batch(slice(None))[1]

    def rows_of(self, count: int) -> int:
        """How many positions of the first windows have a label."""
        starts, stops, fresh, ends = self._windows[:count].unbind(1)
        if self._tokens.kind == NONE:
            return int((stops - starts).sum())
        if self._tokens.kind == NEXT:
            return int((torch.minimum(stops, ends - 1) - fresh).clamp(min=0).sum())
        assert self._tokens.masked is not None
        before = torch.cat([torch.zeros(1, dtype=torch.int64), self._tokens.masked.cumsum(0)])
        return int((before[stops] - before[fresh]).sum())

    def __len__(self) -> int:
        return len(self._windows)

    def batch(self, indices: Tensor | slice) -> Batch:
        """Return input_ids and attention_mask, each (n, T), with their lengths, and labels (n, T), else (n,) of −1."""
        tokens, known = self._tokens, self._tokens.known
        starts, stops, fresh, ends = (part[:, None] for part in self._windows[indices].unbind(1))
        places = starts + torch.arange(int((stops - starts).max()))
        there = places < stops
        ids = tokens.ids[places.clamp(max=len(tokens.ids) - 1)].to(torch.int64)
        labels, labelled = torch.full((len(ids),), UNLABELLED), None
        if tokens.kind == NEXT:
            labelled = there & (places >= fresh) & (places < ends - 1)
            labels = tokens.ids[(places + 1).clamp(max=len(tokens.ids) - 1)].to(torch.int64)
        elif tokens.masked is not None and known.mask is not None:
            hidden = there & tokens.masked[places.clamp(max=len(tokens.ids) - 1)]
            labelled, labels = hidden & (places >= fresh), ids
            ids = ids.masked_fill(hidden, known.mask)
        ids = ids.masked_fill(~there, known.padding)
        labels = labels if labelled is None else labels.masked_fill(~labelled, LEFT_OUT)
        inputs = {"input_ids": ids, "attention_mask": there.to(torch.int64), LENGTHS: (stops - starts)[:, 0]}
        return inputs, labels


def _windows(lengths: list[int], context: int, stride: int, *, short: int) -> Tensor:
    """Begin, stop, first labelled token and end of document of each window (N, 4). short: tokens without a label."""
    found, begin = [], 0
    for length in lengths:
        end = begin + length
        fresh = start = begin
        while True:
            stop = min(start + context, end)
            found.append((start, stop, fresh, end))
            if stop >= end - short:
                break
            start, fresh = start + stride, stop
        begin = end
    return torch.tensor(found, dtype=torch.int64)


def _tokens(known: Vocabulary, documents: Iterable[str], kind: str) -> tuple[list[Tensor], tuple[str, ...]]:
    """Token ids of the documents that are long enough, and what is to be said of the others."""
    least = 2 if kind == NEXT else 1
    found, short = [], 0
    for ids in _encoded(known, documents):
        if len(ids) >= least:
            found.append(torch.tensor(ids))
        else:
            short += 1
    told = f"{short:,} documents of fewer than {least} tokens are left out"
    return found, (told,) if short else ()


def _encoded(known: Vocabulary, documents: Iterable[str]) -> Iterator[list[int]]:
    coming = iter(documents)
    while part := list(islice(coming, AT_ONCE)):
        yield from known.encode(part)


def _context(given: Any, known: Vocabulary) -> int:
    longest = known.positions
    if given is None:
        return USUAL_CONTEXT if longest is None else min(USUAL_CONTEXT, longest)
    context = _whole(CONTEXT, given, 2, 2**31)
    if longest is not None and context > longest:
        raise UsageError(f"{CONTEXT}: {context} tokens are more than the {longest} that the model takes (config.json)")
    return context


def _whole(name: str, given: Any, least: int, most: int) -> int:
    if type(given) is not int or not least <= given <= most:
        raise UsageError(f"{name}: expected a whole number from {least} to {most}, found {given!r}")
    return given
