"""Fixtures for tests of texts: small models of transformers with a tokenizer of letters, and documents."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = ("<pad>", "<unk>", "<mask>", *"abcdefghijklmnopqrstuvwxyz")
TINY = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
SMALL = {"vocab_size": len(WORDS), "max_position_embeddings": 16, "pad_token_id": 0}
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
GPT2 = {"vocab_size": len(WORDS), "n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 16}
CAPPED = {"final_logit_softcapping": 0.5}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {**GPT2, **ENDS}),
    "gpt_neox": ("GPTNeoX", {**SMALL, **TINY, **ENDS}),
    "llama": ("Llama", {**SMALL, **TINY, **ENDS, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2", {**SMALL, **TINY, **ENDS, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2", {**SMALL, **TINY, **ENDS, "num_key_value_heads": 1, "head_dim": 6, **CAPPED}),
    "cohere": ("Cohere", {**SMALL, **TINY, **ENDS, "num_key_value_heads": 1, "logit_scale": 0.5}),
    "granite": ("Granite", {**SMALL, **TINY, **ENDS, "num_key_value_heads": 1, "logits_scaling": 3.0}),
    "bert": ("Bert", {**SMALL, **TINY}),
    "distilbert": (
        "DistilBert",
        {**SMALL, "dim": 12, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    ),
    "vit": ("ViT", {**TINY, "image_size": 8, "patch_size": 4, "num_channels": 1}),
}


@pytest.fixture(scope="session")
def save_model() -> Callable[..., Any]:
    """Return a function that saves a random model of transformers with a tokenizer of letters, and returns it."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    def save(name: str, task: str, directory: Path, *, seed: int = 0) -> Any:
        family, settings = MODELS[name]
        torch.manual_seed(seed)
        model = getattr(transformers, f"{family}{task}")(getattr(transformers, f"{family}Config")(**settings)).eval()
        with torch.no_grad():
            for weights in model.parameters():
                weights.mul_(4 if weights.ndim > 1 else 1)
        model.save_pretrained(directory)
        tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
        special = {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
        return model

    return save


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write twelve documents of 2 to 24 words as JSON Lines, and return the file."""
    draw = torch.Generator().manual_seed(0)
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lengths = (3, 9, 2, 16, 24, 5, 17, 8, 2, 11, 4, 20)
    texts = [" ".join(WORDS[n] for n in torch.randint(3, len(WORDS), (k,), generator=draw).tolist()) for k in lengths]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file
