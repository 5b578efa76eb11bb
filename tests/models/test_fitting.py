"""Tests of loading weights into a model: prefixes of wrappers, names to translate, and two values for one tensor."""

import copy
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ckpt_probe.errors import DataError
from ckpt_probe.models import fitting_names, load_weights
from ckpt_probe.wrappers import wrapper_note

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


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def note(model: nn.Module, state: dict[str, Tensor]) -> str | None:
    return wrapper_note(state, set(model.state_dict()))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "encoder.", "backbone.", "module.model.", "a.b.c.", "ema."]
)
def test_a_prefix_is_removed_with_a_note(prefix: str) -> None:
    model, state = network(), network(1).state_dict()
    weights = prefixed(prefix, state)
    (message,) = load_weights(model, weights, source="x")
    assert torch.equal(model[0].weight, state["0.weight"])
    assert message == note(model, weights)
    assert message.startswith("tensor names lose ")
    assert repr(prefix) in message or prefix == "_orig_mod."
    assert note(model, state) is None


def test_tensors_outside_the_prefix_are_left_out_with_a_note() -> None:
    model, state = network(), network(1).state_dict()
    weights = prefixed("model.", state) | {"loss.weight": torch.ones(2), "step": torch.ones(())}
    load_weights(model, weights, source="x")
    assert note(model, weights) == (
        "tensor names lose their prefix 'model.' to fit the model; 2 tensors outside it are left out: loss.weight, step"
    )
    # Below the prefix, or without a prefix, every tensor has to belong to the model.
    for more in (prefixed("model.", state) | {"model.more": torch.ones(2)}, state | {"more": torch.ones(2)}):
        with pytest.raises(DataError, match="unexpected"):
            load_weights(model, more, source="x")


def test_prefixes_of_compiled_submodules_are_removed() -> None:
    model = network(1)
    compiled = copy.deepcopy(model)
    compiled[0] = torch.compile(compiled[0])
    assert "0._orig_mod.weight" in compiled.state_dict()
    load_weights(network(), compiled.state_dict(), source="x")
    # A compiled model has these names itself, so that they stay.
    load_weights(compiled, compiled.state_dict(), source="x")
    wrapped = prefixed("module.", compiled.state_dict())
    assert fitting_names(wrapped, set(model.state_dict()))["module.0._orig_mod.weight"] == "0.weight"


def test_two_matching_networks_are_an_error_that_names_both() -> None:
    model = network()
    weights = prefixed("query.", network(1).state_dict()) | prefixed("key.", network(2).state_dict())
    with pytest.raises(DataError, match=r"under several prefixes: query, key; choose one with `state_key='query'`$"):
        load_weights(model, weights, source="x")


def test_counters_of_batch_norm_and_tied_tensors_may_be_absent() -> None:
    model, state = network(), network(1).state_dict()
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    for weights in (old, prefixed("module.", old)):
        load_weights(model, weights, source="x")
        assert torch.equal(model[2].weight, state["2.weight"])
    tied = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    tied[1].weight = tied[0].weight
    load_weights(tied, {"0.weight": torch.ones(5, 3)}, source="x")
    assert tied[1].weight.eq(1).all()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"weight": torch.ones(8, 1, dtype=torch.uint8), "weight.absmax": torch.ones(1)}, "'weight' is uint8"),
        (
            {"weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(1)},
            "'weight_scale_inv' belongs to",
        ),
        ({"m.qweight": torch.ones(1, 4, dtype=torch.int32), "m.scales": torch.ones(1, 4)}, "'m.qweight' belongs to"),
    ],
)
def test_quantised_weights_are_reported_before_missing_tensors(weights: dict[str, Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_weights(nn.Linear(4, 4, bias=False), weights, source="x")


def test_the_prefix_of_a_compiled_model_is_named_in_the_note() -> None:
    names = ["_orig_mod.0.weight", "_orig_mod.0.bias"]
    assert wrapper_note(names, {"0.weight", "0.bias"}) == "tensor names lose '_orig_mod' to fit the model"


class Scaled(nn.Linear):
    """A linear layer whose scale is extra state and changes its output."""

    scale: object = 1.0

    def get_extra_state(self) -> object:
        return {"scale": self.scale}

    def set_extra_state(self, state: dict) -> None:
        self.scale = state["scale"]


def scaled() -> nn.Module:
    return nn.Sequential(Scaled(3, 4), nn.Linear(4, 2))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_extra_state_reaches_the_modules(prefix: str) -> None:
    model, saved = scaled(), scaled()
    saved[0].scale = 2.5
    entries = prefixed(prefix, saved.state_dict())
    extra = {f"{prefix}0._extra_state": entries.pop(f"{prefix}0._extra_state")}
    load_weights(model, entries, source="x", extra=extra)
    assert model[0].scale == 2.5
    assert torch.equal(model[0].weight, saved[0].weight)
    # A path between two checkpoints has weights only; the model's extra state stays.
    load_weights(model, entries, source="x")
    assert model[0].scale == 2.5


@pytest.mark.parametrize(
    ("model", "extra", "expected"),
    [
        (scaled(), {}, "1 missing: 0._extra_state"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), {"0._extra_state": {}}, "1 unexpected: 0._extra_state"),
        (scaled(), {"0._extra_state": {}}, "the model refuses the checkpoint (KeyError: 'scale')"),
    ],
)
def test_extra_state_that_torch_would_refuse_is_an_error(model: nn.Module, extra: dict, expected: str) -> None:
    state = {name: tensor for name, tensor in scaled().state_dict().items() if isinstance(tensor, Tensor)}
    with pytest.raises(DataError, match=re.escape(expected)):
        load_weights(model, state, source="x", extra=extra)


def test_extra_state_of_pickled_bytes_is_not_loaded() -> None:
    model = scaled()
    state = {**scaled().state_dict(), "0._extra_state": torch.tensor([128, 4, 46], dtype=torch.uint8)}
    notes = load_weights(model, state, source="x", extra={})
    assert notes == ("extra state that is bytes, which a module may unpickle, is left out: 0._extra_state",)
    assert model[0].scale == 1.0


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_earlier_names_of_weight_norm_are_loaded_as_torch_loads_them(prefix: str) -> None:
    torch.manual_seed(1)
    saved = nn.Sequential(old_weight_norm(nn.Linear(3, 4)), nn.Sequential(old_weight_norm(nn.Conv1d(4, 2, 1))))
    assert "0.weight_g" in saved.state_dict()
    model, expected = (
        nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.Sequential(weight_norm(nn.Conv1d(4, 2, 1)))) for _ in range(2)
    )
    expected.load_state_dict(saved.state_dict())
    load_weights(model, prefixed(prefix, saved.state_dict()), source="x")
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in model.state_dict().items())
    # A model with the earlier names keeps them, and other parameters called bias_g are not changed.
    again = nn.Sequential(old_weight_norm(nn.Linear(3, 4)), nn.Sequential(old_weight_norm(nn.Conv1d(4, 2, 1))))
    load_weights(again, saved.state_dict(), source="x")
    assert torch.equal(again[0].weight_v, saved[0].weight_v)


class Renaming(nn.Linear):
    """A layer that accepts its earlier parameter names by a hook of its own."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.register_load_state_dict_pre_hook(self.rename)

    @staticmethod
    def rename(module: nn.Module, state: dict, prefix: str, *_: object) -> None:
        if f"{prefix}kernel" in state:
            state[f"{prefix}weight"] = state.pop(f"{prefix}kernel")


def test_names_that_a_models_own_hooks_translate_are_loaded() -> None:
    model = Renaming()
    load_weights(model, {"kernel": torch.ones(2, 3), "bias": torch.zeros(2)}, source="x")
    assert torch.equal(model.weight, torch.ones(2, 3))
    with pytest.raises(DataError, match="1 unexpected: other"):
        load_weights(model, {"kernel": torch.ones(2, 3), "bias": torch.zeros(2), "other": torch.ones(1)}, source="x")
    with pytest.raises(DataError, match="the model refuses the checkpoint"):
        load_weights(model, {"kernel": torch.ones(2, 9), "bias": torch.zeros(2)}, source="x")


@pytest.mark.parametrize(
    ("trained", "copy"),
    [
        ("module.encoder_q", "module.encoder_k"),
        ("student", "ema_teacher"),
        ("online_network", "momentum_network"),
        ("online", "target_net"),
        ("net", "ema"),
        ("model", "avg_model"),
    ],
)
def test_the_trained_one_of_several_networks_is_named_first(trained: str, copy: str) -> None:
    state = network().state_dict()
    state_of_both = prefixed(f"{copy}.", state) | prefixed(f"{trained}.", state)
    keys = f"state_dict.{trained}, state_dict.{copy}; choose one with `state_key='state_dict.{trained}'`"
    with pytest.raises(DataError, match=f"{re.escape(keys)}$"):
        load_weights(network(), state_of_both, source="x", state_key="state_dict")


def random_values(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return a state in which every floating-point tensor has random values of its own."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=draw) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in state.items()
    }


@pytest.mark.parametrize("name", TIED)
def test_loaded_weights_equal_those_that_transformers_loads(name: str) -> None:
    transformers: Any = pytest.importorskip("transformers")
    kind, (family, settings) = getattr(transformers, name), TIED[name]
    config = getattr(transformers, family)(**settings)
    model = kind(config)
    apart = random_values(model.state_dict(), 0)
    ties = set(model.all_tied_weights_keys)
    assert ties
    tied = {key: value for key, value in random_values(model.state_dict(), 1).items() if key not in ties}
    # One model loads the checkpoints of a series one after the other.
    for state in (tied, apart, tied):
        notes = load_weights(model, state, source="x")
        expected = kind.from_pretrained(None, config=copy.deepcopy(config), state_dict=dict(state)).state_dict()
        assert [key for key, value in model.state_dict().items() if not torch.equal(value, expected[key])] == []
        for key in ties if state is apart else ():
            assert any(key in note and "kept apart, as transformers does" in note for note in notes)
        if state is tied:
            assert notes == ()


class Shared(nn.Module):
    """A model with a tensor shared by an embedding and a head, and a layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.words, self.first = nn.Linear(3, 5, bias=False), nn.Embedding(5, 3), nn.Linear(3, 3)
        self.words.weight, self.second = self.head.weight, self.first


def test_loaded_weights_equal_those_that_torch_loads() -> None:
    state = random_values(Shared().state_dict(), 0)
    model, expected = Shared(), Shared()
    notes = load_weights(model, state, source="x")
    expected.load_state_dict(state)
    assert torch.equal(expected.head.weight, state["words.weight"])
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert notes[0] == (
        "head.weight, words.weight are one tensor of the model, but differ in the file: words.weight counts, as in "
        "torch's load_state_dict"
    )
    assert ["second.weight counts" in note for note in notes] == [False, True, False]
    assert load_weights(model, model.state_dict(), source="x") == ()
