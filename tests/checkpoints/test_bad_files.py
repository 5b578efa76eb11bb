"""Tests of truncated, renamed, empty and other files of every format: invalid files are refused in one line."""

import gzip
import json
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.errors import CkptProbeError, DataError

STATE = {"w": torch.arange(600.0).reshape(20, 30), "b": torch.ones(20)}


def distributed(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(STATE, checkpoint_id=path, no_dist=True)


def zipped(path: Path) -> None:
    torch.save({"model": STATE}, path)


def stream(path: Path) -> None:
    torch.save({"model": STATE}, path, _use_new_zipfile_serialization=False)


def safe(path: Path) -> None:
    save_file(STATE, path)


KINDS = {"safetensors": safe, "zip": zipped, "stream": stream}
FILES = pytest.mark.parametrize("write", KINDS.values(), ids=KINDS.keys())


@FILES
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, write: Callable[[Path], None], share: float) -> None:
    path = tmp_path / "a.bin"
    write(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"a\.bin: ") as caught, open_checkpoint(path) as checkpoint:
        checkpoint.state_dict()
    assert "\n" not in str(caught.value)


@FILES
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.ckpt", "a.txt", "a", "a.pth.tar", "a.h5x"])
def test_the_format_is_detected_from_content_and_not_from_the_name(
    tmp_path: Path, write: Callable[[Path], None], name: str
) -> None:
    write(tmp_path / name)
    with open_checkpoint(tmp_path / name) as checkpoint:
        assert torch.equal(checkpoint.read("w"), STATE["w"])


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@FILES
def test_a_changed_byte_is_harmless_or_an_error_of_the_package(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """Damage in the description of the tensors either changes nothing that is checked or raises a CkptProbeError."""
    path = tmp_path / "a.pt"
    write(path)
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    for offset in generator.choice(min(len(data), 900), 120, replace=False):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ (1 << generator.integers(8))]) + data[offset + 1 :])
        # Any other exception fails the test.
        with suppress(CkptProbeError), open_checkpoint(path) as checkpoint:
            checkpoint.state_dict()


def test_an_empty_file_a_missing_file_and_an_empty_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "folder.pt").mkdir()
    for name, message in (
        ("empty.pt", r"empty\.pt: an empty file"),
        ("empty.safetensors", r"empty\.safetensors: .*truncated"),
        ("missing.pt", r"missing\.pt: no such file"),
        ("folder.pt", r"folder\.pt: no checkpoint found in this directory"),
    ):
        with pytest.raises(DataError, match=message):
            open_checkpoint(tmp_path / name).__enter__()


def test_a_directory_with_one_checkpoint_opens_as_this_checkpoint(tmp_path: Path) -> None:
    zipped(tmp_path / "weights.pth")
    (tmp_path / "optimizer.pt").write_bytes(b"not looked at")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.file == tmp_path / "weights.pth"
    shutil.copy(tmp_path / "weights.pth", tmp_path / "more.pth")
    with pytest.raises(DataError, match=r"a directory with 2 checkpoints; name one: more\.pth, weights\.pth"):
        open_checkpoint(tmp_path).__enter__()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 90, "an HDF5 file, not a checkpoint"),
        (b"GGUF" + b"\0" * 90, "a GGUF file"),
        (b"\x93NUMPY\x01\x00", "a numpy array"),
        (gzip.compress(b"x" * 100, mtime=0), "compressed with gzip; unpack it first"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer.*git lfs pull"),
        (b"<html>not found</html>", "a page of HTML or XML, perhaps of a failed download, not the file itself"),
        (b"ONNX or anything else", "not a checkpoint of a known format; expected safetensors"),
    ],
)
def test_files_of_other_formats_are_refused_with_their_format(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "model.pt").write_bytes(data)
    with pytest.raises(DataError, match=rf"model\.pt: {message}"):
        open_checkpoint(tmp_path / "model.pt").__enter__()


@pytest.mark.parametrize("data", [b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", b"<!doctype html>"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "model-00002-of-00002.safetensors", "pytorch_model-00002-of-00002.bin"]
)
def test_a_file_in_the_place_of_weights_or_of_a_shard_is_described(tmp_path: Path, name: str, data: bytes) -> None:
    if "-of-" in name:
        first = tmp_path / name.replace("00002-of", "00001-of")
        save = save_file if first.suffix == ".safetensors" else torch.save
        save({"a": torch.zeros(2)}, first)
        shards = {"a": first.name, "b": name}
        index = {"weight_map": shards, "metadata": {"total_size": 16}}
        (tmp_path / f"{name.partition('-')[0]}{first.suffix}.index.json").write_text(json.dumps(index))
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=rf"/{name}: a (Git LFS pointer|page of HTML)"):
        open_checkpoint(tmp_path).__enter__()


def test_a_directory_of_shards_of_several_processes_is_refused(tmp_path: Path) -> None:
    for rank in range(2):
        zipped(tmp_path / f"mp_rank_0{rank}_model_states.pt")
    with pytest.raises(DataError, match=r"one part of a model sharded by DeepSpeed.*zero_to_fp32"):
        open_checkpoint(tmp_path).__enter__()
    (tmp_path / "mp_rank_01_model_states.pt").unlink()
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.state_key == "model"
    zipped(tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    with pytest.raises(DataError, match="one part of a model sharded by DeepSpeed"):
        open_checkpoint(tmp_path).__enter__()


def test_a_directory_of_torch_distributed_with_truncated_metadata_is_refused(tmp_path: Path) -> None:
    distributed(tmp_path / "a")
    data = (tmp_path / "a" / ".metadata").read_bytes()
    for share in (0.0, 0.2, 0.7, 0.99):
        (tmp_path / "a" / ".metadata").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DataError, match=r"\.metadata: "):
            open_checkpoint(tmp_path / "a").__enter__()
