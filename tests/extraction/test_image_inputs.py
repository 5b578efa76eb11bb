"""Tests of images for networks of libraries: prepared for the size of the checkpoint and the options of its builder."""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models
from torchvision.datasets import ImageFolder

from ckpt_probe.dumps import open_dump
from ckpt_probe.errors import DataError
from ckpt_probe.extraction import extract_series
from ckpt_probe.models.image_models import OF_WEIGHTS
from ckpt_probe.plugins import load_function
from ckpt_probe.progress import MessageLog

CLASSES = 3
VIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two photos of each of three classes, and return the directory."""
    folder, draw = tmp_path_factory.mktemp("images") / "photos", np.random.default_rng(0)
    for name in "abc":
        (folder / name).mkdir(parents=True)
        for number in range(2):
            pixels = draw.integers(0, 256, (120, 100 + 9 * number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def of_timm(_: Path) -> tuple[str, nn.Module, Any]:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=CLASSES)
    config = timm.data.resolve_data_config({"img_size": 96}, model=model)
    return "timm:vit_tiny_patch16_224", model, timm.data.create_transform(**config, is_training=False)


def of_timm_grey(_: Path) -> tuple[str, nn.Module, Any]:
    import timm

    model = timm.create_model("test_resnet", in_chans=1, num_classes=CLASSES)
    config = timm.data.resolve_model_data_config(model)
    grey = {"mean": (sum(config["mean"]) / 3,), "std": (sum(config["std"]) / 3,)}
    transform = timm.data.create_transform(**{**config, **grey}, is_training=False)
    return "timm:test_resnet", model, lambda image: transform(image.convert("L"))


def of_torchvision(_: Path) -> tuple[str, nn.Module, Any]:
    weights = models.GoogLeNet_Weights.DEFAULT
    model = models.googlenet(num_classes=CLASSES, aux_logits=False, init_weights=False, transform_input=True)
    return "torchvision:googlenet", model, weights.transforms()


def of_transformers(directory: Path) -> tuple[str, nn.Module, Any]:
    import transformers

    configured = transformers.ViTConfig(**VIT, image_size=64, patch_size=16, num_labels=CLASSES)
    configured.save_pretrained(directory)
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(directory)
    config = transformers.ViTConfig(**VIT, image_size=96, patch_size=16, num_labels=CLASSES)
    processor = transformers.ViTImageProcessor(size={"height": 96, "width": 96})
    model = transformers.ViTForImageClassification(config)
    return f"hf:{directory}", model, lambda image: processor(images=image, return_tensors="pt")["pixel_values"][0]


@pytest.mark.parametrize("library", [of_timm, of_timm_grey, of_torchvision, of_transformers])
def test_logits_equal_those_of_the_network_with_the_inputs_of_its_library(
    library: Callable[[Path], tuple[str, nn.Module, Any]], photos: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    name, model, transform = library(tmp_path)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.05 * torch.randn_like(weights))
    torch.save(model.state_dict(), tmp_path / "a.pth")
    progress = MessageLog()
    data = f"imagefolder:{photos}"
    extract_series(tmp_path / "a.pth", tmp_path / "dumps", model=name, data=data, device="cpu", progress=progress)
    inputs = next(iter(DataLoader(ImageFolder(str(photos), transform), batch_size=6)))[0]
    with torch.inference_mode():
        outputs: Any = model.eval()(inputs)
    with open_dump(tmp_path / "dumps" / "a.h5") as dump:
        logits = dump["photos"].logits
        assert logits is not None
        np.testing.assert_allclose(logits[:], getattr(outputs, "logits", outputs), rtol=1e-4, atol=1e-4)
    assumed = [message for message in progress.messages if "transform_input=True is assumed" in message]
    assert len(assumed) == (library is of_torchvision)


def test_explicit_arguments_are_not_replaced(photos: Path, tmp_path: Path) -> None:
    name, model, _ = of_torchvision(tmp_path)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    progress = MessageLog()
    options = {"model": name, "model_arguments": {"transform_input": False}, "data": f"imagefolder:{photos}"}
    extract_series(tmp_path / "a.pth", tmp_path / "dumps", **options, device="cpu", progress=progress)
    with open_dump(tmp_path / "dumps" / "a.h5") as dump:
        assert dump.provenance is not None
        assert dump.provenance.model_arguments["transform_input"] is False
    assert all(message.startswith("inputs: ") for message in progress.messages)


def test_all_arguments_that_torchvisions_builders_change_with_weights_are_listed() -> None:
    # Some are visible in the file, others concern only weights; maxvit's weights are for images of its default size.
    known = {"num_classes", "aux_logits", "image_size", "init_weights", "input_size", "groups", "width_per_group"}
    listed: dict[str, set[str]] = {}
    for name in models.list_models(module=models):
        builder = inspect.unwrap(models.get_model_builder(name))
        inner = re.findall(r"return (_\w+)\(", inspect.getsource(builder))
        sources = map(inspect.getsource, (builder, *(builder.__globals__[constructor] for constructor in set(inner))))
        switched = {key for text in sources for key in re.findall(r'_ovewrite_named_param\(kwargs, "(\w+)"', text)}
        if switched - known:
            listed[name] = switched - known
    assert {name: set(arguments) for name, arguments in OF_WEIGHTS.items()} == listed


@pytest.mark.parametrize(
    ("stored", "channels", "advice"),
    [
        ((6, 9, 9), 1, "store the array as (N, 1, 9, 9)"),
        ((6, 9, 9, 1), 1, "store the array as (N, 1, 9, 9)"),
        ((6, 9, 8, 3), 3, "store the array as (N, 3, 9, 8)"),
        ((6, 3, 9, 9), 1, "the model takes images of 1 channel, not 3"),
        ((6, 9, 9, 3), 4, None),
    ],
)
def test_an_array_in_another_layout_is_refused_with_the_layout_that_the_network_takes(
    stored: tuple[int, ...], channels: int, advice: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", sys.path.copy())
    layers = f"nn.Conv2d({channels}, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)"
    code = f"from torch import nn\n\n\ndef network():\n    return nn.Sequential({layers})\n"
    (tmp_path / "net.py").write_text(code)
    model, data = f"{tmp_path}/net.py:network", f"npz:{tmp_path}/x.npz"
    torch.save(load_function(model)().state_dict(), tmp_path / "a.pt")
    np.savez(tmp_path / "x.npz", x_test=np.zeros(stored, np.uint8), y_test=np.arange(6) % 3)
    with pytest.raises(DataError, match="the model does not take inputs of shape") as refused:
        extract_series(tmp_path / "a.pt", tmp_path / "dumps", model=model, data=data, device="cpu")
    _, _, hint = str(refused.value).partition(" instead)")
    assert advice in hint if advice else not hint
