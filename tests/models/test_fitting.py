"""Weights of checkpoints in a model: names without the prefixes of wrappers, and two values for one tensor."""

import copy
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ckpt_probe.errors import DataError
from ckpt_probe.models import fitting_names, load_weights, wrapper_note

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


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def note(model: nn.Module, held: dict[str, Tensor]) -> str | None:
    return wrapper_note(held, set(model.state_dict()))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "encoder.", "backbone.", "module.model.", "a.b.c.", "ema."]
)
def test_a_prefix_is_taken_off_and_told(prefix: str) -> None:
    model, state = network(), network(1).state_dict()
    held = under(prefix, state)
    load_weights(model, held, source="x")
    assert torch.equal(model[0].weight, state["0.weight"])
    told = note(model, held)
    assert told is not None
    assert told.startswith("tensor names lose ")
    assert repr(prefix) in told or prefix == "_orig_mod."
    assert note(model, state) is None


def test_what_lies_beside_the_prefix_is_left_out_and_told() -> None:
    model, state = network(), network(1).state_dict()
    held = under("model.", state) | {"loss.weight": torch.ones(2), "step": torch.ones(())}
    load_weights(model, held, source="x")
    assert note(model, held) == (
        "tensor names lose their prefix 'model.' to fit the model; 2 tensors outside it are left out: loss.weight, step"
    )
    # Below the prefix, and where there is none, everything has to be the model's.
    for more in (under("model.", state) | {"model.more": torch.ones(2)}, state | {"more": torch.ones(2)}):
        with pytest.raises(DataError, match="unexpected"):
            load_weights(model, more, source="x")


def test_wrappers_within_names() -> None:
    model = network(1)
    compiled = copy.deepcopy(model)
    compiled[0] = torch.compile(compiled[0])
    assert "0._orig_mod.weight" in compiled.state_dict()
    load_weights(network(), compiled.state_dict(), source="x")
    # A model that is compiled itself has these names, and keeps them.
    load_weights(compiled, compiled.state_dict(), source="x")
    both = under("module.", compiled.state_dict())
    assert fitting_names(both, set(model.state_dict()))["module.0._orig_mod.weight"] == "0.weight"


def test_two_networks_that_fit_are_an_error_that_names_both() -> None:
    model = network()
    held = under("query.", network(1).state_dict()) | under("key.", network(2).state_dict())
    with pytest.raises(DataError, match=r"under several prefixes: query, key; choose one with `state_key='query'`$"):
        load_weights(model, held, source="x")


def test_counters_of_batch_norm_and_tied_tensors_may_be_absent() -> None:
    model, state = network(), network(1).state_dict()
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    for held in (old, under("module.", old)):
        load_weights(model, held, source="x")
        assert torch.equal(model[2].weight, state["2.weight"])
    tied = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    tied[1].weight = tied[0].weight
    load_weights(tied, {"0.weight": torch.ones(5, 3)}, source="x")
    assert tied[1].weight.eq(1).all()


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({"weight": torch.ones(8, 1, dtype=torch.uint8), "weight.absmax": torch.ones(1)}, "'weight' is uint8"),
        (
            {"weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(1)},
            "'weight_scale_inv' belongs to",
        ),
        ({"m.qweight": torch.ones(1, 4, dtype=torch.int32), "m.scales": torch.ones(1, 4)}, "'m.qweight' belongs to"),
    ],
)
def test_quantised_weights_are_told_before_what_does_not_fit(held: dict[str, Tensor], told: str) -> None:
    with pytest.raises(DataError, match=told):
        load_weights(nn.Linear(4, 4, bias=False), held, source="x")


def test_what_compilation_put_before_the_names_is_said() -> None:
    names = ["_orig_mod.0.weight", "_orig_mod.0.bias"]
    assert wrapper_note(names, {"0.weight", "0.bias"}) == "tensor names lose '_orig_mod' to fit the model"


class Scaled(nn.Linear):
    """A linear layer whose scale is extra state, and part of its forward pass."""

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
    entries = under(prefix, saved.state_dict())
    extra = {f"{prefix}0._extra_state": entries.pop(f"{prefix}0._extra_state")}
    load_weights(model, entries, source="x", extra=extra)
    assert model[0].scale == 2.5
    assert torch.equal(model[0].weight, saved[0].weight)
    # A path between two checkpoints has weights alone: the model keeps what it has.
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


def test_extra_state_that_is_bytes_is_never_handed_over() -> None:
    model = scaled()
    state = {**scaled().state_dict(), "0._extra_state": torch.tensor([128, 4, 46], dtype=torch.uint8)}
    load_weights(model, state, source="x", extra={})
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
    load_weights(model, under(prefix, saved.state_dict()), source="x")
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in model.state_dict().items())
    # A model that still has these names keeps them, as does another one's bias_g.
    again = nn.Sequential(old_weight_norm(nn.Linear(3, 4)), nn.Sequential(old_weight_norm(nn.Conv1d(4, 2, 1))))
    load_weights(again, saved.state_dict(), source="x")
    assert torch.equal(again[0].weight_v, saved[0].weight_v)


class Renaming(nn.Linear):
    """A layer that takes the names of its earlier versions, by a hook of its own."""

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
def test_of_several_networks_the_trained_one_is_named_first(trained: str, copy: str) -> None:
    state = network().state_dict()
    both = under(f"{copy}.", state) | under(f"{trained}.", state)
    keys = f"state_dict.{trained}, state_dict.{copy}; choose one with `state_key='state_dict.{trained}'`"
    with pytest.raises(DataError, match=f"{re.escape(keys)}$"):
        load_weights(network(), both, source="x", state_key="state_dict")


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
