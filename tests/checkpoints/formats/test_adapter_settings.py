"""Tests of all settings and kinds of PEFT adapters: each is merged as by peft or refused by name."""

import dataclasses
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from ckpt_probe.checkpoints.formats.adapter_changes import HANDLED, WITHOUT_EFFECT

State = dict[str, torch.Tensor]
QUERIES = ["query", "value"]
LAYER = "bert.encoder.layer.1.attention.self.query"
BERT = BertConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=8, num_labels=3,
)  # fmt: skip


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(3, 5, 3)
        self.image = nn.Conv2d(5, 6, 3, padding=1)
        self.point = nn.Conv2d(5, 6, 1)
        self.volume = nn.Conv3d(6, 4, 2)
        self.embedding = nn.Embedding(7, 5)


def bert() -> nn.Module:
    return BertForSequenceClassification(BERT)


def half() -> nn.Module:
    return bert().to(torch.bfloat16)


def double() -> nn.Module:
    return bert().double()


def gpt2() -> nn.Module:
    return GPT2ForSequenceClassification(
        GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=8, num_labels=3, pad_token_id=0)
    )


WITH_EFFECT: list[tuple[str, Any, dict[str, Any]]] = [
    ("peft_type", bert, {}),
    ("lora_alpha", bert, {"lora_alpha": 12}),
    ("alpha_pattern", bert, {"alpha_pattern": {f"^{LAYER}": 7, "layer.0.attention.self.query": 32, "value": 5}}),
    ("use_rslora", bert, {"use_rslora": True, "lora_alpha": 12}),
    ("use_dora", bert, {"use_dora": True, "target_modules": ["query", "word_embeddings"]}),
    ("use_dora", half, {"use_dora": True, "target_modules": ["query", "word_embeddings"]}),
    ("use_dora", gpt2, {"use_dora": True, "fan_in_fan_out": True, "target_modules": ["c_attn"]}),
    ("use_dora", Convolutions, {"use_dora": True, "target_modules": ["line", "image", "point", "volume"]}),
    ("lora_bias", bert, {"lora_bias": True}),
    ("lora_bias", Convolutions, {"lora_bias": True, "target_modules": ["line", "image", "volume"]}),
    ("fan_in_fan_out", gpt2, {"fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj"]}),
    ("fan_in_fan_out", gpt2, {"target_modules": ["c_attn", "c_proj"]}),
    ("fan_in_fan_out", bert, {"fan_in_fan_out": True}),
    ("fan_in_fan_out", gpt2, {"target_modules": ["c_attn", "score"]}),
    ("init_lora_weights", bert, {"target_modules": ["query", "word_embeddings"]}),
    ("init_lora_weights", half, {"target_modules": ["query", "word_embeddings"]}),
    ("init_lora_weights", half, {"init_lora_weights": "mica", "target_modules": ["query", "word_embeddings"]}),
    ("init_lora_weights", double, {}),
    ("init_lora_weights", Convolutions, {"target_modules": ["line", "image", "point", "volume", "embedding"]}),
]
CHANGES_NOTHING: dict[str, dict[str, Any]] = {
    "auto_mapping": {"auto_mapping": {"base_model_class": "X", "parent_library": "y"}},
    "base_model_name_or_path": {"base_model_name_or_path": "some/model"},
    "bias": {"bias": "all", "modules_to_save": ["classifier"]},
    "corda_config": {"corda_config": CordaConfig()},
    "ensure_weight_tying": {"ensure_weight_tying": True},
    "eva_config": {"eva_config": peft.EvaConfig()},
    "exclude_modules": {"exclude_modules": ["layer.1.attention.self.value"]},
    "inference_mode": {"inference_mode": False},
    "layers_pattern": {"layers_pattern": "layer", "layers_to_transform": [1]},
    "layers_to_transform": {"layers_to_transform": 1},
    "loftq_config": {"loftq_config": {"loftq_bits": 4}},
    "lora_dropout": {"lora_dropout": 0.3},
    "lora_ga_config": {"lora_ga_config": LoraGAConfig()},
    "megatron_core": {"megatron_core": "elsewhere.core"},
    "modules_to_save": {"modules_to_save": ["classifier", "pooler"]},
    "peft_version": {"peft_version": "0.0.1"},
    "qalora_group_size": {"qalora_group_size": 8},
    "r": {"r": 3},
    "rank_pattern": {"rank_pattern": {LAYER: 2, "(layer.0).*value": 6}},
    "revision": {"revision": "main"},
    "runtime_config": {},
    "target_modules": {"target_modules": r".*layer\.1.*(query|dense)"},
    "task_type": {"task_type": "SEQ_CLS"},
}
REFUSED: dict[str, Any] = {
    "alora_invocation_tokens": [1, 2],
    "arrow_config": peft.ArrowConfig(),
    "kasa_config": {"beta": 1e-4},
    "layer_replication": [(0, 2), (1, 2)],
    "megatron_config": {"hidden_size": 16},
    "monteclora_config": {"num_samples": 2},
    "target_parameters": ["experts.gate_up_proj"],
    "trainable_token_indices": [1, 3],
    "use_bdlora": {"nblocks": 2},
    "use_qalora": True,
    "velora_config": {"num_groups": 4},
}
STARTS_MERGED: list[Any] = [True, False, "gaussian", "eva", "orthogonal", "mica"]
STARTS_REFUSED: list[Any] = ["olora", "pissa", "pissa_niter_[number of iters]", "corda", "loftq"]


def test_every_setting_of_peft_is_listed_once() -> None:
    with_effect = {field for field, _, _ in WITH_EFFECT}
    fields = [field.name for field in dataclasses.fields(peft.LoraConfig)]
    assert sorted([*with_effect, *CHANGES_NOTHING, *REFUSED]) == sorted(fields)
    assert with_effect == HANDLED
    assert set(CHANGES_NOTHING) == WITHOUT_EFFECT


def test_every_initialisation_of_peft_is_listed_once() -> None:
    kinds = typing.get_args(typing.get_type_hints(peft.LoraConfig)["init_lora_weights"])
    literals = [value for kind in kinds for value in typing.get_args(kind)]
    assert bool in kinds
    assert sorted([*STARTS_MERGED[2:], *STARTS_REFUSED]) == sorted(literals)


@pytest.mark.parametrize(
    ("field", "make", "settings"), WITH_EFFECT, ids=lambda value: getattr(value, "__name__", str(value)[:60])
)
def test_settings_with_effect_are_merged_as_peft_does(
    tmp_path: Path, adapted: Any, changed_as_by_peft: Any, field: str, make: Any, settings: dict[str, Any]
) -> None:
    base, adapter, expected = adapted(tmp_path, make, **settings)
    assert changed_as_by_peft(adapter, base, expected) > 0


@pytest.mark.parametrize("field", CHANGES_NOTHING)
def test_settings_without_effect_are_merged_as_peft_does(
    tmp_path: Path, adapted: Any, changed_as_by_peft: Any, field: str
) -> None:
    base, adapter, expected = adapted(tmp_path, bert, **CHANGES_NOTHING[field])
    assert changed_as_by_peft(adapter, base, expected) > 0


def test_missing_settings_have_the_defaults_of_peft(
    tmp_path: Path, adapted: Any, merged: Any, changed_as_by_peft: Any
) -> None:
    base, adapter, _ = adapted(tmp_path, bert, lora_alpha=5)
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "target_modules": ["query", "value"]}')
    model = bert()
    model.load_state_dict(load_file(base))
    assert changed_as_by_peft(adapter, base, merged(model, adapter)) == 4


@pytest.mark.parametrize("start", STARTS_MERGED)
def test_initialisations_that_do_not_change_the_base_are_merged_as_peft_does(
    tmp_path: Path, adapted: Any, changed_as_by_peft: Any, start: Any
) -> None:
    base, adapter, expected = adapted(tmp_path, bert, init_lora_weights=start)
    assert changed_as_by_peft(adapter, base, expected) == 4


@pytest.fixture(scope="module")
def simple(adapted: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State]:
    base, adapter, _ = adapted(tmp_path_factory.mktemp("peft"), bert)
    return base, load_file(adapter / "adapter_model.safetensors")


@pytest.fixture
def refused(tmp_path: Path, simple: tuple[Path, State], refusal: Any) -> Callable[[peft.PeftConfig], str]:
    """Return a function that saves a configuration with peft and returns the message of the error for the adapter."""

    def message(config: peft.PeftConfig) -> str:
        base, tensors = simple
        config.save_pretrained(str(tmp_path))
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        text = refusal(tmp_path, base)
        assert "merge it with peft's merge_and_unload() and save the result" in text
        return text.partition("adapter_config.json: ")[2]

    return message


@pytest.mark.parametrize("field", REFUSED)
def test_settings_that_are_not_merged_are_refused_by_name(refused: Any, field: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=4, target_modules=QUERIES, **{field: REFUSED[field]})
    assert refused(config).startswith(f"'{field}' is ")


@pytest.mark.parametrize("start", [*STARTS_REFUSED, "pissa_niter_4", "lora_ga", "of a later release"])
def test_initialisations_that_change_the_base_are_refused_by_name(refused: Any, start: str) -> None:
    config = peft.LoraConfig(r=4, target_modules=QUERIES, loftq_config={"loftq_bits": 4} if start == "loftq" else {})
    config.init_lora_weights = start  # pyright: ignore[reportAttributeAccessIssue]
    assert refused(config).startswith(f"init_lora_weights is '{start}'")


@pytest.mark.parametrize("kind", [kind for kind in peft.PeftType if kind != peft.PeftType.LORA])
def test_adapters_of_other_kinds_are_refused_by_name(refused: Any, kind: peft.PeftType) -> None:
    config = PEFT_TYPE_TO_CONFIG_MAPPING[kind].__new__(PEFT_TYPE_TO_CONFIG_MAPPING[kind])
    for field in dataclasses.fields(config):
        missing = field.default_factory is dataclasses.MISSING
        setattr(config, field.name, field.default if missing else field.default_factory())
    config.peft_type = kind
    assert refused(config).startswith(f"an adapter of kind '{kind.value}'")
