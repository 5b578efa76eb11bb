"""Tests of models built for a checkpoint: replaced tensors are not initialised; the others are initialised as usual."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_probe.models import build_model, load_weights
from ckpt_probe.models.sizing import shapes_of

SMALL = {"num_classes": 5}
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "timm:resnet10t": (SMALL, 64),
    "timm:vit_tiny_patch16_224": ({**SMALL, "img_size": 32}, 32),
    "timm:swin_tiny_patch4_window7_224": ({**SMALL, "img_size": 32, "depths": (1, 1, 1, 1)}, 32),
    "timm:xcit_nano_12_p16_224": (SMALL, 32),
    "timm:levit_128s": (SMALL, 224),
    "torchvision:mobilenet_v3_small": (SMALL, 64),
    "torchvision:swin_t": (SMALL, 64),
}


@pytest.fixture
def unknown_memory() -> Iterator[None]:
    """Make torch fill allocated memory with NaN, so that values which are never set are noticed."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("unknown_memory")
def test_an_uninitialised_model_with_a_checkpoints_weights_equals_the_saved_model(name: str) -> None:
    pytest.importorskip(name.partition(":")[0])
    arguments, side = MODELS[name]
    torch.manual_seed(0)
    saved = build_model(name, arguments).eval()
    model = build_model(name, arguments, tensors=shapes_of(saved)).eval()
    assert any(bool(weights.isnan().any()) for weights in model.parameters())
    load_weights(model, saved.state_dict(), source="saved")
    inputs = torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert torch.equal(model(inputs), saved(inputs))


@pytest.mark.usefixtures("unknown_memory")
def test_an_uninitialised_transformers_model_with_saved_weights_equals_the_saved_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    config.save_pretrained(tmp_path)
    arguments = {"task": "audio-classification"}
    saved = build_model(f"hf:{tmp_path}", arguments).eval()
    model = build_model(f"hf:{tmp_path}", arguments, tensors=shapes_of(saved)).eval()
    load_weights(model, saved.state_dict(), source="saved")
    inputs = torch.randn(2, 400)
    with torch.no_grad():
        assert torch.equal(model(inputs).logits, saved(inputs).logits)


def test_an_uninitialised_model_draws_no_random_numbers() -> None:
    pytest.importorskip("timm")
    shapes = shapes_of(build_model("timm:resnet10t", SMALL))
    before = torch.get_rng_state()
    build_model("timm:resnet10t", SMALL, tensors=shapes)
    assert torch.equal(torch.get_rng_state(), before)
    build_model("timm:resnet10t", SMALL)
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_models_function_of_the_user_initialises_as_usual() -> None:
    torch.manual_seed(0)
    expected = torch.nn.Linear(3, 2)
    torch.manual_seed(0)
    model = build_model("torch.nn:Linear", {"in_features": 3, "out_features": 2}, tensors=shapes_of(expected))
    assert torch.equal(model.weight, expected.weight)
