"""Tests of PEFT adapters merged onto their base: the weights equal those of peft's merge_and_unload, or are refused."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from ckpt_probe.checkpoints import open_checkpoint, open_series
from ckpt_probe.cli.app import run
from ckpt_probe.errors import DataError, UsageError

BERT = BertConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=8, num_labels=3,
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=8, num_labels=3, pad_token_id=0)


def bert() -> nn.Module:
    return BertForSequenceClassification(BERT)


def gpt2() -> nn.Module:
    return GPT2ForSequenceClassification(GPT2)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("lora_bias", [False, True])
def test_second_copies_of_a_classification_head_are_not_listed(
    tmp_path: Path, adapted: Any, changed_as_by_peft: Any, bias: str, lora_bias: bool
) -> None:
    base, adapter, expected = adapted(tmp_path, bert, bias=bias, lora_bias=lora_bias, task_type="SEQ_CLS")
    copies = [name for name in load_file(adapter / "adapter_model.safetensors") if "original_module" in name]
    assert bool(copies) == (bias == "all")
    assert changed_as_by_peft(adapter, base, expected) > 4
    with open_checkpoint(adapter, base=base) as checkpoint:
        assert checkpoint.format == "PEFT adapter merged onto safetensors"
        assert checkpoint.facts["adapter"]["changed"] == 4


def test_a_copy_without_the_trained_module_is_an_error(tmp_path: Path, adapted: Any, refusal: Any) -> None:
    base, adapter, _ = adapted(tmp_path, bert, bias="all", task_type="SEQ_CLS")
    file = adapter / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if not name.endswith("model.classifier.bias")}, file)
    assert "classifier.original_module.bias' is a second copy of a module whose trained one is missing" in refusal(
        adapter, base
    )


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_an_adapter_of_another_precision_is_merged_as_peft_does(
    tmp_path: Path, adapted: Any, merged: Any, changed_as_by_peft: Any, kind: torch.dtype
) -> None:
    base, adapter, _ = adapted(tmp_path, bert, use_dora=True, modules_to_save=["classifier"])
    start = load_file(base)
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor.to(kind) for name, tensor in load_file(file).items()}, file)
    model = bert()
    model.load_state_dict(start)
    assert changed_as_by_peft(adapter, base, merged(model, adapter)) > 0


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_converted_to_the_unchanged_base_is_merged(
    tmp_path: Path, changed_as_by_peft: Any, start: Any
) -> None:
    torch.manual_seed(0)
    model = bert()
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, tmp_path / "base.safetensors")
    config = peft.LoraConfig(r=4, target_modules=["query"], init_lora_weights=start)
    wrapped = peft.get_peft_model(model, config)
    config.init_lora_weights = True
    wrapped.save_pretrained(tmp_path / "initial")
    config.init_lora_weights = start
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    wrapped.save_pretrained(tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    expected = dict(wrapped.merge_and_unload().state_dict())
    assert changed_as_by_peft(tmp_path / "adapter", tmp_path / "base.safetensors", expected) == 2


def test_an_adapter_that_eva_initialised_from_data_is_merged(
    tmp_path: Path, merged: Any, changed_as_by_peft: Any
) -> None:
    torch.manual_seed(0)
    model = bert()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(start, tmp_path / "base.safetensors")
    config = peft.LoraConfig(
        r=2,
        target_modules=["query", "intermediate.dense", "attention.output.dense"],
        init_lora_weights="eva",
        eva_config=peft.EvaConfig(rho=2.0),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, config)
        batches = [{"input_ids": torch.randint(0, 30, (8, 8))} for _ in range(4)]
        peft.initialize_lora_eva_weights(wrapped, batches, show_progress_bar=False)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
        wrapped.save_pretrained(tmp_path / "adapter")
    fresh = bert()
    fresh.load_state_dict(start)
    assert changed_as_by_peft(tmp_path / "adapter", tmp_path / "base.safetensors", merged(fresh, tmp_path / "adapter"))


def test_a_square_weight_is_refused_if_the_model_has_linear_and_transposed_layers(
    tmp_path: Path, adapted: Any, refusal: Any
) -> None:
    base, adapter, _ = adapted(tmp_path, gpt2, target_modules=["attn.c_proj", "score"])
    assert "changes the square weight 'transformer.h.0.attn.c_proj' of a model that has both kinds" in refusal(
        adapter, base
    )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, groups=2)


@pytest.mark.parametrize(
    ("make", "module", "message"),
    [
        (Attention, "attention", "attention.base_layer.out_proj.lora_A.weight' is of a kind that is not merged here"),
        (Grouped, "grouped", "changes 'grouped.weight' by "),
    ],
)
def test_layers_that_are_not_merged_are_refused(
    tmp_path: Path, trained: Any, refusal: Any, make: Any, module: str, message: str
) -> None:
    model = make()
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, tmp_path / "base.safetensors")
    trained(model, tmp_path / "adapter", target_modules=[module])
    assert message in refusal(tmp_path / "adapter", tmp_path / "base.safetensors")


@pytest.fixture(scope="module")
def simple(adapted: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    return adapted(tmp_path_factory.mktemp("peft"), bert, modules_to_save=["classifier"])


def test_several_pickled_adapters_of_one_model_are_merged(tmp_path: Path, merged: Any) -> None:
    torch.manual_seed(0)
    model = bert()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(start, tmp_path / "base.safetensors")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["query"]))
    wrapped.add_adapter("second", peft.LoraConfig(r=2, target_modules=["value"], lora_alpha=3))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(tmp_path / "adapter", safe_serialization=False)
    for adapter in (tmp_path / "adapter", tmp_path / "adapter" / "second"):
        assert (adapter / "adapter_model.bin").is_file()
        fresh = bert()
        fresh.load_state_dict(start)
        with open_checkpoint(adapter, base=tmp_path / "base.safetensors") as checkpoint:
            for name, tensor in merged(fresh, adapter).items():
                torch.testing.assert_close(checkpoint.read(name), tensor, rtol=1e-6, atol=1e-6, msg=name)


def test_commands_read_the_merged_tensors(
    simple: tuple[Path, Path, dict[str, torch.Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter, expected = simple
    mean = tmp_path / "mean.safetensors"
    assert run(["average", str(adapter), str(base), "--set", f"base={base}", "-o", str(mean)]) == 0
    start = load_file(base)
    for name, tensor in load_file(mean).items():
        torch.testing.assert_close(tensor, (expected[name] + start[name]) / 2, rtol=1e-6, atol=1e-6, msg=name)
    assert run(["inspect", str(adapter), "--set", f"base={base}"]) == 0
    output = capsys.readouterr().out
    assert f"parameters: {sum(tensor.numel() for tensor in expected.values()):,}" in output
    assert "lora_" not in output


def test_without_its_base_an_adapter_is_refused_and_the_error_names_the_option(
    simple: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    base, adapter, _ = simple
    copied = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((copied / "adapter_config.json").read_text())
    # The base in the configuration is named in the message but not opened, although it exists.
    (copied / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    with pytest.raises(UsageError, match=rf"adapter_model\.safetensors: a PEFT adapter.*{base.name}.*with `base=`"):
        open_checkpoint(copied).__enter__()


def test_the_base_may_have_any_format_and_other_prefixes_of_names(
    simple: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    base, adapter, expected = simple
    state = load_file(base)
    torch.save({"model": state, "epoch": 3}, tmp_path / "base.pth")
    bare = {name.removeprefix("bert."): tensor for name, tensor in state.items() if name.startswith("bert.")}
    save_file(bare, tmp_path / "backbone.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "wrapped.safetensors")
    for name in ("base.pth", "backbone.safetensors", "wrapped.safetensors"):
        with open_checkpoint(adapter, base=tmp_path / name) as checkpoint:
            assert checkpoint.names == sorted(expected), name
            for weight in ("bert.encoder.layer.0.attention.self.query.weight", "classifier.weight"):
                assert torch.allclose(checkpoint.read(weight), expected[weight], atol=1e-6)


def test_hash_and_size_are_those_of_adapter_and_base(simple: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, adapter, _ = simple
    save_file({name: tensor + 1 for name, tensor in load_file(base).items()}, tmp_path / "base.safetensors")
    with open_checkpoint(adapter, base=base) as first, open_checkpoint(adapter, base=tmp_path / base.name) as second:
        assert first.content_hash() != second.content_hash()
        assert base in first.files
        assert first.size > base.stat().st_size


def test_a_run_of_adapters_is_a_series(simple: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, adapter, _ = simple
    for step in (5, 10):
        shutil.copytree(adapter, tmp_path / "run" / f"checkpoint-{step}")
    members = open_series(tmp_path / "run", base=base)
    assert [(member.name, member.step) for member in members] == [("checkpoint-5", 5), ("checkpoint-10", 10)]


def test_invalid_and_unsupported_adapters_are_refused(simple: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, adapter, _ = simple

    def changed(name: str, config: dict[str, Any] | None = None, tensors: Any = None) -> Path:
        copied = shutil.copytree(adapter, tmp_path / name)
        if config is not None:
            saved = json.loads((copied / "adapter_config.json").read_text())
            (copied / "adapter_config.json").write_text(json.dumps(saved | config))
        if tensors is not None:
            save_file(tensors(load_file(copied / "adapter_model.safetensors")), copied / "adapter_model.safetensors")
        return copied

    a = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
    for path, message in (
        (changed("later", {"of_a_later_release": {"a": 1}}), "'of_a_later_release' is {'a': 1}, which is not merged"),
        (changed("alpha", {"lora_alpha": "many"}), "lora_alpha is 'many', expected a number"),
        (changed("infinite", {"lora_alpha": float("inf")}), "lora_alpha is inf, expected a number"),
        (changed("list", {"alpha_pattern": [1]}), r"alpha_pattern is \[1\], expected numbers by names of modules"),
        (changed("text", {"alpha_pattern": {"query": "x"}}), "alpha_pattern of 'query' is 'x', expected a number"),
        (changed("pattern", {"alpha_pattern": {"(a+)+": 1}}), r"alpha_pattern has '\(a\+\)\+', a regular expression"),
        (changed("dora", {"use_dora": True}), "has the parts a, b, where its configuration says a, b, magnitude"),
        (
            changed("half", None, lambda t: {n: v for n, v in t.items() if n != a}),
            "'bert.*' has the parts b, where .* a, b",
        ),
        (changed("wide", None, lambda t: t | {a: torch.ones(4, 17)}), r"has shape \(16, 16\)"),
        (changed("rank", None, lambda t: t | {a: torch.ones(5, 16)}), r"has shape \(16, 16\)"),
        (
            changed("complex", None, lambda t: t | {a: torch.ones(4, 16, dtype=torch.complex64)}),
            r"lora_A\.weight' is C64; only floating-point numbers are merged",
        ),
        (
            changed("else", None, lambda t: t | {"base_model.model.x.lora_C.weight": torch.ones(2)}),
            "of a kind that is not merged here",
        ),
        (
            changed("name", None, lambda t: {n.replace("query", "quarry"): v for n, v in t.items()}),
            r"does not fit its base .*which has no bert\.encoder\.layer\.0\.attention\.self\.quarry\.weight",
        ),
    ):
        with pytest.raises(DataError, match=message):
            open_checkpoint(path, base=base).__enter__()
    unused = {"of_a_later_release": None, "and_another": False, "and_a_third": [], "and_a_fourth": {}}
    with open_checkpoint(changed("unused", unused), base=base):
        pass
    (tmp_path / "half" / "adapter_config.json").write_text("{")
    with pytest.raises(DataError, match=r"adapter_config\.json: not an adapter's configuration"):
        open_checkpoint(tmp_path / "half", base=base).__enter__()


def test_an_adapter_of_quantised_weights_is_refused(simple: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, adapter, _ = simple
    state = load_file(base)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    save_file(state | {name: torch.ones(16, 16, dtype=torch.int8)}, tmp_path / "base.safetensors")
    with pytest.raises(DataError, match=rf"tensor '{name}' is I8: an adapter cannot be merged onto quantised"):
        open_checkpoint(adapter, base=tmp_path / "base.safetensors").__enter__()


def test_a_base_with_earlier_names_of_tensors_is_merged(tmp_path: Path) -> None:
    """transformers saves a ViT with the names of earlier versions; adapters have the current names."""
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **size))
    model.save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(
            model, peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=["classifier"])
        )
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                nn.init.normal_(parameter, std=0.3)
        wrapped.save_pretrained(tmp_path / "adapter")
        merged = wrapped.merge_and_unload().state_dict()
    with open_checkpoint(tmp_path / "adapter", base=tmp_path / "base") as checkpoint:
        assert checkpoint.names == sorted(merged)
        assert checkpoint.config_directory == tmp_path / "base"
        for name, tensor in merged.items():
            torch.testing.assert_close(checkpoint.read(name), tensor, rtol=1e-6, atol=1e-6)
    (tmp_path / "base" / "config.json").unlink()
    with (
        pytest.raises(DataError, match=r"does not fit its base .*, which has no vit"),
        open_checkpoint(tmp_path / "adapter", base=tmp_path / "base"),
    ):
        pass
