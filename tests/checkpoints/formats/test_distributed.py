"""Tests of checkpoints of torch.distributed.checkpoint: read correctly, without running code from their metadata."""

import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata

from ckpt_probe.checkpoints import open_checkpoint, open_series
from ckpt_probe.errors import DataError, UsageError

EXTRA = {"step": 7, "args": {"lr": 0.1}}


def write(path: Path, saved: dict[str, Any]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(saved, checkpoint_id=path, no_dist=True)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path_factory.mktemp("dcp") / "step_7"
    return write(path, {"model": state, "optimizer": optimizer.state_dict(), **EXTRA}), state


@pytest.fixture
def copied(saved: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> Path:
    return shutil.copytree(saved[0], tmp_path / "step_7")


def test_tensors_of_the_model_are_read_one_at_a_time(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, state = saved
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "torch distributed"
        assert checkpoint.state_key == "model"
        assert checkpoint.names == sorted(state)
        assert {file.name for file in checkpoint.files} == {".metadata", "__0_0.distcp"}
        assert (checkpoint.metadata.step, checkpoint.step_source) == (7, "step in the file")
        for name, tensor in state.items():
            assert checkpoint.shape(name) == tuple(tensor.shape)
            assert torch.equal(checkpoint.read(name), tensor)
            raw = bytearray(tensor.numel() * tensor.element_size())
            checkpoint.fill(name, 0, memoryview(raw))
            assert raw == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_a_flat_state_dict_is_read_and_two_models_need_a_key(tmp_path: Path) -> None:
    flat = write(tmp_path / "flat", {"a.weight": torch.ones(2, 3), "b": torch.zeros(2)})
    with open_checkpoint(flat) as checkpoint:
        assert (checkpoint.names, checkpoint.state_key) == (["a.weight", "b"], None)
    two = write(tmp_path / "two", {"model": {"w": torch.ones(2)}, "ema": {"w": torch.zeros(2)}})
    with pytest.raises(
        UsageError, match=r"two: holds several state dicts: model .*, ema .*one with `state_key='model'`"
    ):
        open_checkpoint(two).__enter__()
    with open_checkpoint(two, state_key="ema") as checkpoint:
        assert not checkpoint.read("w").any()


def test_a_directory_of_distributed_checkpoints_is_a_series(copied: Path) -> None:
    shutil.copytree(copied, copied.parent / "step_12")
    members = open_series(copied.parent)
    assert [member.name for member in members] == ["step_7", "step_12"]
    assert [member.path for member in members] == [copied, copied.parent / "step_12"]
    assert [member.name for member in open_series(copied)] == ["step_7"]


def test_entries_that_need_code_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"model": {"w": torch.ones(2)}, "config": Opaque()})
    with open_checkpoint(path) as checkpoint:
        assert "not on the list" in checkpoint.facts["config"]


class Opaque:
    """A class that is not known to the reader."""


class CallsOnLoad:
    """An object that runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def metadata_of(path: Path) -> Metadata:
    return pickle.loads((path / ".metadata").read_bytes())


def test_metadata_that_would_run_code_are_refused(copied: Path) -> None:
    target = copied.parent / "called"
    metadata = metadata_of(copied)
    metadata.storage_meta = CallsOnLoad(f"touch {target}")
    (copied / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(DataError, match=rf"\.metadata: .*names {os.system.__module__}\.system"):
        open_checkpoint(copied).__enter__()
    assert not target.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not the metadata"),
        (b"text", "not the metadata"),
        (b"\x80\x04\x8e" + (2**40).to_bytes(8, "little"), "not the metadata"),
        (
            b"\x80\x02K\x01r" + (2**31 - 1).to_bytes(4, "little") + b".",
            "position 2,147,483,647 of its memo, after 2 opcodes",
        ),
        (pickle.dumps({"model": 1}), "not the metadata"),
        # Hashing this key would visit 2^60 objects.
        (
            b"\x80\x02})" + b"".join(bytes([113, i, 104, i, 134]) for i in range(60)) + b"K\x01s.",
            "a tuple of too many nested tuples",
        ),
    ],
)
def test_invalid_metadata_are_refused(copied: Path, data: bytes, message: str) -> None:
    (copied / ".metadata").write_bytes(data)
    with pytest.raises(DataError, match=rf"\.metadata: .*{message}"):
        open_checkpoint(copied).__enter__()


def test_metadata_that_do_not_match_the_files_are_refused(copied: Path) -> None:
    def tampered(change: Any) -> None:
        metadata = pickle.loads(original)
        change(metadata)
        (copied / ".metadata").write_bytes(pickle.dumps(metadata))

    def storage_info(metadata: Metadata) -> Any:
        return next(info for index, info in metadata.storage_data.items() if index.fqn == "model.0.weight")

    def entry(metadata: Metadata) -> Any:
        return metadata.state_dict_metadata["model.0.weight"]

    nested: tuple[Any, ...] = ()
    for _ in range(60):
        # Its spelling would take forever.
        nested = (nested, nested)
    original, size = (copied / ".metadata").read_bytes(), (copied / "__0_0.distcp").stat().st_size
    (copied.parent / "x.distcp").write_bytes(b"x" * 10**6)
    for change, message in (
        (lambda m: setattr(storage_info(m), "relative_path", "../x.distcp"), r"'\.\./x\.distcp', which is outside"),
        (lambda m: setattr(storage_info(m), "relative_path", str(copied.parent / "x.distcp")), "which is outside"),
        (lambda m: setattr(storage_info(m), "relative_path", "__1_0.distcp"), "__1_0.distcp, which is missing"),
        (lambda m: setattr(storage_info(m), "relative_path", nested), "too many nested tuples"),
        (lambda m: setattr(storage_info(m), "relative_path", 1), "the name of a file must be a text"),
        (lambda m: m.planner_data.update({"model.0.weight": (nested,)}), "too many nested tuples"),
        (lambda m: m.planner_data.update({"model.0.weight": (1.5,)}), "the keys to 'model.0.weight' are no texts"),
        (lambda m: setattr(storage_info(m), "length", 10**9), "truncated: 'model.0.weight' ends beyond"),
        (lambda m: setattr(storage_info(m), "offset", -1), "truncated: 'model.0.weight' ends beyond"),
        (lambda m: setattr(storage_info(m), "length", size - storage_info(m).offset), "parts claim more than its"),
        (lambda m: setattr(storage_info(m), "transform_descriptors", ["zstd"]), "stored through an extension"),
        (lambda m: setattr(entry(m), "size", torch.Size([2**20, 2**20])), r"tensor 'model\.0\.weight' of shape"),
        (lambda m: setattr(entry(m).chunks[0], "sizes", torch.Size([30, 4])), r"has 120 numbers"),
        (lambda m: (setattr(entry(m), "size", torch.Size([10**6])),
                    setattr(entry(m).chunks[0], "sizes", torch.Size([10**6]))), "claims more than its"),
    ):  # fmt: skip
        tampered(change)
        with pytest.raises(DataError, match=message):
            open_checkpoint(copied).__enter__()


def test_damaged_and_missing_parts_are_refused(copied: Path) -> None:
    data = (copied / "__0_0.distcp").read_bytes()
    (copied / "__0_0.distcp").write_bytes(data[:-100])
    with pytest.raises(DataError, match=r"__0_0\.distcp: truncated: 'optimizer"):
        open_checkpoint(copied).__enter__()
    (copied / "__0_0.distcp").write_bytes(b"\0" * len(data))
    with open_checkpoint(copied) as checkpoint, pytest.raises(DataError, match=r"__0_0\.distcp"):
        checkpoint.read("0.weight")
    (copied / "__0_0.distcp").unlink()
    with pytest.raises(DataError, match="which is missing"):
        open_checkpoint(copied).__enter__()


class Scaled(nn.Linear):
    """A layer whose extra state is a mapping of a number and a tensor."""

    def get_extra_state(self) -> dict[str, Any]:
        return {"scale": 2.5, "history": {"amax": torch.arange(3.0)}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        pass


@pytest.mark.parametrize("key", [None, "model"])
def test_extra_state_of_modules_is_read_as_torch_reads_it(key: str | None, tmp_path: Path) -> None:
    state = nn.Sequential(Scaled(4, 3)).state_dict()
    write(tmp_path / "run", state if key is None else {key: state, **EXTRA})
    with open_checkpoint(tmp_path / "run") as checkpoint:
        assert checkpoint.state_key == key
        assert checkpoint.names == ["0.bias", "0.weight"]
        [(name, extra)] = checkpoint.extra_state().items()
    assert (name, extra["scale"]) == ("0._extra_state", 2.5)
    assert torch.equal(extra["history"]["amax"], torch.arange(3.0))
