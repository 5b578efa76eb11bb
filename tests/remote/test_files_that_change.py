"""Tests that a file which changes while it is read is an error and never gives tensors of two versions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ckpt_probe.errors import DataError
from ckpt_probe.opening import open_checkpoint


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Path, Path]:
    """Return two checkpoints with the same names and sizes, one of zeros and one of ones."""
    for value, name in ((0.0, "zeros"), (1.0, "ones")):
        tensors = {name: torch.full((500, 500), value) for name in ("h.weight", "z")}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    return tmp_path / "zeros.safetensors", tmp_path / "ones.safetensors"


def mean(checkpoint: Any, name: str) -> float:
    return float(checkpoint.read(name).mean())


def read_around(address: str, change: Callable[[], Any]) -> None:
    """Read one tensor, make the change, and read the other tensor."""
    with open_checkpoint(address) as checkpoint:
        assert mean(checkpoint, "h.weight") == 0
        change()
        mean(checkpoint, "z")


def test_an_object_replaced_between_two_tensors_is_an_error(s3: Any, versions: tuple[Path, Path]) -> None:
    address = "s3://bucket/x/m.safetensors"
    s3.put("bucket", "x/m.safetensors", versions[0])
    with pytest.raises(DataError, match="changed while it was read"):
        read_around(address, lambda: s3.put("bucket", "x/m.safetensors", versions[1]))
    with open_checkpoint(address) as checkpoint:
        assert mean(checkpoint, "h.weight") == mean(checkpoint, "z") == 1


def test_a_replaced_file_of_a_web_server_is_an_error(web: Any, versions: tuple[Path, Path]) -> None:
    served = web.folder / "m.safetensors"
    served.write_bytes(versions[0].read_bytes())
    address = web.at("m.safetensors")
    with pytest.raises(DataError, match="changed while it was read"):
        read_around(address, lambda: served.write_bytes(versions[1].read_bytes()))


def test_a_shard_that_changed_is_not_read_by_its_old_header(s3: Any, versions: tuple[Path, Path]) -> None:
    table = {"weight_map": dict.fromkeys(("h.weight", "z"), "model-1.safetensors")}
    s3.put("bucket", "sh/model-1.safetensors", versions[0])
    s3.put("bucket", "sh/model.safetensors.index.json", json.dumps(table).encode())
    address = "s3://bucket/sh/model.safetensors.index.json"
    with open_checkpoint(address) as checkpoint:
        assert mean(checkpoint, "z") == 0
    s3.put("bucket", "sh/model-1.safetensors", versions[1])
    with open_checkpoint(address) as checkpoint:
        assert mean(checkpoint, "z") == 1
