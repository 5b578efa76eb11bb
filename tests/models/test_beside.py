"""What stands beside a checkpoint: timm's configurations, those of others, and what is none."""

import json
from pathlib import Path
from typing import Any

import pytest

from ckpt_probe.errors import DataError
from ckpt_probe.models import build_model, class_names, model_beside


def beside(place: Path, found: Any) -> Path:
    (place / "config.json").write_text(found if isinstance(found, str) else json.dumps(found))
    return place / "model.safetensors"


def test_a_configuration_that_timm_saves(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=3, in_chans=1)
    timm.models.save_for_hf(model, tmp_path, model_args={"in_chans": 1}, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["label_names"] = ["ant", "bee", "cat"]
    found = model_beside(beside(tmp_path, config))
    assert found is not None
    name, arguments = found
    assert name == "timm:resnet10t"
    assert {key: arguments[key] for key in ("num_classes", "in_chans")} == {"num_classes": 3, "in_chans": 1}
    built: Any = build_model(name, arguments)
    assert {key: tensor.shape for key, tensor in built.state_dict().items()} == {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }
    assert class_names(built) == ("ant", "bee", "cat")
    assert tuple(built.pretrained_cfg["mean"]) == tuple(config["pretrained_cfg"]["mean"])


def test_a_configuration_of_one_level(tmp_path: Path) -> None:
    found = model_beside(beside(tmp_path, {"architecture": "resnet10t", "num_classes": 4, "mean": [0.5, 0.5, 0.5]}))
    assert found == ("timm:resnet10t", {"num_classes": 4, "pretrained_cfg_overlay": {"mean": [0.5, 0.5, 0.5]}})


def test_where_there_is_none_or_of_another_tool(tmp_path: Path) -> None:
    assert model_beside(tmp_path) is None
    assert model_beside(beside(tmp_path, {"learning_rate": 0.1, "architecture": 3})) is None


@pytest.mark.parametrize("found", ["{", "[1]", "", "[" * 100_000])
def test_what_is_no_json_object(found: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json: not a model's configuration \("):
        model_beside(beside(tmp_path, found))
