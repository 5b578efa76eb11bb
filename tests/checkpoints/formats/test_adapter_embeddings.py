"""Tests of adapters of language models: changes of heads and embeddings, also tied ones, are merged as by peft."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from ckpt_probe.checkpoints import open_checkpoint

LLAMA = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **LLAMA))


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["lm_head", "embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head"], "use_rslora": True},
        {"target_modules": ["embed_tokens"], "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["lm_head", "q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": "all-linear", "bias": "all"},
    ],
    ids=str,
)
def test_heads_and_embeddings_are_merged_if_their_base_layer_is_saved_too(
    tmp_path: Path, adapted: Any, changed_as_by_peft: Any, settings: dict[str, Any]
) -> None:
    base, adapter, expected = adapted(tmp_path, llama, **settings)
    if "modules_to_save" in settings:
        # A configuration beside the base says that head and embedding are not tied.
        llama().config.save_pretrained(base.parent)
    assert changed_as_by_peft(adapter, base, expected) > 0


@pytest.fixture
def tied(tmp_path: Path) -> Any:
    """Save a base with tied head and embedding, in files with one name or both; return a function that loads it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **LLAMA))
    model.save_pretrained(tmp_path / "base")
    torch.save(model.state_dict(), tmp_path / "both.pth")
    return lambda: LlamaForCausalLM.from_pretrained(tmp_path / "base")


@pytest.mark.parametrize("modules", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]], ids=str)
@pytest.mark.parametrize("base", ["base", "both.pth"])
def test_a_saved_embedding_is_no_longer_tied(
    tmp_path: Path, tied: Any, trained: Any, merged: Any, modules: list[str], base: str
) -> None:
    trained(tied(), tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=modules)
    expected = merged(tied(), tmp_path / "adapter")
    assert not torch.equal(expected[EMBEDDING], expected[HEAD])
    with open_checkpoint(tmp_path / "adapter", base=tmp_path / base) as checkpoint:
        assert checkpoint.names == sorted(expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(checkpoint.read(name), tensor, rtol=1e-6, atol=1e-6, msg=name)


def test_a_tied_embedding_with_one_name_in_the_file_is_merged(
    tmp_path: Path, tied: Any, trained: Any, merged: Any
) -> None:
    trained(tied(), tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    expected = merged(tied(), tmp_path / "adapter")
    assert torch.equal(expected[EMBEDDING], expected[HEAD])
    with open_checkpoint(tmp_path / "adapter", base=tmp_path / "base") as checkpoint:
        assert checkpoint.names == sorted(set(expected) - {HEAD})
        torch.testing.assert_close(checkpoint.read(EMBEDDING), expected[EMBEDDING], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("modules", "base", "message"),
    [
        (["lm_head"], "base", rf"changes '{HEAD}', in its base the same tensor as '{EMBEDDING}'"),
        (["lm_head", "embed_tokens"], "base", "in its base the same tensor as"),
        (["lm_head"], "both.pth", rf"changes '{HEAD}', in its base the same tensor as '{EMBEDDING}'"),
        (["embed_tokens"], "both.pth", rf"changes '{EMBEDDING}', in its base the same tensor as '{HEAD}'"),
    ],
    ids=str,
)
def test_changes_of_tied_weights_are_refused_if_peft_adds_them_up(
    tmp_path: Path, tied: Any, trained: Any, refusal: Any, modules: list[str], base: str, message: str
) -> None:
    trained(tied(), tmp_path / "adapter", target_modules=[*modules, "q_proj"])
    assert message in refusal(tmp_path / "adapter", tmp_path / base)


def test_an_adapter_of_an_enlarged_vocabulary_is_merged(tmp_path: Path, trained: Any, merged: Any) -> None:
    torch.manual_seed(0)
    llama().save_pretrained(tmp_path / "base")  # pyright: ignore[reportCallIssue]

    def enlarged() -> Any:
        model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
        model.resize_token_embeddings(45)
        return model

    trained(enlarged(), tmp_path / "adapter", target_modules=["embed_tokens", "lm_head", "q_proj"])
    expected = merged(enlarged(), tmp_path / "adapter")
    with open_checkpoint(tmp_path / "adapter", base=tmp_path / "base") as checkpoint:
        assert checkpoint.shape(HEAD) == (45, 16)
        for name, tensor in expected.items():
            torch.testing.assert_close(checkpoint.read(name), tensor, rtol=1e-6, atol=1e-6, msg=name)
