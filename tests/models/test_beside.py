"""Tests of the configuration in the directory of a checkpoint: timm's, those of other tools, and invalid ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from ckpt_probe.errors import DataError
from ckpt_probe.models import build_model, class_names, model_beside


def write_config(directory: Path, config: Any) -> Path:
    (directory / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return directory / "model.safetensors"


def test_a_configuration_saved_by_timm_rebuilds_the_model(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    original = timm.create_model("resnet10t", num_classes=3, in_chans=1)
    timm.models.save_for_hf(original, tmp_path, model_args={"in_chans": 1}, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["label_names"] = ["ant", "bee", "cat"]
    model = model_beside(write_config(tmp_path, config))
    assert model is not None
    name, arguments = model
    assert name == "timm:resnet10t"
    assert {key: arguments[key] for key in ("num_classes", "in_chans")} == {"num_classes": 3, "in_chans": 1}
    built: Any = build_model(name, arguments)
    assert {key: tensor.shape for key, tensor in built.state_dict().items()} == {
        key: tensor.shape for key, tensor in original.state_dict().items()
    }
    assert class_names(built) == ("ant", "bee", "cat")
    assert tuple(built.pretrained_cfg["mean"]) == tuple(config["pretrained_cfg"]["mean"])


def test_a_configuration_without_nesting_is_read(tmp_path: Path) -> None:
    model = model_beside(
        write_config(tmp_path, {"architecture": "resnet10t", "num_classes": 4, "mean": [0.5, 0.5, 0.5]})
    )
    assert model == ("timm:resnet10t", {"num_classes": 4, "pretrained_cfg_overlay": {"mean": [0.5, 0.5, 0.5]}})


def test_no_configuration_or_one_of_another_tool_gives_no_model(tmp_path: Path) -> None:
    assert model_beside(tmp_path) is None
    assert model_beside(write_config(tmp_path, {"learning_rate": 0.1, "architecture": 3})) is None


@pytest.mark.parametrize("text", ["{", "[1]", "", "[" * 100_000])
def test_a_configuration_that_is_no_json_object_is_an_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json: not a model's configuration \("):
        model_beside(write_config(tmp_path, text))
