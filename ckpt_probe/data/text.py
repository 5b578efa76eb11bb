"""Texts as token ids and attention masks by the model's tokenizer, padded to the longest text of each batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.data.arguments import ModelHints, load_auto, read_configuration, suggestion
from ckpt_probe.data.samples import LENGTHS, LabelledBatch
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.keywords import whole_argument

TOKENIZER, MAX_LENGTH = "tokenizer", "max_length"
"""Arguments of texts: the tokenizer's directory, and the number of tokens at which a text is truncated."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
UNSET = 10**9
"""transformers writes a larger number if a tokenizer states no maximum length."""

POSITIONS = ("max_position_embeddings", "n_positions")
"""Names of the maximum number of tokens of a text in a config.json."""

POSITIONS_BEFORE = ("roberta", "camembert")
"""Families of models whose first positions are reserved for padding."""


@dataclass(frozen=True)
class Tokenization:
    """A tokenizer with its maximum length.

    Args:
        tokenizer: A tokenizer of transformers.
        max_length: Number of tokens at which texts are truncated.
        arguments: Data arguments that reproduce it.
    """

    tokenizer: Any
    max_length: int
    arguments: dict[str, Any]

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> tuple[dict[str, Tensor], list[int]]:
        """Tokenise texts.

        Args:
            texts: The texts.
            pairs: The second text of each, if any.

        Returns:
            Tensors, shape (n, T), by the names of a model's arguments, with their lengths, and indices of texts that
            were truncated.
        """
        encoded = self.tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        cut = [number for number, encoding in enumerate(encoded.encodings or []) if encoding.overflowing]
        taken = {name: tensor for name, tensor in encoded.items() if name in self.tokenizer.model_input_names}
        return {**taken, LENGTHS: encoded["attention_mask"].sum(dim=1)}, cut


class TextSplit:
    """A split of texts or pairs of texts, tokenised batch by batch.

    Args:
        texts: The texts.
        labels: Label of each text, shape (N,).
        tokenize: The tokenizer.
        pairs: The second text of each, if any.
    """

    def __init__(
        self, texts: Sequence[str], labels: Tensor, tokenize: Tokenization, pairs: Sequence[str] | None = None
    ) -> None:
        self._texts = texts
        self._pairs = pairs
        self.labels = labels
        self._tokenize = tokenize
        self._cut: set[int] = set()

    @property
    def padding(self) -> int:
        """Return the id of the padding token."""
        return self._tokenize.tokenizer.pad_token_id

    @property
    def notes(self) -> tuple[str, ...]:
        """Return a sentence on the number of truncated texts among those read so far, if there are any."""
        if not self._cut:
            return ()
        return (f"{len(self._cut):,} of {len(self):,} texts were cut at {self._tokenize.max_length} tokens",)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor | slice) -> LabelledBatch:
        """Return the tokenizer's tensors (input_ids, attention_mask, …), each of shape (n, T), and labels, (n,)."""
        numbers = range(len(self))[indices] if isinstance(indices, slice) else indices.tolist()
        pairs = None if self._pairs is None else [self._pairs[number] for number in numbers]
        inputs, cut = self._tokenize([self._texts[number] for number in numbers], pairs)
        self._cut.update(numbers[number] for number in cut)
        return inputs, self.labels[torch.tensor(list(numbers), dtype=torch.int64)]


def padding_of(splits: Mapping[str, Any]) -> int | None:
    """Return the id of the padding token of splits of texts, None for other splits."""
    return next((split.padding for split in splits.values() if isinstance(split, TextSplit)), None)


def tokenization(arguments: Mapping[str, Any], hints: ModelHints) -> Tokenization:
    """Load the tokenizer of the model's directory, or of the directory that `tokenizer` names.

    Texts are truncated at `max_length`, by default the tokenizer's maximum, else the positions in the model's
    config.json.

    Args:
        arguments: Arguments of the data.
        hints: The model that will receive the data.

    Raises:
        UsageError: If there is no tokenizer, or no valid maximum length.
        DataError: If the tokenizer cannot be read.
    """
    directory = _directory(arguments.get(TOKENIZER), hints)
    tokenizer, config = _tokenizer(directory), read_configuration(directory)
    # `LENGTHS` assumes padding at the end.
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        number = config.get("pad_token_id")
        if not isinstance(number, int):
            raise DataError(
                f"{directory}: the tokenizer has no padding token, and config.json no pad_token_id, so that texts make "
                "no batch; set both and save them again"
            )
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(number)
    length = _length(arguments.get(MAX_LENGTH), tokenizer, config, directory)
    return Tokenization(tokenizer, length, {TOKENIZER: str(directory), MAX_LENGTH: length})


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer of a language model.

    Args:
        directory: Directory of the tokenizer.
        tokenizer: A tokenizer of transformers.
        size: Number of tokens.
        padding: Id of the padding token.
        mask: Id of the masking token, None if it has no such token.
        positions: Maximum number of tokens of a text, None if the model states none.
    """

    directory: Path
    tokenizer: Any
    size: int
    padding: int
    mask: int | None
    positions: int | None

    @property
    def special(self) -> set[int]:
        """Return the ids of special tokens."""
        return set(self.tokenizer.all_special_ids)

    def encode(self, documents: list[str]) -> list[list[int]]:
        """Return the token ids of each complete document, with the special tokens that the tokenizer adds.

        Raises:
            DataError: If the model does not know one of the tokens.
        """
        token_ids = self.tokenizer(documents, truncation=False, padding=False, verbose=False)["input_ids"]
        _require_own(self.directory, 1 + max((max(ids, default=0) for ids in token_ids), default=0), self.size)
        return token_ids

    def names(self) -> tuple[str, ...]:
        """Return the spelling of each token."""
        tokens = self.tokenizer.convert_ids_to_tokens(list(range(self.size)))
        return tuple(token or f"token {number}" for number, token in enumerate(tokens))


def vocabulary(arguments: Mapping[str, Any], hints: ModelHints) -> Vocabulary:
    """Load the tokenizer of a language model, from its directory or from the one that `tokenizer` names.

    Args:
        arguments: Arguments of the data.
        hints: The model that will receive the data.

    Raises:
        UsageError: If there is no tokenizer.
        DataError: If the tokenizer cannot be read, or has more tokens than the model.
    """
    directory = _directory(arguments.get(TOKENIZER), hints)
    tokenizer = _tokenizer(directory)
    config = hints.configuration() or read_configuration(directory)
    known, size = config.get("vocab_size"), len(tokenizer)
    if isinstance(known, int):
        _require_own(directory, tokenizer.vocab_size, known)
        # The model does not know a token that was added to the tokenizer alone, such as one for padding.
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
        directory = hints.directory_with(*TOKENIZER_FILES)
        if directory is None:
            near = " or ".join(
                str(path) for path in (hints.directory, hints.source == "hf" and hints.reference) if path
            )
            searched = f" (no tokenizer in {near})" if near else ""
            raise UsageError(f"text needs a tokenizer{searched}: name its directory by {suggestion(tokenizer='DIR')}")
        return directory
    directory = Path(str(named))
    if not any((directory / file).is_file() for file in TOKENIZER_FILES):
        raise DataError(f"{directory}: no tokenizer in it (no {', no '.join(TOKENIZER_FILES[:3])})")
    return directory


def _tokenizer(directory: Path) -> Any:
    return load_auto("AutoTokenizer", directory, f"{directory}: its tokenizer cannot be read")


def _length(requested: Any, tokenizer: Any, config: Mapping[str, Any], directory: Path) -> int:
    if requested is not None:
        return whole_argument(MAX_LENGTH, requested, 1)
    if tokenizer.model_max_length < UNSET:
        return int(tokenizer.model_max_length)
    positions = _positions(config, tokenizer)
    if positions is None:
        raise UsageError(f"{directory}: states no maximum length; set one by {suggestion(max_length=512)}")
    return positions
