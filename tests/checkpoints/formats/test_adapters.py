"""PEFT adapters merged onto their base: the same weights as peft's own merge_and_unload gives."""

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
from ckpt_probe.errors import DataError, UsageError

BERT = BertConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=8, num_labels=3,
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=8, num_labels=3, pad_token_id=0)
QUERIES = ["query", "value"]


class Convolutions(nn.Module):
    """Two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 5, 3)
        self.two = nn.Conv2d(5, 6, 1)
        self.head = nn.Linear(6, 2)


def bert() -> nn.Module:
    return BertForSequenceClassification(BERT)


def gpt2() -> nn.Module:
    return GPT2ForSequenceClassification(GPT2)


def adapted(folder: Path, make: Any, **config: Any) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """Base and adapter as files, the adapter's numbers random, and the state dict of peft's own merge."""
    torch.manual_seed(0)
    model = make()
    base = folder / "base.safetensors"
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**config))
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                nn.init.normal_(parameter, std=0.3)
        wrapped.save_pretrained(folder / "adapter")
        merged = wrapped.merge_and_unload()
    return base, folder / "adapter", dict(merged.state_dict())


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (bert, {"r": 4, "lora_alpha": 12, "target_modules": QUERIES}),
        (bert, {"r": 4, "lora_alpha": 12, "target_modules": QUERIES, "use_rslora": True}),
        (bert, {"r": 4, "target_modules": QUERIES, "modules_to_save": ["classifier"]}),
        (bert, {"r": 4, "target_modules": QUERIES, "task_type": "SEQ_CLS"}),
        (bert, {"r": 4, "target_modules": QUERIES, "lora_bias": True}),
        (bert, {"r": 4, "target_modules": QUERIES, "bias": "all"}),
        (bert, {"r": 4, "target_modules": QUERIES, "use_dora": True}),
        (bert, {"r": 4, "target_modules": ["word_embeddings", "query"]}),
        (
            bert,
            {
                "r": 4,
                "target_modules": QUERIES,
                "rank_pattern": {"layer.1.attention.self.query": 2},
                "alpha_pattern": {"layer.1.attention.self.query": 32},
            },
        ),
        (gpt2, {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
        (gpt2, {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
        (Convolutions, {"r": 2, "target_modules": ["one", "two"], "modules_to_save": ["head"]}),
    ],
    ids=lambda value: ",".join(map(str, value)) if isinstance(value, dict) else value.__name__,
)
def test_the_merge_is_pefts_own(tmp_path: Path, make: Any, config: dict[str, Any]) -> None:
    base, adapter, expected = adapted(tmp_path, make, **config)
    changed = 0
    with open_checkpoint(adapter, base=base) as checkpoint, open_checkpoint(base) as before:
        assert checkpoint.names == sorted(expected)
        assert checkpoint.format == "PEFT adapter merged onto safetensors"
        for name, tensor in expected.items():
            found = checkpoint.read(name)
            assert found.dtype == tensor.dtype
            assert torch.allclose(found, tensor, rtol=1e-6, atol=1e-6), name
            assert checkpoint.shape(name) == tuple(tensor.shape)
            changed += not torch.equal(found, before.read(name))
        assert changed >= checkpoint.facts["adapter"]["changed"] > 0


@pytest.fixture(scope="module")
def simple(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    return adapted(tmp_path_factory.mktemp("peft"), bert, r=4, target_modules=QUERIES, modules_to_save=["classifier"])


def test_half_precision_is_rounded_as_peft_rounds_it(tmp_path: Path) -> None:
    base, adapter, expected = adapted(tmp_path, lambda: bert().to(torch.bfloat16), r=4, target_modules=QUERIES)
    with open_checkpoint(adapter, base=base) as checkpoint:
        for name, tensor in expected.items():
            assert torch.equal(checkpoint.read(name), tensor), name


def test_without_its_base_it_is_said_how_to_name_it(simple: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, adapter, _ = simple
    copied = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((copied / "adapter_config.json").read_text())
    # What the configuration names is told, and not opened on its word, even where it is there.
    (copied / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    with pytest.raises(UsageError, match=rf"adapter_model\.safetensors: a PEFT adapter.*{base.name}.*--base PATH"):
        open_checkpoint(copied).__enter__()


def test_a_base_of_any_format_and_of_other_first_names(simple: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, adapter, expected = simple
    held = load_file(base)
    torch.save({"model": held, "epoch": 3}, tmp_path / "base.pth")
    bare = {name.removeprefix("bert."): tensor for name, tensor in held.items() if name.startswith("bert.")}
    save_file(bare, tmp_path / "backbone.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in held.items()}, tmp_path / "wrapped.safetensors")
    for name in ("base.pth", "backbone.safetensors", "wrapped.safetensors"):
        with open_checkpoint(adapter, base=tmp_path / name) as checkpoint:
            assert checkpoint.names == sorted(expected), name
            for own in ("bert.encoder.layer.0.attention.self.query.weight", "classifier.weight"):
                assert torch.allclose(checkpoint.read(own), expected[own], atol=1e-6)


def test_hash_and_size_are_of_both(simple: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, adapter, _ = simple
    save_file({name: tensor + 1 for name, tensor in load_file(base).items()}, tmp_path / "base.safetensors")
    with open_checkpoint(adapter, base=base) as one, open_checkpoint(adapter, base=tmp_path / base.name) as other:
        assert one.content_hash() != other.content_hash()
        assert base in one.files
        assert one.size > base.stat().st_size


def test_a_series_of_adapters(simple: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, adapter, _ = simple
    for step in (5, 10):
        shutil.copytree(adapter, tmp_path / "run" / f"checkpoint-{step}")
    members = open_series(tmp_path / "run", base=base)
    assert [(member.name, member.step) for member in members] == [("checkpoint-5", 5), ("checkpoint-10", 10)]


def test_adapters_that_are_not_merged(simple: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, adapter, _ = simple

    def changed(name: str, config: dict[str, Any] | None = None, tensors: Any = None) -> Path:
        copied = shutil.copytree(adapter, tmp_path / name)
        if config is not None:
            held = json.loads((copied / "adapter_config.json").read_text())
            (copied / "adapter_config.json").write_text(json.dumps(held | config))
        if tensors is not None:
            save_file(tensors(load_file(copied / "adapter_model.safetensors")), copied / "adapter_model.safetensors")
        return copied

    a = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
    for path, told in (
        (changed("ia3", {"peft_type": "IA3"}), "an adapter of kind 'IA3', only LORA is merged here"),
        (changed("alpha", {"lora_alpha": "many"}), "lora_alpha is 'many', expected a number"),
        (changed("pattern", {"alpha_pattern": {"(": 1}}), "alpha_pattern cannot be read"),
        (changed("half", None, lambda t: {n: v for n, v in t.items() if n != a}), "one of the two matrices for 'bert"),
        (changed("wide", None, lambda t: t | {a: torch.ones(4, 17)}), r"has shape \(16, 16\)"),
        (changed("rank", None, lambda t: t | {a: torch.ones(5, 16)}), r"has shape \(16, 16\)"),
        (
            changed("else", None, lambda t: t | {"base_model.model.x.lora_C.weight": torch.ones(2)}),
            "of a kind that is not merged here",
        ),
        (
            changed("name", None, lambda t: {n.replace("query", "quarry"): v for n, v in t.items()}),
            r"does not fit its base .*which has no bert\.encoder\.layer\.0\.attention\.self\.quarry\.weight",
        ),
    ):
        with pytest.raises(DataError, match=told):
            open_checkpoint(path, base=base).__enter__()
    (tmp_path / "half" / "adapter_config.json").write_text("{")
    with pytest.raises(DataError, match=r"adapter_config\.json: not an adapter's configuration"):
        open_checkpoint(tmp_path / "half", base=base).__enter__()


def test_an_adapter_onto_quantised_weights(simple: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, adapter, _ = simple
    held = load_file(base)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    save_file(held | {name: torch.ones(16, 16, dtype=torch.int8)}, tmp_path / "base.safetensors")
    with pytest.raises(DataError, match=rf"tensor '{name}' is I8: an adapter cannot be merged onto quantised"):
        open_checkpoint(adapter, base=tmp_path / "base.safetensors").__enter__()


def test_a_base_whose_file_has_earlier_names(tmp_path: Path) -> None:
    """transformers writes a ViT by the names of its earlier versions; its adapters have those of today."""
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
