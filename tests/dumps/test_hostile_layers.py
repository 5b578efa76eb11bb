"""Checks that inconsistent or incomplete groups of layers are refused before a row is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.errors import DataError
from ckpt_probe.extraction import Block, Storage, store_writer
from ckpt_probe.models import LayerTap, Taps


def write(path: Path) -> Path:
    """Write a dump of 12 rows with one layer of 4 features, its moments and rows, and a subset of 5 rows."""
    draw = torch.Generator().manual_seed(0)
    features, rows, labels = (
        torch.randn(12, 3, generator=draw),
        torch.randn(12, 4, generator=draw),
        torch.arange(12) % 2,
    )
    taps = Taps((LayerTap("body", 0.0, "mean", (4, 2, 2), 4, 1),))
    storage = Storage(layer_store="both", subset_rows=5)
    with store_writer(path, None, storage, torch.eye(2, 3).double(), taps=taps) as writer:
        writer.write_split("test", [Block(features, labels, torch.zeros(12, 2), {"body": rows})], rows=12)
    return path


def replaced(name: str, values: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = values

    return change


def without(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]

    return change


def attribute(group: str, name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[group].attrs[name] = value

    return change


LAYER = "test/layers/body"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (attribute(LAYER, "depth", 1.5), r"layers/body: depth \(0 … 1\) or pooling is missing"),
        (attribute(LAYER, "depth", np.nan), r"layers/body: depth \(0 … 1\) or pooling is missing"),
        (attribute(LAYER, "depth", "deep"), r"layers/body: depth \(0 … 1\) or pooling is missing"),
        (
            replaced(f"{LAYER}/features", np.zeros((11, 4))),
            r"layers/body/labels: expected integers of shape \(N,\), N = 11 as in test/layers/body/features",
        ),
        (
            replaced(f"{LAYER}/features", np.zeros(12)),
            r"layers/body/features: expected floating-point numbers of shape",
        ),
        (without(f"{LAYER}/labels"), r"layers/body: features without labels"),
        (without(f"{LAYER}/moments/counts"), r"layers/body/moments: counts \(C,\) or means \(C, D\) are missing"),
        (
            replaced(f"{LAYER}/subset_rows", np.zeros((4, 4))),
            r"subset_rows: expected floating-point numbers of shape \(R, D\), R = 5 as in test/subset/indices",
        ),
        (
            replaced(f"{LAYER}/subset_rows", np.arange(5)),
            r"subset_rows: expected floating-point numbers of shape \(R, D\), R = 5 as in test/subset/indices",
        ),
        (without("test/subset"), r"layers/body/subset_rows: the indices of its rows are missing"),
        (without("test/subset/indices"), r"test/subset: indices or seed are missing"),
        (replaced("test/subset/indices", np.zeros(5)), r"indices: expected integers of shape \(R,\)"),
        (replaced(LAYER, np.zeros(3)), r"layers/body: expected a group"),
        (replaced("test/layers", h5py.SoftLink("/nowhere")), r"test/layers: expected a group"),
    ],
)
def test_inconsistent_layers_are_refused(tmp_path: Path, change: Callable[[h5py.File], None], message: str) -> None:
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        # This version has no hash of names, which an attacker would adapt too.
        file.attrs["format_version"] = 2
        change(file)
    with pytest.raises(DataError, match=message) as raised, cp.open_dump(path):
        pass
    assert str(raised.value).startswith(f"{path}: ")


def test_a_changed_depth_is_detected(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file[LAYER].attrs["depth"] = 0.5
    with pytest.raises(DataError, match="damaged: names or attributes differ"), cp.open_dump(path):
        pass


def test_every_array_of_a_layer_has_a_checksum(tmp_path: Path) -> None:
    with h5py.File(write(tmp_path / "a.h5")) as file:

        def check(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.shape and item.size:
                assert item.fletcher32, name

        file["test"].visititems(check)
