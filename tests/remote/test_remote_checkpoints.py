"""Tests of checkpoints at an address: read by ranges if the format allows it, with the contents of the local file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ckpt_probe.checkpoints import CheckpointMetadata, is_series, open_series, save_checkpoint
from ckpt_probe.errors import DataError
from ckpt_probe.opening import open_checkpoint
from ckpt_probe.remote import resolve

LARGE = 20_000_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 20 MB with three tensors, of which one is small."""
    file = tmp_path_factory.mktemp("large") / "step-000100.safetensors"
    tensors = {"backbone.0": torch.randn(1000, 2500), "head.weight": torch.randn(10, 64).bfloat16()}
    save_file({**tensors, "backbone.1": torch.randn(1000, 2500)}, file)
    assert file.stat().st_size > LARGE
    return file


def test_the_header_and_one_tensor_cost_half_a_percent_of_a_large_file(s3: Any, large: Path) -> None:
    s3.put("bucket", "run/step-000100.safetensors", large)
    s3.forget()
    with open_checkpoint("s3://bucket/run/step-000100.safetensors") as checkpoint:
        head = checkpoint.read("head.weight")
        assert checkpoint.names == ["backbone.0", "backbone.1", "head.weight"]
        assert checkpoint.size == large.stat().st_size
        assert str(checkpoint.path) == "s3://bucket/run/step-000100.safetensors"
    assert s3.sent < 0.005 * LARGE
    with open_checkpoint(large) as local:
        assert torch.equal(local.read("head.weight"), head)


def test_tensors_read_by_ranges_or_completely_equal_those_of_the_local_file(s3: Any, large: Path) -> None:
    s3.put("bucket", "whole/step-000100.safetensors", large)
    with (
        open_checkpoint("s3://bucket/whole/step-000100.safetensors") as away,
        open_checkpoint(large) as local,
    ):
        by_ranges, stored = away.state_dict(), local.state_dict()
        assert all(torch.equal(by_ranges[name], stored[name]) for name in stored)
        part = bytearray(1000)
        away.fill("backbone.1", 12_345, memoryview(part))
        s3.forget()
        assert away.content_hash() == local.content_hash()
        assert large.stat().st_size <= s3.sent < 1.01 * large.stat().st_size
        s3.forget()
        assert torch.equal(away.read("backbone.1"), stored["backbone.1"])
        assert s3.sent == 0
        assert bytes(part) == stored["backbone.1"].numpy().tobytes()[12_345:13_345]


def test_tensors_of_every_dtype_equal_those_of_the_local_file(s3: Any, tmp_path: Path) -> None:
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn)
    tensors = {str(dtype): torch.arange(12).reshape(3, 4).to(dtype) for dtype in dtypes}
    save_file({**tensors, "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4)}, tmp_path / "all.safetensors")
    s3.put("bucket", "dtypes/all.safetensors", tmp_path / "all.safetensors")
    with (
        open_checkpoint("s3://bucket/dtypes/all.safetensors") as away,
        open_checkpoint(tmp_path / "all.safetensors") as local,
    ):
        for name in local.names:
            remote_tensor, local_tensor = away.read(name), local.read(name)
            assert (remote_tensor.dtype, remote_tensor.shape) == (local_tensor.dtype, local_tensor.shape)
            assert (
                remote_tensor.reshape(-1).view(torch.uint8).tolist()
                == local_tensor.reshape(-1).view(torch.uint8).tolist()
            )


def test_a_damaged_remote_tensor_is_an_error_that_names_the_address(s3: Any, tmp_path: Path) -> None:
    file = tmp_path / "step-1.safetensors"
    save_checkpoint(file, {"w": torch.ones(1000)}, CheckpointMetadata(step=1))
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    s3.put("bucket", "damaged/step-1.safetensors", bytes(data))
    with (
        pytest.raises(DataError, match=r"^s3://bucket/damaged/step-1.safetensors: tensor 'w' is damaged"),
        open_checkpoint("s3://bucket/damaged/step-1.safetensors") as checkpoint,
    ):
        checkpoint.read("w")


def test_a_remote_run_is_listed_by_step_and_its_members_can_be_opened(s3: Any, tmp_path: Path) -> None:
    for step in (10, 2, 300):
        save_checkpoint(tmp_path / f"step-{step}.safetensors", {"w": torch.full((4,), float(step))})
    torch.save({"model": {"w": torch.full((4,), 7.0)}, "step": 7}, tmp_path / "seven.pth")
    s3.put_all("bucket", "runs/one/checkpoints", tmp_path)
    assert is_series(resolve("s3://bucket/runs/one/checkpoints"))
    members = open_series(resolve("s3://bucket/runs/one"))
    assert [member.step for member in members] == [2, 7, 10, 300]
    assert str(members[0].path) == "s3://bucket/runs/one/checkpoints/step-2.safetensors"
    for member in members:
        with open_checkpoint(member.path) as checkpoint:
            assert checkpoint.read("w")[0] == member.step


def test_shards_and_directories_of_trainers_are_read_from_their_prefix(s3: Any, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(3)}, folder / "model-00002-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "vit"}')
    (folder / "trainer_state.json").write_text('{"global_step": 5, "epoch": 1.5, "log_history": []}')
    s3.put_all("bucket", "trainer", tmp_path)
    with open_checkpoint("s3://bucket/trainer/checkpoint-5") as checkpoint:
        assert (checkpoint.names, checkpoint.metadata.step, checkpoint.metadata.epoch) == (["a", "b"], 5, 1.5)
        assert checkpoint.read("b").tolist() == [0, 0, 0]
        assert checkpoint.config_directory is not None
        assert json.loads((checkpoint.config_directory / "config.json").read_text()) == {"model_type": "vit"}
    assert [member.step for member in open_series(resolve("s3://bucket/trainer"))] == [5]


def test_pickles_and_distributed_checkpoints_are_read_from_the_cache(s3: Any, tmp_path: Path, cache: Path) -> None:
    import torch.distributed.checkpoint as dcp

    state = nn.Linear(4, 3).state_dict()
    torch.save(state, tmp_path / "last.pt")
    dcp.save(dict(state), checkpoint_id=tmp_path / "dist", no_dist=True)
    s3.put("bucket", "others/last.pt", tmp_path / "last.pt")
    s3.put_all("bucket", "dist", tmp_path / "dist")
    for address in ("s3://bucket/others/last.pt", "s3://bucket/dist"):
        with open_checkpoint(address) as checkpoint:
            assert torch.equal(checkpoint.read("weight"), state["weight"])
    names = {file.name for file in cache.rglob("*") if file.is_file()}
    assert names == {"last.pt", ".metadata", "__0_0.distcp"}


def test_a_missing_file_is_an_error_that_names_the_address(s3: Any) -> None:
    s3.put("bucket", "x", b"1")
    for address in ("s3://bucket/none.safetensors", "s3://no-such-bucket/a.pt"):
        with pytest.raises(DataError, match=f"^{address}: no such file or directory there$"), open_checkpoint(address):
            pass
    with (
        pytest.raises(DataError, match=r"^s3://bucket/x: not a checkpoint of a known format"),
        open_checkpoint("s3://bucket/x"),
    ):
        pass


def test_a_directory_of_a_web_server_is_a_series(web: Any) -> None:
    folder = web.folder / "run"
    folder.mkdir()
    for step in (1, 2):
        save_file({"w": torch.full((2,), float(step))}, folder / f"step-{step}.safetensors")
    torch.save({"w": torch.full((2,), 3.0)}, folder / "step-3.pth")
    members = open_series(resolve(web.at("run/")))
    assert [str(member.path) for member in members] == [web.at(f"run/step-{n}") + end for n, end in
        ((1, ".safetensors"), (2, ".safetensors"), (3, ".pth"))]  # fmt: skip
    with open_checkpoint(members[2].path) as checkpoint:
        assert checkpoint.read("w").tolist() == [3, 3]


def test_the_address_of_an_index_on_a_web_server_opens_the_shards_beside_it(web: Any) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    for name, file in index["weight_map"].items():
        save_file({name: torch.ones(2)}, web.folder / file)
    (web.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    web.pages["/"] = "no links"
    with open_checkpoint(web.at("model.safetensors.index.json")) as checkpoint:
        assert {name: checkpoint.read(name).tolist() for name in "ab"} == {"a": [1, 1], "b": [1, 1]}
    (web.folder / "model-00002-of-00002.safetensors").unlink()
    with (
        pytest.raises(DataError, match=r"model-00002-of-00002.safetensors: no such file or directory there"),
        open_checkpoint(web.at("model.safetensors.index.json")),
    ):
        pass
