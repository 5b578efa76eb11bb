"""Tests of preparing images: steps equal those of torchvision, and models of a library have its transform."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from ckpt_probe.data.arguments import ModelHints
from ckpt_probe.data.images.preparation import image_preparation
from ckpt_probe.errors import DataError, UsageError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZES = [(40, 30), (31, 57), (224, 224), (300, 201)]


def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


@pytest.mark.parametrize("resize", [None, 64, 37, [50, 20]])
@pytest.mark.parametrize("crop", [None, 48, [33, 70], 500])
def test_steps_equal_those_of_torchvision(resize: Any, crop: Any) -> None:
    chain = [
        *([] if resize is None else [transforms.Resize(resize, transforms.InterpolationMode.BICUBIC)]),
        *([] if crop is None else [transforms.CenterCrop(crop)]),
        *[transforms.ToTensor(), transforms.Normalize(MEAN, STD)],
    ]
    arguments = {"resize": resize, "crop": crop, "mean": MEAN, "std": STD, "interpolation": "bicubic"}
    preparation = image_preparation({k: v for k, v in arguments.items() if v is not None}, ModelHints())
    for image in images():
        torch.testing.assert_close(preparation.prepare(image), transforms.Compose(chain)(image), rtol=1e-6, atol=1e-6)


def test_the_default_scales_to_one_and_one_number_applies_to_all_channels() -> None:
    image = images()[0]
    plain = image_preparation({}, ModelHints("mine:network"))
    torch.testing.assert_close(plain.prepare(image), transforms.ToTensor()(image))
    single = image_preparation({"mean": 0.5, "std": "0.25"}, ModelHints())
    torch.testing.assert_close(single.prepare(image), (transforms.ToTensor()(image) - 0.5) / 0.25)
    grey = image_preparation({"channels": 1, "mean": [0.5]}, ModelHints())
    assert (grey.channels, grey.prepare(image.convert("L")).shape) == (1, (1, 30, 40))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_384", "mobilenetv3_small_100.lamb_in1k", "levit_128s"])
def test_preparation_for_a_timm_model_is_timms_transform(name: str) -> None:
    import timm

    model = timm.create_model(name, pretrained=False)
    reference = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    preparation = image_preparation({}, ModelHints(f"timm:{name}"))
    for image in images():
        assert torch.equal(preparation.prepare(image), reference(image))
    # The recorded arguments give the same preparation without the model, also after a round trip through JSON.
    reloaded = image_preparation(
        json.loads(json.dumps(preparation.arguments)), ModelHints("timm:swin_tiny_patch4_window7_224")
    )
    assert torch.equal(reloaded.prepare(images()[0]), preparation.prepare(images()[0]))
    assert reloaded.arguments == json.loads(json.dumps(preparation.arguments))


def test_arguments_of_a_timm_model_change_its_preparation() -> None:
    overlay = {"mean": [0.1, 0.2, 0.3], "crop_pct": 1.0}
    hints = ModelHints("timm:resnet18", {"img_size": 96, "pretrained_cfg_overlay": overlay})
    settings = image_preparation({}, hints).arguments["transform"]["timm"]
    assert tuple(settings["input_size"]) == (3, 96, 96)
    assert (list(settings["mean"]), settings["crop_pct"]) == ([0.1, 0.2, 0.3], 1.0)
    grey = image_preparation({}, ModelHints("timm:resnet18", {"in_chans": 1}))
    assert grey.prepare(images()[0].convert("L")).shape == (1, 224, 224)


def test_arguments_replace_single_settings_of_the_models_preparation() -> None:
    image = images()[3]
    chain = [transforms.Resize(64, transforms.InterpolationMode.BILINEAR), transforms.CenterCrop(56)]
    chain += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    arguments = {"resize": 64, "crop": 56}
    preparation = image_preparation({**arguments, "interpolation": "bilinear"}, ModelHints("timm:resnet18"))
    torch.testing.assert_close(preparation.prepare(image), transforms.Compose(chain)(image), rtol=1e-6, atol=1e-6)
    assert list(preparation.arguments["transform"]) == ["steps"]


def test_preparation_for_a_torchvision_model_is_that_of_its_default_weights() -> None:
    from torchvision.models import ResNet18_Weights

    preparation = image_preparation({}, ModelHints("torchvision:resnet18"))
    reference = ResNet18_Weights.DEFAULT.transforms()
    for image in images():
        torch.testing.assert_close(preparation.prepare(image), reference(image), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["ViTImageProcessor", "ConvNextImageProcessor", "LevitImageProcessor"])
def test_the_image_processor_in_the_models_directory_is_used(kind: str, tmp_path: Path) -> None:
    import transformers

    processor = getattr(transformers, kind)()
    processor.save_pretrained(tmp_path)
    preparation = image_preparation({}, ModelHints(f"hf:{tmp_path}"))
    reloaded = image_preparation(json.loads(json.dumps(preparation.arguments)), ModelHints())
    for image in images():
        expected = processor(images=image, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(preparation.prepare(image), expected)
        assert torch.equal(reloaded.prepare(image), expected)
    smaller = image_preparation({"resize": [20, 20], "crop": 20}, ModelHints(directory=tmp_path))
    assert smaller.prepare(images()[0]).shape == (3, 20, 20)
    assert smaller.arguments["transform"]["steps"]["mean"] == list(processor.image_mean)


def test_an_invalid_image_processor_is_refused(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(DataError, match=r"preprocessor_config\.json: no image processor of transformers'"):
        image_preparation({}, ModelHints(directory=tmp_path))
    code = {"auto_map": {"AutoImageProcessor": "theirs.Mine"}, "image_processor_type": "Mine"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(code))
    with pytest.raises(DataError, match=r"preprocessor_config\.json: no image processor of transformers'"):
        image_preparation({}, ModelHints(directory=tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resize": 0}, "resize: expected pixels such as 224"),
        ({"crop": [1, 2, 3]}, "crop: expected pixels such as 224"),
        ({"crop": 2.5}, "crop: expected pixels"),
        ({"mean": [0.1, 0.2]}, "mean: expected one number a channel"),
        ({"std": [1, 1, "x"]}, "std: expected one number a channel"),
        ({"std": 0}, "std: expected numbers other than 0"),
        ({"channels": 4}, "channels: expected 3 or 1"),
        ({"interpolation": "cubic"}, "interpolation: one of"),
        ({"transform": {"mine": {}}}, r"transform: expected .*NAME one of steps, timm, transformers"),
        ({"transform": {"timm": {"mean": 1}}}, "transform: timm has no such settings"),
        ({"transform": {"transformers": {"image_processor_type": "os.system"}}}, "transformers has no such settings"),
        ({"transform": {"steps": {"blur": 1}}}, "transform: steps has no such settings"),
    ],
)
def test_invalid_values_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        image_preparation(arguments, ModelHints())


def test_an_unknown_timm_model_is_refused() -> None:
    with pytest.raises(UsageError, match="model timm:resnet18000"):
        image_preparation({}, ModelHints("timm:resnet18000"))


def test_images_are_prepared_in_the_size_of_the_checkpoints_model() -> None:
    from torchvision.models import ViT_B_16_Weights

    def sized(side: int) -> ModelHints:
        return ModelHints("torchvision:vit_b_16", complete=lambda: {"image_size": side})

    # torchvision has weights for images of this size, which have their own transform.
    reference = ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1.transforms()
    preparation = image_preparation({}, sized(384))
    torch.testing.assert_close(preparation.prepare(images()[3]), reference(images()[3]), rtol=1e-6, atol=1e-6)
    steps = image_preparation({}, sized(96)).arguments["transform"]["steps"]
    assert (steps["resize"], steps["crop"]) == (109, 96)


def test_an_image_processor_is_adapted_to_the_size_of_the_checkpoints_model(tmp_path: Path) -> None:
    import transformers

    transformers.CLIPImageProcessor(size={"shortest_edge": 256}).save_pretrained(tmp_path)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 128}, crop_size=112)
    preparation = image_preparation({}, ModelHints(f"hf:{tmp_path}", complete=lambda: {"image_size": 112}))
    expected = processor(images=images()[3], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(preparation.prepare(images()[3]), expected)
