"""Tests of layers of a model without a head, on texts without labels: their entropies agree with transformers."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

import ckpt_probe as cp
from ckpt_probe.analysis import analyze
from ckpt_probe.extraction import extract_series

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "cat", "dog", "sat", "on", "mat", "ran", "big", "."]
TEXTS = ["the cat sat on the mat .", "a big dog ran .", "the dog sat .", "a cat ran on the big mat ."]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Save a BertModel of three layers with its tokenizer, and a file of texts; return their directory."""
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "run")
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes)).save_pretrained(tmp_path / "run")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    return tmp_path


@pytest.mark.parametrize("store", ["moments", "features"])
def test_each_layer_has_the_entropy_of_its_mean_tokens(directory: Path, store: str) -> None:
    options = {
        "data": f"text:{directory / 'texts.txt'}",
        "data_arguments": {"document": "line"},
        "unlabelled": True,
        "layers": "all",
        "layer_store": store,
    }
    extract_series(directory / "run", directory / "dumps", device="cpu", subset_rows=4, **options)
    records = {record["layer"]: record for record in analyze(directory / "dumps", layers=True)}
    assert list(records) == ["embeddings", *(f"encoder.layer.{k}" for k in range(3)), "penultimate"]
    model = BertModel.from_pretrained(directory / "run").eval()
    tokenizer = BertTokenizerFast.from_pretrained(directory / "run")
    with torch.no_grad():
        one_by_one = [model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True) for text in TEXTS]
    for depth, name in enumerate(list(records)[:-1]):
        rows = torch.stack([outputs.hidden_states[depth][0].mean(dim=0) for outputs in one_by_one])
        assert records[name]["samples"] == len(TEXTS)
        assert records[name]["sample.entropy_features"] == pytest.approx(float(cp.matrix_entropy(rows)), rel=1e-4)
        assert records[name]["class.mir"] is None
        assert "the data have no labels" in records[name]["missing"]
    # The output of the last layer is that of the model.
    last, returned = records["encoder.layer.2"], records["penultimate"]
    assert last["sample.effective_rank"] == pytest.approx(returned["sample.effective_rank"], rel=1e-6)
