"""Text as a model's own tokenizer sees it: token ids and attention masks, padded to the longest of each batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ckpt_probe.data.hints import ModelHints, read_configuration
from ckpt_probe.data.samples import LENGTHS, Batch
from ckpt_probe.errors import DataError, UsageError, last_line
from ckpt_probe.plugins import load_pretrained, require_extra

TOKENIZER, MAX_LENGTH = "tokenizer", "max_length"
"""Arguments of text: the tokenizer's directory, and the tokens at which a text is cut."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
UNSET = 10**9
"""transformers writes a number beyond this one where a tokenizer states no longest text."""

POSITIONS = ("max_position_embeddings", "n_positions")
"""What a config.json may call the longest text of a model."""

POSITIONS_BEFORE = ("roberta", "camembert")
"""Families of models whose first positions stand for padding."""


@dataclass(frozen=True)
class Tokenization:
    """A tokenizer, and the number of tokens at which texts are cut."""

    tokenizer: Any
    max_length: int
    arguments: dict[str, Any]

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> tuple[dict[str, Tensor], list[int]]:
        """Return tensors (n, T) by the names of a model's arguments, with their lengths, and numbers of cut texts."""
        encoded = self.tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        cut = [number for number, one in enumerate(encoded.encodings or []) if one.overflowing]
        taken = {name: tensor for name, tensor in encoded.items() if name in self.tokenizer.model_input_names}
        return {**taken, LENGTHS: encoded["attention_mask"].sum(dim=1)}, cut


class Texts(Protocol):
    """Texts by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> str: ...


class TextSplit:
    """A split of texts, or of pairs of them: labels (N,), tokenised batch by batch."""

    def __init__(self, texts: Texts, labels: Tensor, tokenize: Tokenization, pairs: Texts | None = None) -> None:
        self._texts = texts
        self._pairs = pairs
        self._labels = labels
        self._tokenize = tokenize
        self._cut: set[int] = set()

    @property
    def labels(self) -> Tensor:
        """All labels, (N,) int64."""
        return self._labels

    @property
    def padding(self) -> int:
        """The number of the token that pads texts."""
        return self._tokenize.tokenizer.pad_token_id

    @property
    def notes(self) -> tuple[str, ...]:
        """How many of the texts read so far were cut, where some were."""
        if not self._cut:
            return ()
        return (f"{len(self._cut):,} of {len(self):,} texts were cut at {self._tokenize.max_length} tokens",)

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: Tensor | slice) -> Batch:
        """input_ids, attention_mask and what else the tokenizer gives, each (n, T), and labels (n,)."""
        numbers = range(len(self))[indices] if isinstance(indices, slice) else indices.tolist()
        pairs = None if self._pairs is None else [self._pairs[number] for number in numbers]
        inputs, cut = self._tokenize([self._texts[number] for number in numbers], pairs)
        self._cut.update(numbers[number] for number in cut)
        return inputs, self._labels[torch.tensor(list(numbers), dtype=torch.int64)]


def padding_of(splits: Mapping[str, Any]) -> int | None:
    """Return the number of the token that pads the texts of some splits, None if they hold no texts."""
    return next((split.padding for split in splits.values() if isinstance(split, TextSplit)), None)


def tokenization(given: Mapping[str, Any], hints: ModelHints) -> Tokenization:
    """The tokenizer of the model's directory, or of the one that `tokenizer` names, and its length.

    `max_length`, else what the tokenizer states, else the positions that the model's config.json has. Raises
    UsageError where no tokenizer is near the model or a length is none, DataError where none can be read.
    """
    directory = _directory(given.get(TOKENIZER), hints)
    tokenizer, config = _read(directory), read_configuration(directory)
    # The end is where `LENGTHS` say that samples are padded; models see none of it.
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        _choose_padding(tokenizer, config, directory)
    length = _length(given.get(MAX_LENGTH), tokenizer, config, directory)
    return Tokenization(tokenizer, length, {TOKENIZER: str(directory), MAX_LENGTH: length})


@dataclass(frozen=True)
class Vocabulary:
    """A language model's tokenizer: `size` tokens, and what a model that was trained with it can take.

    positions: the longest text of the model, None where it states none. padding, mask: numbers of tokens.
    """

    directory: Path
    tokenizer: Any
    size: int
    padding: int
    mask: int | None
    positions: int | None

    @property
    def special(self) -> set[int]:
        """Numbers of tokens that stand for no text."""
        return set(self.tokenizer.all_special_ids)

    def encode(self, documents: list[str]) -> list[list[int]]:
        """The tokens of each document, whole, with the special ones that its tokenizer puts around a text.

        Raises DataError where one of them is none that the model knows.
        """
        found = self.tokenizer(documents, truncation=False, padding=False, verbose=False)["input_ids"]
        _require_own(self.directory, 1 + max((max(ids, default=0) for ids in found), default=0), self.size)
        return found

    def names(self) -> tuple[str, ...]:
        """The tokens as the tokenizer spells them."""
        found = self.tokenizer.convert_ids_to_tokens(list(range(self.size)))
        return tuple(token or f"token {number}" for number, token in enumerate(found))


def vocabulary(given: Mapping[str, Any], hints: ModelHints) -> Vocabulary:
    """The tokenizer of the model's directory, or of the one that `tokenizer` names, for a language model.

    Errors as `tokenization`; DataError too where it has more tokens than the model.
    """
    directory = _directory(given.get(TOKENIZER), hints)
    tokenizer = _read(directory)
    config = hints.configuration() or read_configuration(directory)
    known, size = config.get("vocab_size"), len(tokenizer)
    if isinstance(known, int):
        _require_own(directory, tokenizer.vocab_size, known)
        # A token that was added to the tokenizer alone, such as one for padding, is none that the model knows.
        size = min(size, known)
    padding = tokenizer.pad_token_id
    return Vocabulary(
        directory,
        tokenizer,
        size,
        padding if padding is not None and padding < size else 0,
        tokenizer.mask_token_id,
        _positions(config, tokenizer),
    )


def _require_own(directory: Path, size: int, known: int) -> None:
    if size > known:
        raise DataError(f"{directory}: its tokenizer has {size:,} tokens, the model {known:,}: it is another model's")


def _positions(config: Mapping[str, Any], tokenizer: Any) -> int | None:
    stated = next((config[name] for name in POSITIONS if isinstance(config.get(name), int)), None)
    if stated is None or stated < 1:
        return None
    before = any(family in str(config.get("model_type")) for family in POSITIONS_BEFORE)
    return stated - (tokenizer.pad_token_id + 1 if before else 0)


def _directory(named: Any, hints: ModelHints) -> Path:
    if named is None:
        found = hints.holding(*TOKENIZER_FILES)
        if found is None:
            near = [str(place) for place in (hints.directory, hints.source == "hf" and hints.place) if place]
            told = f" (there is none in {' or '.join(near)})" if near else ""
            raise UsageError(f"text needs a tokenizer{told}: say its directory by --data-argument {TOKENIZER}=DIR")
        return found
    directory = Path(str(named))
    if not any((directory / file).is_file() for file in TOKENIZER_FILES):
        raise DataError(f"{directory}: no tokenizer in it (no {', no '.join(TOKENIZER_FILES[:3])})")
    return directory


def _read(directory: Path) -> Any:
    transformers = require_extra("transformers", "transformers")
    try:
        return load_pretrained(transformers.AutoTokenizer, directory)
    except Exception as error:
        raise DataError(f"{directory}: its tokenizer cannot be read: {last_line(error)}") from error


def _choose_padding(tokenizer: Any, config: Mapping[str, Any], directory: Path) -> None:
    number = config.get("pad_token_id")
    if not isinstance(number, int):
        raise DataError(
            f"{directory}: the tokenizer has no padding token, and config.json no pad_token_id, so that texts make no "
            "batch; set both and save them again"
        )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(number)


def _length(given: Any, tokenizer: Any, config: Mapping[str, Any], directory: Path) -> int:
    if given is not None:
        if type(given) is not int or given < 1:
            raise UsageError(f"{MAX_LENGTH}: expected a whole number of at least 1, found {given!r}")
        return given
    if tokenizer.model_max_length < UNSET:
        return int(tokenizer.model_max_length)
    positions = _positions(config, tokenizer)
    if positions is None:
        raise UsageError(f"{directory}: says no longest text; give one by --data-argument {MAX_LENGTH}=512")
    return positions
