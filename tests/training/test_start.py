"""Beginning from another run's weights: whole, backbone only, pruned."""

from pathlib import Path

import pytest
import torch

from ckpt_probe.checkpoints import CheckpointMetadata, open_checkpoint, save_checkpoint
from ckpt_probe.config import StartSettings, TrainingConfig
from ckpt_probe.errors import DataError
from ckpt_probe.models import build_model
from ckpt_probe.training import train
from ckpt_probe.training.start import begin

SHAPE = {"input_shape": (1, 8, 8), "classes": 10}


def network(classes: int = 10) -> torch.nn.Module:
    return build_model("mlp", {"hidden": [6]}, input_shape=(1, 8, 8), classes=classes)


def saved(path: Path, classes: int = 10, **facts: object) -> Path:
    torch.manual_seed(5)
    save_checkpoint(path, network(classes).state_dict(), CheckpointMetadata(**facts))  # pyright: ignore[reportArgumentType]
    return path


def settings(path: Path, **more: object) -> StartSettings:
    return StartSettings.model_validate({"from": str(path), **more})


def test_the_backbone_alone_leaves_the_classifier_fresh_whatever_its_size(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", classes=4, step=30)
    torch.manual_seed(1)
    model = network()
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert begin(model, settings(path, part="backbone"), torch.zeros(2, 1, 8, 8)).step == 0
    with open_checkpoint(path) as checkpoint:
        assert torch.equal(model.state_dict()["1.weight"], checkpoint.read("1.weight"))
    assert torch.equal(model.state_dict()["3.weight"], fresh["3.weight"])
    assert torch.equal(model.state_dict()["3.bias"], fresh["3.bias"])
    with pytest.raises(DataError, match="other shape"):
        begin(network(), settings(path), torch.zeros(2, 1, 8, 8))


def test_missing_pruned_tensors_are_reported_with_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", pruned=["1.weight", "other.weight"])
    with pytest.raises(DataError, match=r"a\.safetensors: tensors listed as pruned are missing: other\.weight$"):
        begin(network(), settings(path), torch.zeros(2, 1, 8, 8))


def test_the_step_is_kept_where_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", step=30)
    assert begin(network(), settings(path, keep_step=True), torch.zeros(2, 1, 8, 8)).step == 30
    nameless = saved(tmp_path / "b.safetensors")
    with pytest.raises(DataError, match=r"b\.safetensors: its metadata has no step"):
        begin(network(), settings(nameless, keep_step=True), torch.zeros(2, 1, 8, 8))
    with pytest.raises(DataError, match=r"absent\.safetensors: no such file"):
        begin(network(), settings(tmp_path / "absent.safetensors"), torch.zeros(2, 1, 8, 8))


def test_a_run_from_a_pruned_checkpoint_keeps_its_zeros_and_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = network().state_dict()
    state["1.weight"][torch.rand(6, 64) < 0.75] = 0
    zeros = state["1.weight"] == 0
    save_checkpoint(tmp_path / "p.safetensors", state, CheckpointMetadata(sparsity=0.75, pruned=["1.weight"]))
    config = TrainingConfig.model_validate(
        {
            "data": {"name": "digits"},
            "model": {"name": "mlp", "arguments": {"hidden": [6]}},
            "training": {"steps": 30},
            "optimizer": {"weight_decay": 1e-3},
            "checkpoints": {"steps": [10]},
            "start": {"from": str(tmp_path / "p.safetensors")},
        }
    )
    train(config, tmp_path / "run", device="cpu")
    for step in (0, 10, 30):
        with open_checkpoint(tmp_path / "run" / "checkpoints" / f"step-{step:06d}.safetensors") as checkpoint:
            found, metadata = checkpoint.read("1.weight"), checkpoint.metadata
        assert torch.equal(found == 0, zeros)
        assert metadata.pruned == ["1.weight"]
        assert metadata.sparsity == pytest.approx(zeros.double().mean().item())
    assert not torch.equal(found, state["1.weight"])


def test_a_pruned_start_of_a_wrapped_model_keeps_its_zeros(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in network().state_dict().items()}
    state["module.1.weight"][:, :60] = 0
    save_checkpoint(tmp_path / "p.safetensors", state, CheckpointMetadata(pruned=["module.1.weight"]))
    start = begin(network(), settings(tmp_path / "p.safetensors"), torch.zeros(2, 1, 8, 8))
    assert list(start.masks) == ["1.weight"]
    assert int(start.masks["1.weight"].sum()) == 6 * 4
