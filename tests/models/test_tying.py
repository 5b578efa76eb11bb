"""A file with two values for one tensor of a model: the model gets what its framework makes of that file."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ckpt_probe.models import load_weights

WIDTH = {"vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
SEQUENCES = {"vocab_size": 12, "d_model": 8, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
TIED: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 12, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}),
    "Qwen2ForCausalLM": ("Qwen2Config", {**WIDTH, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "BertForMaskedLM": ("BertConfig", WIDTH),
    "ElectraForMaskedLM": ("ElectraConfig", {**WIDTH, "embedding_size": 8}),
    "AlbertForMaskedLM": ("AlbertConfig", {**WIDTH, "embedding_size": 4}),
    "T5ForSequenceClassification": (
        "T5Config",
        {"vocab_size": 12, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2},
    ),
    "BartForSequenceClassification": ("BartConfig", {**SEQUENCES, "encoder_layers": 1, "decoder_layers": 1}),
}


def drawn(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A file's values: floats are drawn anew, each name's for itself."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=draw) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in state.items()
    }


@pytest.mark.parametrize("name", TIED)
def test_weights_are_those_that_transformers_loads(name: str) -> None:
    transformers: Any = pytest.importorskip("transformers")
    kind, (family, settings) = getattr(transformers, name), TIED[name]
    config = getattr(transformers, family)(**settings)
    model = kind(config)
    apart = drawn(model.state_dict(), 0)
    ties = set(model.all_tied_weights_keys)
    assert ties
    tied = {key: value for key, value in drawn(model.state_dict(), 1).items() if key not in ties}
    # One model takes the checkpoints of a series one after the other.
    for held in (tied, apart, tied):
        notes = load_weights(model, held, source="x")
        wanted = kind.from_pretrained(None, config=copy.deepcopy(config), state_dict=dict(held)).state_dict()
        assert [key for key, value in model.state_dict().items() if not torch.equal(value, wanted[key])] == []
        for key in ties if held is apart else ():
            assert any(key in note and "kept apart, as transformers does" in note for note in notes)
        if held is tied:
            assert notes == ()


class Shared(nn.Module):
    """An embedding and a head of one tensor, and a layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.words, self.first = nn.Linear(3, 5, bias=False), nn.Embedding(5, 3), nn.Linear(3, 3)
        self.words.weight, self.second = self.head.weight, self.first


def test_weights_are_those_that_torch_loads() -> None:
    held = drawn(Shared().state_dict(), 0)
    model, wanted = Shared(), Shared()
    notes = load_weights(model, held, source="x")
    wanted.load_state_dict(held)
    assert torch.equal(wanted.head.weight, held["words.weight"])
    for name, value in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert notes[0] == (
        "head.weight, words.weight are one tensor of the model, but differ in the file: words.weight counts, as in "
        "torch's load_state_dict"
    )
    assert ["second.weight counts" in note for note in notes] == [False, True, False]
    assert load_weights(model, model.state_dict(), source="x") == ()
