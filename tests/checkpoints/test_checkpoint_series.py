"""Tests of series of checkpoints: one order of steps, for every layout of files."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.checkpoints import CheckpointMetadata, open_checkpoint, open_series, save_checkpoint
from ckpt_probe.errors import DataError

TENSORS = {"w": torch.zeros(2)}


def names(path: Path) -> list[str]:
    return [member.name for member in open_series(path)]


def test_checkpoints_are_ordered_by_the_step_in_metadata_and_otherwise_in_the_name(tmp_path: Path) -> None:
    for name in ("step-9", "step-10", "step-100"):
        save_checkpoint(tmp_path / f"{name}.safetensors", TENSORS)
    save_checkpoint(tmp_path / "final.safetensors", {"w": torch.ones(2)})
    save_checkpoint(tmp_path / "step-1.safetensors", TENSORS, CheckpointMetadata(step=50))
    members = open_series(tmp_path)
    assert [(m.name, m.step) for m in members] == [
        ("step-9", 9),
        ("step-10", 10),
        ("step-1", 50),
        ("step-100", 100),
        ("final", None),
    ]


def test_a_run_a_directory_of_directories_and_a_single_file_are_series(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run" / "checkpoints" / "step-5.safetensors", TENSORS)
    save_checkpoint(tmp_path / "run" / "state.safetensors", TENSORS)
    assert names(tmp_path / "run") == ["step-5"]
    for step in (1000, 500):
        save_checkpoint(tmp_path / "trainer" / f"checkpoint-{step}" / "model.safetensors", TENSORS)
    assert names(tmp_path / "trainer") == ["checkpoint-500", "checkpoint-1000"]
    save_checkpoint(tmp_path / "trainer" / "checkpoint-500" / "ema.safetensors", TENSORS)
    assert names(tmp_path / "trainer") == ["checkpoint-500-ema", "checkpoint-500-model", "checkpoint-1000"]
    assert names(tmp_path / "run" / "checkpoints" / "step-5.safetensors") == ["step-5"]


def test_a_directory_of_the_final_weights_beside_those_of_steps_is_listed(tmp_path: Path) -> None:
    for number, name in enumerate(("final", "step_20", "step_3", "best_model", "logs", "init")):
        save_checkpoint(tmp_path / "run" / name / "model.safetensors", {"w": torch.full((2,), float(number))})
    assert names(tmp_path / "run") == ["init", "step_3", "step_20", "best_model", "final"]
    save_checkpoint(tmp_path / "flat" / "step-1.safetensors", TENSORS)
    save_checkpoint(tmp_path / "flat" / "best" / "model.safetensors", TENSORS)
    assert names(tmp_path / "flat") == ["step-1"]


def test_hidden_and_temporary_files_are_no_checkpoints(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "step-5.safetensors", TENSORS)
    (tmp_path / ".step-6.safetensors.host-1.part").write_text("half")
    (tmp_path / ".hidden.safetensors").write_text("half")
    assert names(tmp_path) == ["step-5"]


@pytest.mark.parametrize("dump", ["step-5.h5", "seed-0/step-5.h5"])
def test_dumps_in_place_of_checkpoints_are_named(tmp_path: Path, dump: str) -> None:
    (tmp_path / dump).parent.mkdir(exist_ok=True)
    (tmp_path / dump).write_text("features")
    with pytest.raises(DataError, match=r"no checkpoint, but dumps such as step-5\.h5; analyze them"):
        open_series(tmp_path)


def test_without_a_checkpoint_the_error_states_the_searched_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or directory"):
        open_series(tmp_path / "missing")
    with pytest.raises(DataError, match=r"no checkpoint found \(looked for \*\.safetensors"):
        open_series(tmp_path)
    (tmp_path / "optimizer.pt").write_text("x")
    with pytest.raises(DataError, match="no checkpoint"):
        open_series(tmp_path)
    (tmp_path / "model.pt").write_text("x")
    with pytest.raises(DataError, match=r"model\.pt: not a checkpoint of a known format"):
        open_series(tmp_path)


def test_a_damaged_checkpoint_is_listed_and_raises_its_error_when_it_is_opened(tmp_path: Path) -> None:
    for name in ("step-2", "step-30"):
        save_checkpoint(tmp_path / f"{name}.safetensors", TENSORS)
    (tmp_path / "step-10.safetensors").write_bytes(b"")
    (tmp_path / "last.pt").write_bytes(b"PK\3\4" + bytes(40))
    members = open_series(tmp_path)
    assert [(m.name, m.step) for m in members] == [("step-2", 2), ("step-10", 10), ("step-30", 30), ("last", None)]
    with pytest.raises(DataError, match=r"step-10\.safetensors"), open_checkpoint(members[1].path):
        pass


def test_a_series_of_damaged_checkpoints_is_an_error(tmp_path: Path) -> None:
    for name in ("step-1.pt", "step-2.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"step-1\.pt: an empty file"):
        open_series(tmp_path)


def test_suffixes_may_be_in_upper_case(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "step-1.SAFETENSORS", TENSORS)
    torch.save({"w": torch.ones(2)}, tmp_path / "step-2.PT")
    torch.save({"w": torch.full((2,), 2.0)}, tmp_path / "step-3.Pth.Tar")
    assert names(tmp_path) == ["step-1", "step-2", "step-3"]
    with h5py.File(tmp_path / "step-1.H5", "w") as file:
        file["test/features"], file["test/labels"] = np.eye(6), np.arange(6) % 3
    assert [record["step"] for record in cp.analyze(tmp_path)] == [1]
