"""Tests of detecting the classifier from names and shapes, against the layer that each library names."""

import pytest
import timm
import torch
from torch import nn
from torchvision import models
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

from ckpt_probe.checkpoints import likely_heads, quantised
from ckpt_probe.checkpoints.tensors import layout_of

CLASSES = 7


def detected(model: nn.Module) -> list[str]:
    return [head.module for head in likely_heads(layout_of(model.state_dict()))]


@pytest.mark.parametrize(
    "name",
    ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto", "mobilenetv3_small_050",
     "densenet121", "regnetx_002", "mixer_s32_224", "deit_tiny_distilled_patch16_224", "vgg11"],
)  # fmt: skip
def test_the_detected_layer_is_the_one_that_timm_names(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=CLASSES)
    classifier = model.default_cfg["classifier"]
    expected = list(classifier) if isinstance(classifier, tuple) else [classifier]
    assert detected(model)[: len(expected)] == expected
    head = likely_heads(layout_of(model.state_dict()))[0]
    assert (head.classes, head.bias) == (CLASSES, True)
    assert head.reasons


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet18", "fc"), ("vgg11", "classifier.6"), ("alexnet", "classifier.6"), ("mobilenet_v2", "classifier.1"),
     ("squeezenet1_0", "classifier.1"), ("vit_b_16", "heads.head"), ("swin_t", "head"), ("inception_v3", "fc"),
     ("convnext_tiny", "classifier.2"), ("shufflenet_v2_x0_5", "fc")],
)  # fmt: skip
def test_heads_of_torchvision_models_are_detected(name: str, expected: str) -> None:
    arguments = {"init_weights": False} if name == "inception_v3" else {}
    with torch.device("meta"):
        model = models.get_model(name, num_classes=CLASSES, **arguments)
    assert detected(model)[0] == expected


@pytest.mark.parametrize(
    ("model", "config", "expected"),
    [
        (BertForSequenceClassification, BertConfig(num_labels=CLASSES), "classifier"),
        (RobertaForSequenceClassification, RobertaConfig(num_labels=CLASSES), "classifier.out_proj"),
        (ViTForImageClassification, ViTConfig(num_labels=CLASSES), "classifier"),
        (Wav2Vec2ForSequenceClassification, Wav2Vec2Config(num_labels=CLASSES), "classifier"),
        (GPT2LMHeadModel, GPT2Config(), "lm_head"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_heads_of_transformers_models_are_detected(model: type, config: object, expected: str) -> None:
    with torch.device("meta"):
        assert detected(model(config))[0] == expected


def test_the_last_linear_layer_is_the_head_and_a_backbone_has_none() -> None:
    plain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    assert detected(plain)[0] == "4"
    assert detected(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))) == []
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2, enable_nested_tensor=False)
    assert detected(layers) == []


def test_quantised_tensors_are_detected_from_the_tensors_beside_them() -> None:
    layout = {
        "a.weight": ("U8", (512, 1)), "a.weight.absmax": ("F32", (16,)), "a.weight.quant_map": ("F32", (16,)),
        "a.weight.quant_state.bitsandbytes__nf4": ("U8", (80,)),
        "b.weight": ("I8", (8, 8)), "b.SCB": ("F32", (8,)),
        "c.qweight": ("I32", (1, 8)), "c.qzeros": ("I32", (1, 1)), "c.scales": ("F16", (1, 8)),
        "d.weight": ("F8_E4M3", (8, 8)), "d.weight_scale_inv": ("F32", (1, 1)),
        "e.weight_packed": ("I32", (8, 1)), "e.weight_scale": ("BF16", (8, 1)),
        "f.weight": ("I8", (8, 8)), "norm.weight": ("F32", (8,)), "g.weight": ("F32", (8, 8)), "steps": ("I64", ()),
    }  # fmt: skip
    assert quantised(layout) == {
        "a.weight": "bitsandbytes nf4",
        "b.weight": "bitsandbytes, 8 bits",
        "c.qweight": "GPTQ or AWQ",
        "d.weight": "scaled 8-bit floats",
        "e.weight_packed": "scaled",
        "f.weight": "I8, without a scale",
    }
