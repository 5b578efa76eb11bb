"""Tests of the description of a head and a forward pass, on inputs made up from the model's configuration."""

from typing import Any

import pytest
import torch
from torch import nn

from ckpt_probe.errors import UsageError
from ckpt_probe.models import build_model, describe_head, find_head, format_head, made_up_inputs


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("mlp", {"input_shape": [1, 8, 8], "classes": 3}, (2, 1, 8, 8)),
        ("timm:resnet10t", {"in_chans": 1}, (2, 1, 176, 176)),
        ("timm:vit_tiny_patch16_224", {"img_size": [32, 48]}, (2, 3, 32, 48)),
        ("torchvision:resnet18", {}, (2, 3, 224, 224)),
        ("torchvision:vit_b_32", {"image_size": 64}, (2, 3, 64, 64)),
    ],
)
def test_made_up_images_have_the_shape_that_the_model_takes(
    name: str, arguments: dict[str, Any], shape: tuple[int, ...]
) -> None:
    if ":" in name:
        pytest.importorskip(name.partition(":")[0])
    model = build_model(name, arguments)
    inputs = made_up_inputs(model, arguments)
    assert isinstance(inputs, torch.Tensor)
    assert inputs.shape == shape
    assert torch.equal(inputs, made_up_inputs(model, arguments))  # pyright: ignore[reportArgumentType]


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def test_made_up_inputs_of_transformers_are_texts_or_images() -> None:
    transformers = pytest.importorskip("transformers")
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=12, **TINY))
    text = made_up_inputs(bert, {})
    assert isinstance(text, dict)
    assert text["input_ids"].shape == text["attention_mask"].shape == (2, 8)
    assert (text["input_ids"] != 0).all()  # 0 is padding
    vit = transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, **TINY)
    )
    assert made_up_inputs(vit, {}).shape == (2, 1, 8, 8)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_model_without_known_inputs_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"the inputs of the model are not known; name data .* with `data=`"):
        made_up_inputs(nn.Linear(3, 2), {})


def test_the_description_has_the_head_and_the_result_of_one_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.Softmax(dim=1))
    inputs = torch.randn(2, 6)
    facts = describe_head(find_head(model, inputs), model, inputs)
    confidence = facts.pop("confidence")
    with torch.no_grad():
        expected = model(inputs)[0]
    assert confidence == pytest.approx(float(expected.max()))
    assert facts == {
        "layer": "2",
        "type": "Linear",
        "kind": "linear",
        "why": "the model's output is the softmax of its output",
        "rows": "one a sample",
        "classes": 3,
        "features": 5,
        "bias": True,
        "inputs": "(6,) of float32",
        "output": [1, 3],
        "prediction": int(expected.argmax()),
    }
    assert format_head({**facts, "confidence": confidence}) == [
        "head: 2 (Linear, linear), 3 classes × 5 features, with bias: the model's output is the softmax of its output",
        f"forward pass: (6,) of float32 → 1 × 3, class {int(expected.argmax())} ({confidence:.1%})",
    ]


def test_nan_outputs_have_no_confidence() -> None:
    model = nn.Linear(6, 3)
    inputs = torch.randn(2, 6)
    head = find_head(model, inputs)
    with torch.no_grad():
        model.weight.fill_(torch.nan)
    facts = describe_head(head, model, inputs)
    assert facts["confidence"] is None
