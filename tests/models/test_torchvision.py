"""Tests of torchvision's models, one per family: features equal its feature extractor's before the last layer."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_probe.errors import UsageError
from ckpt_probe.models import build_model, model_arguments
from ckpt_probe.models.sizing import Shapes, outline, shapes_of

pytest.importorskip("torchvision")
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

FAMILIES = {
    "alexnet": ("classifier.6", 64),
    "convnext_tiny": ("classifier.2", 32),
    "densenet121": ("classifier", 32),
    "efficientnet_b0": ("classifier.1", 32),
    "googlenet": ("fc", 64),
    "inception_v3": ("fc", 80),
    "maxvit_t": ("classifier.5", 224),
    "mnasnet0_5": ("classifier.1", 32),
    "mobilenet_v2": ("classifier.1", 32),
    "mobilenet_v3_small": ("classifier.3", 32),
    "regnet_x_400mf": ("fc", 32),
    "resnet18": ("fc", 32),
    "shufflenet_v2_x0_5": ("fc", 32),
    "squeezenet1_1": ("classifier.1", 64),
    "swin_t": ("head", 32),
    "swin_v2_t": ("head", 32),
    "vgg11": ("classifier.6", 32),
    "vit_b_32": ("heads.head", 32),
}
CLASSES = 7


def arguments_of(name: str) -> dict[str, Any]:
    return {"num_classes": CLASSES, **({"image_size": 32} if name.startswith("vit") else {})}


def shapes(name: str, arguments: dict[str, Any]) -> Shapes:
    return shapes_of(outline(lambda arguments_given: build_model(name, arguments_given), arguments))


# MaxViT takes as long as all others together, and no smaller images.
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "maxvit_t" else n for n in FAMILIES])
def test_features_equal_those_of_torchvisions_extractor(name: str, checked_head: Callable[..., Any]) -> None:
    layer, side = FAMILIES[name]
    torch.manual_seed(0)
    model = build_model(f"torchvision:{name}", arguments_of(name)).eval()
    count = 1 if name == "maxvit_t" else 2
    inputs = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    head, rows = checked_head(model, inputs)
    assert head.name == layer
    assert rows.logits.shape == (count, CLASSES)
    expected = input_of_layer(model, layer, inputs)
    torch.testing.assert_close(rows.features, expected, rtol=1e-5, atol=1e-5)
    if name == "squeezenet1_1":
        assert (head.reading, head.positions) == ("rectified", "mean")


def input_of_layer(model: nn.Module, layer: str, inputs: torch.Tensor) -> torch.Tensor:
    """Return the output of torchvision's extractor at the node before a layer; maps are averaged over space."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        _, nodes = get_graph_node_names(model)
        outputs = create_feature_extractor(model, [nodes[nodes.index(layer) - 1]])(inputs)
    rows = next(iter(outputs.values()))
    return rows.mean(dim=(2, 3)) if rows.ndim == 4 else rows


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "regnet_x_400mf", "squeezenet1_1"])
def test_sizes_come_from_the_checkpoint(name: str) -> None:
    tensors = shapes(f"torchvision:{name}", arguments_of(name))
    sizes = model_arguments(f"torchvision:{name}", input_shape=(3, 32, 32), classes=10, tensors=tensors)
    assert sizes == arguments_of(name)
    assert shapes(f"torchvision:{name}", sizes) == tensors


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_built_if_the_checkpoint_has_them(name: str) -> None:
    for auxiliary in (True, False):
        tensors = shapes(f"torchvision:{name}", {"num_classes": CLASSES, "aux_logits": auxiliary})
        sizes = model_arguments(f"torchvision:{name}", tensors=tensors)
        assert sizes == {"num_classes": CLASSES, **({} if auxiliary else {"aux_logits": False})}
        assert shapes(f"torchvision:{name}", sizes) == tensors


def test_sizes_come_from_the_data_without_a_checkpoint() -> None:
    assert model_arguments("torchvision:resnet18", input_shape=(3, 32, 32), classes=4) == {"num_classes": 4}
    sizes = model_arguments("torchvision:vit_b_16", input_shape=(3, 32, 32), classes=4)
    assert sizes == {"num_classes": 4, "image_size": 32}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet19", {}, "model torchvision:resnet19: torchvision has no model of that name; did you mean resnet1"),
        ("fcn_resnet50", {}, "torchvision has no model of that name"),
        ("resnet18", {"weights": "DEFAULT"}, "weights: weights come from the checkpoint"),
        ("resnet18", {"depth": 3}, "model torchvision:resnet18: cannot be built: TypeError: .*'depth'"),
    ],
)
def test_invalid_names_and_arguments_of_torchvision_are_errors(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build_model(f"torchvision:{name}", arguments)
