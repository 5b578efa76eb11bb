"""Tests of checkpoint files: tensors are read lazily and written one at a time, and invalid files are refused."""

import json
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ckpt_probe.checkpoints import (
    CheckpointMetadata,
    CheckpointWriter,
    library_versions,
    open_checkpoint,
    save_checkpoint,
)
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.files import content_hash

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32,
    torch.uint64, torch.bool,
]  # fmt: skip


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3), "count": torch.tensor(7)}


def test_written_tensors_are_read_by_the_package_and_by_safetensors(tmp_path: Path) -> None:
    path, state = tmp_path / "a.safetensors", tensors()
    save_checkpoint(path, state, {"mine": "ä"})
    loaded = safetensors.torch.load_file(path)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.names == sorted(state)
        assert len(checkpoint) == 3
        assert "count" in checkpoint
        assert checkpoint.shape("a.weight") == (3, 4)
        assert checkpoint.dtype("count") == "I64"
        assert checkpoint.parameters() == 16
        assert checkpoint.raw_metadata == {"mine": "ä"}
        assert checkpoint.size == path.stat().st_size
        for name, tensor in state.items():
            assert torch.equal(checkpoint.read(name), tensor)
            assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_stored_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    bits = torch.arange(64, dtype=torch.uint8).reshape(8, 8)
    tensor = bits.bool() if dtype == torch.bool else bits.view(dtype)
    save_checkpoint(tmp_path / "a.safetensors", {"x": tensor, "empty": tensor[:0], "strided": tensor.T})
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        assert checkpoint.read("x").dtype == dtype
        assert torch.equal(checkpoint.read("x").view(torch.uint8), tensor.view(torch.uint8))
        assert torch.equal(
            checkpoint.read("strided").contiguous().view(torch.uint8), tensor.T.contiguous().view(torch.uint8)
        )
        assert checkpoint.shape("empty")[0] == 0


def test_metadata_that_is_read_equals_the_written_metadata(tmp_path: Path) -> None:
    metadata = CheckpointMetadata(
        model="mlp",
        model_arguments={"hidden": [16]},
        data="digits",
        step=500,
        epoch=1.5,
        seed=3,
        metrics={"test": {"loss": 0.25}},
        versions=library_versions(),
    )
    save_checkpoint(tmp_path / "a.safetensors", tensors(), metadata)
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        assert checkpoint.metadata == metadata
    # A build for CUDA calls itself 2.13.0+cu130, and its package 2.13.0.
    assert torch.__version__.startswith(metadata.versions["torch"])


def test_a_foreign_file_has_empty_metadata_and_newer_or_invalid_metadata_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file(tensors(), tmp_path / "foreign.safetensors", {"format": "pt"})
    with open_checkpoint(tmp_path / "foreign.safetensors") as checkpoint:
        assert checkpoint.metadata == CheckpointMetadata()
    for name, strings, message in (
        ("new", {"ckpt_probe.format": "9"}, "format 9"),
        ("bad", {"ckpt_probe.format": "1", "ckpt_probe.step": "{"}, "ckpt_probe.step is not valid JSON"),
    ):
        save_checkpoint(tmp_path / name, tensors(), strings)
        with open_checkpoint(tmp_path / name) as checkpoint, pytest.raises(DataError, match=message):
            _ = checkpoint.metadata


def test_the_error_for_an_unknown_tensor_suggests_similar_names(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", tensors())
    with (
        open_checkpoint(tmp_path / "a.safetensors") as checkpoint,
        pytest.raises(DataError, match=r"no tensor 'a\.weigth'; nearest names: a\.weight"),
    ):
        checkpoint.read("a.weigth")


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole.safetensors", tensors())
    data = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-3])
    (tmp_path / "longer.safetensors").write_bytes(data + b"xx")
    (tmp_path / "text.safetensors").write_text("these are not the tensors you are looking for")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    huge = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "claims.safetensors").write_bytes(struct.pack("<Q", len(huge)) + huge)
    (tmp_path / "header.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    for name in ("cut", "longer", "text", "empty", "claims", "header"):
        path = tmp_path / f"{name}.safetensors"
        reason = "longer than its header says" if name == "longer" else "truncated"
        with pytest.raises(DataError, match=rf"{name}\.safetensors: .*{reason}"), open_checkpoint(path):
            pass
    for path, message in ((tmp_path / "missing.safetensors", "no such file"), (tmp_path, "a directory")):
        with pytest.raises(DataError, match=message), open_checkpoint(path):
            pass
        with pytest.raises(DataError, match=str(path)):
            content_hash(path)


def test_the_writer_requires_its_layout_and_leaves_no_file_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    layout = {"x": ("F32", (2,)), "y": ("I64", ())}

    def write(*tensors: tuple[str, torch.Tensor]) -> None:
        with CheckpointWriter(path, layout) as writer:
            for name, tensor in tensors:
                writer.write(name, tensor)

    x, y = ("x", torch.zeros(2)), ("y", torch.tensor(1))
    for tensors, message in (
        ((x,), "1 tensors were not written, first 'y'"),
        ((y, x), "tensor 'y' was written, but 'x' comes next"),
        ((x, y, x), "tensor 'x' was written, but None comes next"),
        ((("x", torch.zeros(3)),), r"tensor 'x' is F32 \(3,\), the layout says F32 \(2,\)"),
        ((("x", torch.zeros(2).double()),), "tensor 'x' is F64"),
    ):
        with pytest.raises(DataError, match=message):
            write(*tensors)
        assert list(tmp_path.iterdir()) == []
    write(x, y)
    with pytest.raises(UsageError, match="exists already"):
        write(x, y)
    with pytest.raises(DataError, match="complex128"):
        save_checkpoint(tmp_path / "b", {"z": torch.zeros(1, dtype=torch.complex128)})
