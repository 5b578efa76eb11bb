"""Tests of following a run: each new checkpoint is returned once, after it is complete."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_probe.checkpoints import Arrivals


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    """Write a checkpoint and return its bytes."""
    save_file({"weight": torch.arange(600.0).reshape(20, 30)}, tmp_path / "whole.safetensors")
    return (tmp_path / "whole.safetensors").read_bytes()


def names(arrivals: Arrivals) -> list[str]:
    return [member.name for member in arrivals.look()]


def test_a_checkpoint_is_returned_once_after_it_is_complete(data: bytes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arrivals = Arrivals(run)
    assert names(arrivals) == []
    run.mkdir()
    file = run / "step-10.safetensors"
    file.write_bytes(data[:100])
    assert names(arrivals) == []
    file.write_bytes(data[:300])
    assert names(arrivals) == []
    assert arrivals.left_out == {}
    assert not arrivals.settled
    # The file does not grow, but it is shorter than its header states.
    assert names(arrivals) == []
    assert arrivals.settled
    assert "step-10.safetensors" in arrivals.left_out["step-10"]
    file.write_bytes(data)
    assert names(arrivals) == []
    [member] = arrivals.look()
    assert (member.name, member.step, member.path) == ("step-10", 10, file)
    assert arrivals.left_out == {}
    assert arrivals.settled
    assert names(arrivals) == []


def test_checkpoints_of_one_look_are_in_the_order_of_steps(data: bytes, tmp_path: Path) -> None:
    for step in (100, 20, 3):
        (tmp_path / f"step-{step}.safetensors").write_bytes(data)
    (tmp_path / "whole.safetensors").rename(tmp_path / "init.safetensors")
    arrivals = Arrivals(tmp_path)
    assert names(arrivals) == []
    assert names(arrivals) == ["init", "step-3", "step-20", "step-100"]


def test_a_directory_is_complete_when_all_of_its_files_are(data: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoint-500"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(data)
    arrivals = Arrivals(tmp_path / "run")
    assert names(arrivals) == []
    (folder / "trainer_state.json").write_text('{"global_step": 500}')
    assert names(arrivals) == []
    assert names(arrivals) == ["checkpoint-500"]


def test_a_checkpoint_without_a_step_in_its_name_is_left_out_with_the_reason(data: bytes, tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path)
    assert names(arrivals) == names(arrivals) == []
    assert arrivals.left_out["whole"].startswith("its name has no step")


def test_a_checkpoint_that_was_deleted_before_the_next_look_is_ignored(data: bytes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoint-1").mkdir(parents=True)
    (run / "checkpoint-1" / "model.safetensors").write_bytes(data)
    arrivals = Arrivals(run)
    assert names(arrivals) == []
    shutil.rmtree(run / "checkpoint-1")
    assert names(arrivals) == []
    assert arrivals.settled
