"""Tests of windows of tokens: every token but the first of a document is predicted once, from its own document."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ckpt_probe.data import LEFT_OUT, UNLABELLED, LabelledData, ModelHints, load_data
from ckpt_probe.errors import DataError, UsageError

transformers = pytest.importorskip("transformers")

WORDS = ("<pad>", "<unk>", "<mask>", "<s>", "a", "b", "c", "d", "e", "f", "g")
DOCUMENTS = ("a b c d e f g", "g f", "a", "b c d e")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Write a tokenizer of single words and the configuration of a causal language model, and return the directory."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>", "bos_token": "<s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path / "model")
    return configured(tmp_path / "model")


def configured(directory: Path, **changes: Any) -> Path:
    settings = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": len(WORDS), "n_positions": 16}
    (directory / "config.json").write_text(json.dumps({**settings, **changes}))
    return directory


def loaded(directory: Path, name: str, arguments: dict[str, Any]) -> LabelledData:
    return load_data(name, arguments, hints=ModelHints(f"hf:{directory}"))


def lines(directory: Path, documents: tuple[str, ...] = DOCUMENTS) -> str:
    (directory / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return f"text:{directory / 'texts.jsonl'}"


def pairs(inputs: Any, labels: Tensor) -> list[tuple[tuple[int, ...], int]]:
    """Return the tokens of the document up to each position with a label, and that label."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    rows, positions = (labels != LEFT_OUT).nonzero().unbind(1)
    assert bool(mask[rows, positions].all())
    return [
        (tuple(ids[row, : position + 1].tolist()), int(labels[row, position]))
        for row, position in zip(rows.tolist(), positions.tolist(), strict=True)
    ]


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (4, 4), (4, 2), (3, 1), (2, 2), (7, 7), (6, 6)])
def test_every_token_but_the_first_is_predicted_once(directory: Path, context: int, stride: int) -> None:
    data = loaded(directory, lines(directory), {"context": context, "stride": stride})
    split = data.splits["texts"]
    inputs, labels = split.batch(slice(0, len(split)))
    predictions = pairs(inputs, labels)
    expected = [
        (words[max(0, position - context) : position], words[position])
        for words in ([WORDS.index(word) for word in text.split()] for text in DOCUMENTS)
        for position in range(1, len(words))
    ]
    assert [label for _, label in predictions] == [label for _, label in expected]
    for (context_tokens, _), (preceding, _) in zip(predictions, expected, strict=True):
        # The context consists of the last preceding tokens, of at least as many as windows overlap.
        assert list(context_tokens) == list(preceding[len(preceding) - len(context_tokens) :])
        assert len(context_tokens) >= min(len(preceding), context - stride)
    assert (data.classes, data.input_shape) == (len(WORDS), ())
    assert data.class_names == WORDS
    assert split.notes == ("1 documents of fewer than 2 tokens are left out",)  # pyright: ignore[reportAttributeAccessIssue]
    counted: Callable[[int], int] = split.rows_of  # pyright: ignore[reportAttributeAccessIssue]
    assert counted(len(split)) == len(expected)
    assert counted(1) == int((labels[:1] != LEFT_OUT).sum())


def test_masked_tokens_are_replaced_and_labelled(directory: Path) -> None:
    configured(directory, model_type="bert", architectures=["BertForMaskedLM"], max_position_embeddings=16)
    arguments = {"context": 4, "stride": 2, "masked_fraction": 0.5, "masked_seed": 3}
    split = loaded(directory, lines(directory), arguments).splits["texts"]
    inputs, labels = split.batch(slice(0, len(split)))
    plain, _ = loaded(directory, lines(directory), {"labels": "none", "context": 4, "stride": 2}).splits["texts"].batch(
        slice(0, len(split))
    )  # fmt: skip
    counted = labels != LEFT_OUT
    assert 0 < int(counted.sum()) < 14
    assert bool((inputs["input_ids"][counted] == WORDS.index("<mask>")).all())  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert torch.equal(labels[counted], plain["input_ids"][counted])  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert split.rows_of(len(split)) == int(counted.sum())  # pyright: ignore[reportAttributeAccessIssue]
    repeated = loaded(directory, lines(directory), arguments).splits["texts"].batch(slice(0, len(split)))
    assert torch.equal(repeated[1], labels)


def test_data_of_a_model_without_a_language_head_have_no_labels(directory: Path) -> None:
    configured(directory, architectures=["GPT2Model"])
    data = loaded(directory, lines(directory), {})
    split = data.splits["texts"]
    assert (data.classes, data.labelled, len(split)) == (0, False, len(DOCUMENTS))
    assert split.batch(slice(0, 2))[1].tolist() == [UNLABELLED, UNLABELLED]
    unlabelled = load_data(lines(directory), {"unlabelled": True}, hints=ModelHints(f"hf:{configured(directory)}"))
    assert (unlabelled.classes, unlabelled.arguments["unlabelled"]) == (0, True)


def test_documents_are_files_blocks_or_lines(directory: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    (texts / "train" / "deep").mkdir(parents=True)
    (texts / "train" / "deep" / "one.txt").write_text("a b\nc\n\nd e\n")
    (texts / "train" / "two.txt").write_text("f g\n")
    (texts / "test.txt").write_text("a b c\n")
    for name in ("._test.txt", "train/._two.txt", "train/.ipynb_checkpoints/two.txt", "__MACOSX/train/two.txt"):
        (texts / name).parent.mkdir(parents=True, exist_ok=True)
        (texts / name).write_bytes(b"f g\xff")
    windows = {}
    for document in ("file", "block", "line"):
        data = loaded(directory, f"text:{texts}", {"document": document})
        assert list(data.splits) == ["test", "train"]
        windows[document] = len(data.splits["train"])
    # The line "c" has no token to predict.
    assert windows == {"file": 2, "block": 3, "line": 3}
    (texts / "more.jsonl").write_text('{"body": "a b c"}\n\n{"body": "d e"}\n')
    assert len(loaded(directory, f"text:{texts / 'more.jsonl'}", {"text": "body"}).splits["more"]) == 2


def test_a_saved_data_set_of_texts_has_the_windows_of_a_text_file(directory: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = {"text": list(DOCUMENTS), "label": [0, 1, 0, 1]}
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(table)}).save_to_disk(str(tmp_path / "saved"))
    saved = loaded(directory, f"hf-dataset:{tmp_path / 'saved'}", {"context": 4})
    expected = loaded(directory, lines(tmp_path), {"context": 4})
    split, expected_split = saved.splits["test"], expected.splits["texts"]
    assert torch.equal(split.batch(slice(0, 9))[1], expected_split.batch(slice(0, 9))[1])
    assert saved.classes == len(WORDS)


@pytest.mark.parametrize(
    ("changes", "documents", "arguments", "error", "message"),
    [
        (
            {"vocab_size": 9},
            DOCUMENTS,
            {},
            DataError,
            "has 11 tokens, the model 9: it is another model's",
        ),
        (
            {},
            ("", " ", "a"),
            {},
            DataError,
            "split texts: no text with a token to predict; 3 documents of fewer than 2",
        ),
        ({}, DOCUMENTS, {"context": 17}, UsageError, "context: 17 tokens are more than the 16 that the model takes"),
        (
            {},
            DOCUMENTS,
            {"context": 8, "stride": 9},
            UsageError,
            "stride: expected a whole number from 1 to 8",
        ),
        ({}, DOCUMENTS, {"labels": "all"}, UsageError, "labels: expected next, masked or none, found 'all'"),
        ({}, DOCUMENTS, {"window": 3}, UsageError, "unknown argument window; text takes context"),
        (
            {"architectures": ["BertForMaskedLM"]},
            ("a b",),
            {"masked_fraction": 1e-9},
            DataError,
            "no token has a label; raise masked_fraction",
        ),
    ],
)
def test_arguments_and_documents_without_windows_are_refused(
    directory: Path, changes: Any, documents: tuple[str, ...], arguments: Any, error: Any, message: str
) -> None:
    configured(directory, **changes)
    with pytest.raises(error, match=message):
        loaded(directory, lines(directory, documents), arguments)


def test_invalid_text_files_are_refused(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(DataError, match=r"bad\.txt: cannot be read as UTF-8 text"):
        loaded(directory, f"text:{tmp_path / 'bad.txt'}", {})
    (tmp_path / "bad.jsonl").write_text('{"body": "a b"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 1: no string in a field 'text'; its fields are body"):
        loaded(directory, f"text:{tmp_path / 'bad.jsonl'}", {})
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError, match=r"a\.csv: expected a file whose name ends in \.txt or \.jsonl"):
        loaded(directory, f"text:{tmp_path / 'a.csv'}", {})
    with pytest.raises(DataError, match="nowhere: no such file or directory"):
        loaded(directory, f"text:{tmp_path / 'nowhere'}", {})
    with pytest.raises(UsageError, match="text needs a tokenizer"):
        load_data(lines(tmp_path), {})


def test_the_encoding_of_documents_can_be_named(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b a b " * 20, encoding="utf-16")
    with pytest.raises(DataError, match=r"a\.txt: cannot be read as UTF-8 text .*; name the encoding by"):
        loaded(directory, f"text:{tmp_path / 'a.txt'}", {})
    data = loaded(directory, f"text:{tmp_path / 'a.txt'}", {"encoding": "utf-16"})
    assert data.arguments["encoding"] == "utf-16"
    (tmp_path / "a.txt").write_text("a b a b " * 20, encoding="utf-8")
    plain = loaded(directory, f"text:{tmp_path / 'a.txt'}", {})
    assert [len(part) for part in data.splits.values()] == [len(part) for part in plain.splits.values()]


@pytest.mark.parametrize("document", ["line", "block"])
def test_only_a_line_break_ends_a_line_of_a_text(directory: Path, tmp_path: Path, document: str) -> None:
    (tmp_path / "t.txt").write_text("a b\u2028c\x0cd\n\ne f\n", encoding="utf-8")
    data = loaded(directory, f"text:{tmp_path / 't.txt'}", {"document": document})
    assert len(data.split("t")) == 2


def test_files_of_one_name_are_one_split(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "t.txt").write_text("a b")
    (tmp_path / "texts" / "t.jsonl").write_text('{"text": "c d"}')
    assert len(loaded(directory, f"text:{tmp_path / 'texts'}", {}).split("t")) == 2


def test_a_byte_order_mark_is_no_text_and_half_a_surrogate_is_refused(directory: Path, tmp_path: Path) -> None:
    for name, text in (("t.txt", "a b"), ("t.jsonl", '{"text": "a b"}')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        batch = loaded(directory, f"text:{tmp_path / name}", {}).split("t").batch(slice(None))[0]
        assert isinstance(batch, dict)
        assert batch["input_ids"].tolist() == [[WORDS.index("a"), WORDS.index("b")]]
    (tmp_path / "half.jsonl").write_text('{"text": "a \\ud800"}')
    with pytest.raises(DataError, match=r"half.jsonl, line 1: half of a pair of surrogates in 'text'"):
        loaded(directory, f"text:{tmp_path / 'half.jsonl'}", {})
