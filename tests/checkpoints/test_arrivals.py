"""Checkpoints of a run that still writes: each is told of once, when it is whole."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_probe.checkpoints import Arrivals


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """The bytes of a checkpoint."""
    save_file({"weight": torch.arange(600.0).reshape(20, 30)}, tmp_path / "whole.safetensors")
    return (tmp_path / "whole.safetensors").read_bytes()


def names(arrivals: Arrivals) -> list[str]:
    return [member.name for member in arrivals.look()]


def test_a_checkpoint_is_told_of_once_and_when_nothing_more_is_written_to_it(whole: bytes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arrivals = Arrivals(run)
    assert names(arrivals) == []
    run.mkdir()
    file = run / "step-10.safetensors"
    file.write_bytes(whole[:100])
    assert names(arrivals) == []
    file.write_bytes(whole[:300])
    assert names(arrivals) == []
    assert arrivals.left_out == {}
    assert not arrivals.settled
    # Its writer rests, but the header tells that there is more to come.
    assert names(arrivals) == []
    assert arrivals.settled
    assert "step-10.safetensors" in arrivals.left_out["step-10"]
    file.write_bytes(whole)
    assert names(arrivals) == []
    [member] = arrivals.look()
    assert (member.name, member.step, member.path) == ("step-10", 10, file)
    assert arrivals.left_out == {}
    assert arrivals.settled
    assert names(arrivals) == []


def test_those_of_one_look_come_in_the_order_of_steps(whole: bytes, tmp_path: Path) -> None:
    for step in (100, 20, 3):
        (tmp_path / f"step-{step}.safetensors").write_bytes(whole)
    (tmp_path / "whole.safetensors").unlink()
    arrivals = Arrivals(tmp_path)
    assert names(arrivals) == []
    assert names(arrivals) == ["step-3", "step-20", "step-100"]


def test_a_directory_is_whole_when_all_of_its_files_are(whole: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoint-500"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(whole)
    arrivals = Arrivals(tmp_path / "run")
    assert names(arrivals) == []
    (folder / "trainer_state.json").write_text('{"global_step": 500}')
    assert names(arrivals) == []
    assert names(arrivals) == ["checkpoint-500"]


def test_one_that_is_written_anew_all_the_time_is_left_out_with_the_reason(whole: bytes, tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path)
    assert names(arrivals) == names(arrivals) == []
    assert arrivals.left_out["whole"].startswith("its name has no step")


def test_one_that_is_gone_at_the_next_look_is_no_error(whole: bytes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoint-1").mkdir(parents=True)
    (run / "checkpoint-1" / "model.safetensors").write_bytes(whole)
    arrivals = Arrivals(run)
    assert names(arrivals) == []
    shutil.rmtree(run / "checkpoint-1")
    assert names(arrivals) == []
    assert arrivals.settled
