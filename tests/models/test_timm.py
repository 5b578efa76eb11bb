"""Tests of timm's models: features equal `forward_head(pre_logits=True)`, sizes are those of the checkpoint."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ckpt_probe.errors import UsageError
from ckpt_probe.models import build_model, class_names, functions_named, model_arguments
from ckpt_probe.models.sizing import Shapes, outline, shapes_of

pytest.importorskip("timm")

FAMILIES = {
    "resnet10t": ("fc", 64, {}),
    "vit_tiny_patch16_224": ("head", 32, {"img_size": 32}),
    "swin_tiny_patch4_window7_224": ("head.fc", 32, {"img_size": 32, "depths": (1, 1, 1, 1)}),
    "convnext_atto": ("head.fc", 64, {}),
    "efficientnet_b0": ("classifier", 64, {}),
    "mobilenetv3_small_050": ("classifier", 64, {}),
    "densenet121": ("classifier", 64, {}),
    "regnetx_002": ("head.fc", 64, {}),
    "mixer_s32_224": ("head", 64, {"img_size": 64}),
    "maxvit_pico_rw_256": ("head.fc", 64, {"img_size": 64}),
    "vgg11": ("head.fc", 32, {"mlp_ratio": 1 / 16}),
    "resnetv2_50x1_bit": ("head.fc", 64, {}),
    "xcit_nano_12_p16_224": ("head", 32, {}),
    "deit_tiny_distilled_patch16_224": ("head+head_dist", 32, {"img_size": 32}),
    "levit_128s": ("head.linear+head_dist.linear", 224, {}),
}
CLASSES = 7


def images(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def shapes(name: str, arguments: dict[str, Any]) -> Shapes:
    return shapes_of(outline(lambda arguments_given: build_model(name, arguments_given), arguments))


@pytest.mark.parametrize("name", FAMILIES)
def test_features_equal_timms_pre_logits(name: str, checked_head: Callable[..., Any]) -> None:
    layer, side, arguments = FAMILIES[name]
    torch.manual_seed(0)
    model: Any = build_model(f"timm:{name}", {"num_classes": CLASSES, **arguments})
    inputs = images(side)
    head, rows = checked_head(model, inputs)
    assert head.name == layer
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(inputs), pre_logits=True)
    features = rows.features
    if len(head.parts) == 2:
        # timm returns the mean of the two tokens, each of which has its own head.
        features = (features[:, : features.shape[1] // 2] + features[:, features.shape[1] // 2 :]) / 2
    if name == "levit_128s":
        # Each head of LeViT begins with a batch norm; the linear layers take its output.
        features = expected = rows.logits
    torch.testing.assert_close(features, expected.flatten(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["resnet10t", "vit_tiny_patch16_224", "mixer_s32_224", "deit_tiny_distilled_patch16_224"]
)
def test_sizes_come_from_the_checkpoint(name: str) -> None:
    _, side, arguments = FAMILIES[name]
    tensors = shapes(f"timm:{name}", {"num_classes": CLASSES, "in_chans": 1, **arguments})
    sizes = model_arguments(f"timm:{name}", input_shape=(1, side, side), classes=10, tensors=tensors)
    assert sizes == {"num_classes": CLASSES, "in_chans": 1, **arguments}
    assert shapes(f"timm:{name}", sizes) == tensors
    wrapped = {f"module.{key}": shape for key, shape in tensors.items()}
    assert model_arguments(f"timm:{name}", tensors=wrapped)["num_classes"] == CLASSES
    # An argument of the caller counts, even if it does not fit.
    assert model_arguments(f"timm:{name}", {"num_classes": 5}, tensors=tensors)["num_classes"] == 5


def test_the_image_size_of_a_vit_comes_from_its_positions() -> None:
    tensors = shapes("timm:vit_tiny_patch16_224", {"num_classes": CLASSES, "img_size": 96})
    assert model_arguments("timm:vit_tiny_patch16_224", tensors=tensors) == {"num_classes": CLASSES, "img_size": 96}


def test_a_head_that_the_published_model_lacks_comes_from_the_checkpoint() -> None:
    name, arguments = "timm:eva02_tiny_patch14_224", {"img_size": 28, "depth": 1}
    for classes in (CLASSES, 1000, 0):
        tensors = shapes(name, {"num_classes": classes, **arguments})
        assert model_arguments(name, {"depth": 1}, tensors=tensors).get("num_classes", 0) == classes


def test_sizes_come_from_the_data_without_a_checkpoint() -> None:
    sizes = model_arguments("timm:vit_tiny_patch16_224", input_shape=(1, 32, 48), classes=4)
    assert sizes == {"num_classes": 4, "in_chans": 1, "img_size": [32, 48]}
    assert model_arguments("timm:resnet10t", {"in_chans": 3}, input_shape=(1, 32, 32), classes=4) == {
        "num_classes": 4,
        "in_chans": 3,
    }


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet10", {}, "model timm:resnet10: timm has no model of that name; did you mean resnet1"),
        ("hf-hub:timm/resnet18", {}, "timm has no model of that name"),
        ("resnet10t", {"pretrained": True}, "model timm:resnet10t: pretrained: weights come from the checkpoint"),
        ("resnet10t", {"checkpoint_path": "a.pth"}, "checkpoint_path: weights come from the checkpoint"),
        ("resnet10t", {"pretrained_cfg": "hf-hub:a/b"}, "pretrained_cfg: expected a table of values"),
        ("resnet10t", {"depth": 3}, "model timm:resnet10t: cannot be built: TypeError: .*'depth'"),
    ],
)
def test_invalid_names_and_arguments_of_timm_are_errors(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model(f"timm:{name}", arguments)


def test_names_of_libraries_are_no_functions_of_the_user() -> None:
    assert functions_named("timm:resnet10t") == []
    assert functions_named("torchvision:resnet18") == []


def test_names_of_classes_come_from_the_configuration() -> None:
    overlay = {"label_names": ["cat", "dog"]}
    model = build_model("timm:resnet10t", {"num_classes": 2, "pretrained_cfg_overlay": overlay})
    assert class_names(model) == ("cat", "dog")
    assert class_names(build_model("timm:resnet10t")) is None
