"""Tests of the start of a run: steps and learning rates, a checkpoint's weights, step and zeros, and a saved state."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from ckpt_probe.checkpoints import CheckpointMetadata, open_checkpoint, save_checkpoint
from ckpt_probe.config import CheckpointSettings, ScheduleSettings, StartSettings, TrainingConfig, TrainingSettings
from ckpt_probe.errors import DataError
from ckpt_probe.models import build_model
from ckpt_probe.training import train
from ckpt_probe.training.run import (
    begin,
    checkpoint_steps,
    learning_rate_factor,
    restore_state,
    save_state,
    steps_per_epoch,
    total_steps,
)

SHAPE = {"input_shape": (1, 8, 8), "classes": 10}


def network(classes: int = 10) -> torch.nn.Module:
    return build_model("mlp", {"hidden": [6], "input_shape": [1, 8, 8], "classes": classes})


def saved(path: Path, classes: int = 10, **facts: object) -> Path:
    torch.manual_seed(5)
    save_checkpoint(path, network(classes).state_dict(), CheckpointMetadata(**facts))  # pyright: ignore[reportArgumentType]
    return path


def settings(path: Path, **more: object) -> StartSettings:
    return StartSettings.model_validate({"from": str(path), **more})


def test_a_start_from_a_backbone_initialises_the_classifier(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", classes=4, step=30)
    torch.manual_seed(1)
    model = network()
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert begin(model, settings(path, part="backbone"), torch.zeros(2, 1, 8, 8))[0] == 0
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


def test_the_step_of_a_start_is_kept_on_request(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", step=30)
    assert begin(network(), settings(path, keep_step=True), torch.zeros(2, 1, 8, 8))[0] == 30
    nameless = saved(tmp_path / "b.safetensors")
    with pytest.raises(DataError, match=r"b\.safetensors: its metadata has no step"):
        begin(network(), settings(nameless, keep_step=True), torch.zeros(2, 1, 8, 8))
    with pytest.raises(DataError, match=r"absent\.safetensors: no such file"):
        begin(network(), settings(tmp_path / "absent.safetensors"), torch.zeros(2, 1, 8, 8))


def test_a_run_from_a_pruned_checkpoint_keeps_its_zeros_and_states_its_sparsity(tmp_path: Path) -> None:
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
            weights, metadata = checkpoint.read("1.weight"), checkpoint.metadata
        assert torch.equal(weights == 0, zeros)
        assert metadata.pruned == ["1.weight"]
        assert metadata.sparsity == pytest.approx(zeros.double().mean().item())
    assert not torch.equal(weights, state["1.weight"])


def test_a_pruned_start_of_a_wrapped_model_keeps_its_zeros(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in network().state_dict().items()}
    state["module.1.weight"][:, :60] = 0
    save_checkpoint(tmp_path / "p.safetensors", state, CheckpointMetadata(pruned=["module.1.weight"]))
    _, masks = begin(network(), settings(tmp_path / "p.safetensors"), torch.zeros(2, 1, 8, 8))
    assert list(masks) == ["1.weight"]
    assert int(masks["1.weight"].sum()) == 6 * 4


def test_steps_per_epoch_and_per_run_are_computed() -> None:
    assert steps_per_epoch(TrainingSettings(epochs=2, batch_size=64), 1347) == 22
    assert steps_per_epoch(TrainingSettings(epochs=2, batch_size="full"), 1347) == 1
    assert total_steps(TrainingSettings(epochs=2.5), 22) == 55
    assert total_steps(TrainingSettings(epochs=0.001), 22) == 1
    assert total_steps(TrainingSettings(steps=7), 22) == 7


@pytest.mark.parametrize(("step", "factor"), [(0, 1.0), (50, 0.5), (100, 0.0)])
def test_the_cosine_schedule_has_its_closed_form(step: int, factor: float) -> None:
    assert learning_rate_factor(ScheduleSettings(name="cosine"), step, 100) == pytest.approx(factor)


def test_a_warmup_is_followed_by_a_cosine_over_the_remaining_steps() -> None:
    settings = ScheduleSettings(name="cosine", warmup_steps=10)
    assert learning_rate_factor(settings, 0, 110) == pytest.approx(0.1)
    assert learning_rate_factor(settings, 9, 110) == 1.0
    assert learning_rate_factor(settings, 60, 110) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def test_step_and_constant_schedules_have_their_factors() -> None:
    settings = ScheduleSettings(name="step", milestones=[0.5, 0.75], factor=0.1)
    factors = [learning_rate_factor(settings, step, 100) for step in (49, 50, 74, 75)]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01])
    assert learning_rate_factor(ScheduleSettings(name="constant"), 99, 100) == 1.0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"every_steps": 4}, [0, 4, 8, 10]),
        ({"steps": [3, 99]}, [0, 3, 10]),
        ({"per_epoch": 2}, [0, 2, 4, 6, 8, 10]),
        ({}, [0, 4, 8, 10]),
        ({"log_spaced": 3}, [0, 2, 10]),
    ],
)
def test_checkpoint_steps_are_those_of_the_settings(settings: dict, expected: list[int]) -> None:
    assert checkpoint_steps(CheckpointSettings(**settings), 0, 10, per_epoch=4) == expected


def test_a_run_that_starts_later_has_later_checkpoint_steps() -> None:
    assert checkpoint_steps(CheckpointSettings(every_steps=4), 5, 10, per_epoch=4) == [5, 8, 10]


def stepped(model: nn.Module, kind: type[torch.optim.Optimizer] = torch.optim.AdamW) -> torch.optim.Optimizer:
    optimizer = kind(model.parameters(), lr=0.1)  # pyright: ignore[reportCallIssue]
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("other_model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "1.bias"),
        (nn.Sequential(nn.Linear(3, 5)), r"other shape: 0\.bias \(4,\) for \(5,\), 0\.weight \(4, 3\) for \(5, 3\)"),
    ],
)
def test_a_state_of_another_model_is_an_error_of_one_line(tmp_path: Path, other_model: nn.Module, message: str) -> None:
    model, path = nn.Sequential(nn.Linear(3, 4)), tmp_path / "state.safetensors"
    save_state(path, model, stepped(model), 7, 1.5)
    with pytest.raises(
        DataError, match=rf"state\.safetensors: the state of a different model .*`overwrite=True`.*{message}"
    ) as caught:
        restore_state(path, other_model, stepped(other_model))
    assert "\n" not in str(caught.value)
    fresh = nn.Sequential(nn.Linear(3, 4))
    assert restore_state(path, fresh, stepped(fresh)) == (7, 1.5)
    assert torch.equal(fresh.state_dict()["0.weight"], model.state_dict()["0.weight"])
