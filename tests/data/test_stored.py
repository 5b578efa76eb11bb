"""`h5:FILE`: splits that stay on the disk, and files that lead outside themselves or hold something else."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ckpt_probe.data import load_data, ready_batches
from ckpt_probe.errors import DataError, UsageError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 4)).astype(">f8"), np.arange(30) % 3


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_dataset("train/inputs", data=X, chunks=(7, 4), compression="gzip")
        file["train/labels"] = Y
        file["test/inputs"] = (X[:6] * 0 + 51).astype(np.uint8).reshape(6, 1, 2, 2)
        file["test/labels"] = Y[:6].astype(np.uint8)
        file["class_names"] = np.array([b"ant", b"bee", "käfer".encode()])
        file["notes"] = np.zeros(3)
    return tmp_path / "data.h5"


def test_splits_are_read_from_the_disk(stored: Path) -> None:
    data = load_data(f"h5:{stored}")
    assert (list(data.splits), data.classes, data.class_names) == (["test", "train"], 3, ("ant", "bee", "käfer"))
    train = data.split("train")
    with ready_batches(train, 8) as batches:
        found = list(batches)
    expected = torch.from_numpy(X.astype(np.float32))
    assert torch.equal(torch.cat([torch.as_tensor(inputs) for inputs, _ in found]), expected)
    assert torch.cat([labels for _, labels in found]).tolist() == Y.tolist()
    rows = torch.tensor([5, 29, 5, 0])
    inputs, labels = train.batch(rows)
    assert torch.equal(torch.as_tensor(inputs), expected[rows])
    assert labels.tolist() == [2, 2, 2, 0]
    images, _ = data.split("test").batch(slice(0, 2))
    torch.testing.assert_close(images, torch.full((2, 1, 2, 2), 0.2))


def test_choices_read_it_into_memory(stored: Path) -> None:
    with h5py.File(stored, "a") as file:
        del file["test"]
    data = load_data(f"h5:{stored}", {"classes": [2, 0], "per_class": 3})
    assert (data.classes, data.class_names, len(data.split("train"))) == (2, ("käfer", "ant"), 6)
    with pytest.raises(UsageError, match="unknown argument test_fraction; h5 takes"):
        load_data(f"h5:{stored}", {"test_fraction": 0.5})


def test_arrays_at_the_root_are_one_split(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "test.h5", "w") as file:
        file["inputs"], file["labels"] = X, Y
    data = load_data(f"h5:{tmp_path / 'test.h5'}")
    assert (list(data.splits), data.class_names) == (["test"], None)


def spoiled(where: Path, kind: str) -> None:
    with h5py.File(where, "w") as file:
        if kind == "nothing":
            file["features"] = X
        elif kind == "floats":
            file["a/inputs"], file["a/labels"] = X, Y + 0.5
        elif kind == "uneven":
            file["a/inputs"], file["a/labels"] = X, Y[:5]
        elif kind == "link":
            file["a/labels"], file["a/inputs"] = Y, h5py.ExternalLink("other.h5", "/x")
        elif kind == "huge":
            file["a/labels"] = Y
            file.create_dataset("a/inputs", (10**12, 4), "f4", chunks=(100, 4))
        elif kind == "names":
            file["inputs"], file["labels"], file["class_names"] = X, Y, np.zeros(3)
        elif kind == "negative":
            file["inputs"], file["labels"] = X, Y - 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nothing", "no arrays inputs and labels, at its root or in a group for each split"),
        ("floats", r"a: labels must be integers \(N,\)"),
        ("uneven", r"a: inputs have shape \(30, 4\); expected \(N, …\) for labels \(5,\)"),
        ("link", r"a/inputs: a link to another file"),
        ("huge", "a/inputs: claims 16,000,000,000,000 bytes, but only 0 were ever written"),
        ("names", "class_names: expected"),
        ("negative", "a label is -1"),
    ],
)
def test_files_that_are_none(kind: str, message: str, tmp_path: Path) -> None:
    spoiled(tmp_path / "x.h5", kind)
    with pytest.raises(DataError, match=message):
        load_data(f"h5:{tmp_path / 'x.h5'}")


def test_files_that_are_missing_cut_or_damaged(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_data(f"h5:{tmp_path / 'missing.h5'}")
    data = load_data(f"h5:{stored}")
    content = stored.read_bytes()
    stored.write_bytes(content[:500])
    with pytest.raises(DataError, match="not an HDF5 file, or a truncated one"):
        load_data(f"h5:{stored}")
    with pytest.raises(DataError, match="truncated"):
        data.split("train").batch(slice(None))
