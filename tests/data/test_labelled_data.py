"""Tests of labelled data by name: shapes, splits, ranges, and refused input."""

import gzip
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from ckpt_probe.data import ArraySplit, DatasetSplit, LabelledData, load_data
from ckpt_probe.errors import DataError, UsageError


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_like(directory: Path, *, zipped: bool = False, spelled: str = "-idx") -> Path:
    generator = np.random.default_rng(0)
    for prefix, count in (("train", 20), ("t10k", 8)):
        images = generator.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        labels = (np.arange(count) % 3).astype(np.uint8)
        for name, array in ((f"{prefix}-images{spelled}3-ubyte", images), (f"{prefix}-labels{spelled}1-ubyte", labels)):
            content = idx(array)
            path = directory / (f"{name}.gz" if zipped else name)
            path.write_bytes(gzip.compress(content) if zipped else content)
    return directory


def test_digits_have_fixed_splits_that_depend_on_the_seed() -> None:
    data = load_data("digits")
    assert (data.classes, data.input_shape, list(data.splits)) == (10, (1, 8, 8), ["train", "test"])
    assert (len(data.split("train")), len(data.split("test"))) == (1347, 450)
    inputs, _ = data.split("train").batch(slice(None))
    assert inputs.dtype == torch.float32
    assert (inputs.min(), inputs.max()) == (0, 1)
    for split in data.splits.values():
        share = torch.bincount(split.labels) / len(split)
        assert share.min() > 0.09
    repeated, _ = load_data("digits").split("train").batch(slice(None))
    assert torch.equal(inputs, repeated)
    other_seed, _ = load_data("digits", {"split_seed": 1}).split("train").batch(slice(None))
    assert not torch.equal(inputs, other_seed)
    everything = torch.cat([inputs, data.split("test").batch(slice(None))[0]]).flatten(1)
    assert len(everything) == 1797
    assert torch.equal(data.split("test").batch(torch.tensor([3, 1]))[1], data.split("test").labels[[3, 1]])


@pytest.mark.parametrize(("zipped", "spelled"), [(False, "-idx"), (True, "-idx"), (False, ".idx")])
def test_idx_files_are_read_plain_and_compressed(tmp_path: Path, zipped: bool, spelled: str) -> None:
    data = load_data(f"idx:{mnist_like(tmp_path, zipped=zipped, spelled=spelled)}")
    assert (data.classes, data.input_shape) == (3, (1, 5, 4))
    inputs, labels = data.split("test").batch(slice(0, 2))
    raw = np.random.default_rng(0)
    raw.integers(0, 256, (20, 5, 4), dtype=np.uint8)
    expected = raw.integers(0, 256, (8, 5, 4), dtype=np.uint8)[:2]
    np.testing.assert_allclose(inputs[:, 0], expected / 255, rtol=1e-6)
    assert labels.tolist() == [0, 1]


def test_broken_idx_files_are_refused_with_their_name(tmp_path: Path) -> None:
    directory = mnist_like(tmp_path)
    path = directory / "train-images-idx3-ubyte"
    intact = path.read_bytes()
    for content, message in (
        (intact[:-1], "the header promises 400 bytes of data"),
        (intact + b"x", "the file has more"),
        (intact[:3], "not an idx file"),
        (b"\0\0\x0b" + intact[3:], "not an idx file"),
        (intact[:4] + struct.pack(">3I", 2**31, 2**31, 2**31), "more than a file of this size can contain"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"train-images-idx3-ubyte: .*{message}"):
            load_data(f"idx:{directory}")
    path.unlink()
    with pytest.raises(DataError, match=r"neither train-images-idx3-ubyte nor"):
        load_data(f"idx:{directory}")
    (directory / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b" + bytes(30))
    with pytest.raises(DataError, match=r"cannot be read|not an idx file"):
        load_data(f"idx:{directory}")


def test_one_of_the_two_splits_of_idx_files_may_be_absent(tmp_path: Path) -> None:
    directory = mnist_like(tmp_path)
    for file in directory.glob("train*"):
        file.unlink()
    assert list(load_data(f"idx:{directory}").splits) == ["test"]
    for file in directory.glob("t10k*"):
        file.unlink()
    with pytest.raises(DataError, match="neither train-images-idx3-ubyte nor t10k-images-idx3-ubyte"):
        load_data(f"idx:{directory}")


def test_different_numbers_of_images_and_labels_are_refused(tmp_path: Path) -> None:
    directory = mnist_like(tmp_path)
    (directory / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(7, dtype=np.uint8)))
    with pytest.raises(DataError, match="t10k has 8 images but 7 labels"):
        load_data(f"idx:{directory}")


def test_npz_files_are_read_with_and_without_splits(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 4
    np.savez(tmp_path / "one.npz", x=x, y=y)
    data = load_data(f"npz:{tmp_path / 'one.npz'}", {"test_fraction": 0.5})
    assert [len(split) for split in data.splits.values()] == [20, 20]
    assert torch.bincount(data.split("test").labels).tolist() == [5, 5, 5, 5]
    np.savez(tmp_path / "two.npz", x_train=x, y_train=y, x_val=x[:5], y_val=y[:5])
    data = load_data(f"npz:{tmp_path / 'two.npz'}")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 40, "val": 5}
    with pytest.raises(DataError, match="test_fraction"):
        load_data(f"npz:{tmp_path / 'one.npz'}", {"test_fraction": 1.5})


def test_archives_of_many_arrays_that_unpack_to_far_more_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckpt_probe.budget.MEMORY", 10**6)
    splits = {f"{name}_{number}": np.zeros((4, 10**5)) for number in range(5) for name in ("x", "y")}
    np.savez_compressed(tmp_path / "bomb.npz", **splits)
    with pytest.raises(DataError, match=r"bomb\.npz: unpacks to 64,\d+,\d+ bytes or more"):
        load_data(f"npz:{tmp_path / 'bomb.npz'}")


def test_names_of_no_characters_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_probe.budget.MEMORY", 10**6)
    np.savez(tmp_path / "names.npz", x=np.zeros((4, 2)), y=np.arange(4) % 2)
    names = b"{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,)}"
    with zipfile.ZipFile(tmp_path / "names.npz", "a") as archive:
        archive.writestr("class_names.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(names)) + names)
    with pytest.raises(DataError, match=r"names\.npz: class_names: unpacks to 256,000,000,\d+,\d+ bytes or more"):
        load_data(f"npz:{tmp_path / 'names.npz'}")


def test_invalid_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "named.npz", features=np.zeros((3, 2)))
    np.savez(tmp_path / "floats.npz", x_train=np.zeros((3, 2)), y_train=np.zeros(3))
    np.savez(tmp_path / "pickled.npz", x=np.array([{}, {}]), y=np.zeros(2, dtype=int))
    np.savez(tmp_path / "uneven.npz", x_a=np.zeros((3, 2)), y_a=np.zeros(2, dtype=int))
    np.savez(tmp_path / "short.npz", x=np.zeros((3, 2)), y=np.zeros(4, dtype=int))
    np.savez(tmp_path / "one_hot.npz", x=np.zeros((3, 2)), y=np.eye(3, dtype=int))
    arrays = {"x": np.zeros((3, 2)), "y": np.zeros(3, dtype=int)}
    np.savez(tmp_path / "both.npz", **arrays, x_test=arrays["x"], y_test=arrays["y"])
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "uneven.npz").read_bytes()[:100])
    stored = (tmp_path / "uneven.npz").read_bytes()
    entry = stored.index(b"PK\x01\x02")
    # In an entry of a zip's directory bit 0 of byte 8 marks encryption, and byte 6 is the version needed to unpack it.
    (tmp_path / "locked.npz").write_bytes(stored[: entry + 8] + b"\x01" + stored[entry + 9 :])
    (tmp_path / "newer.npz").write_bytes(stored[: entry + 6] + b"\xd2" + stored[entry + 7 :])
    for copied, name in (("twice", "x_a"), ("raw", "y_b")):
        (tmp_path / f"{copied}.npz").write_bytes(stored)
        with zipfile.ZipFile(tmp_path / f"{copied}.npz", "a") as archive:
            archive.writestr(name, "text")
    axes = b"{'descr': '<f8', 'fortran_order': False, 'shape': (True, 2)}"
    with zipfile.ZipFile(tmp_path / "axes.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(axes)) + axes + bytes(16))
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("text")
    for name, message in (
        ("named.npz", r"no arrays x and y \(.*\); found: features$"),
        ("floats.npz", r"y_train: store the numbers of the classes as an integer array \(N,\), found float64"),
        ("pickled.npz", "not an .npz file of plain arrays"),
        ("uneven.npz", r"y_a has shape \(2,\); expected one label per row of x_a \(3, 2\)"),
        ("both.npz", "x and y beside x_test and y_test; call them x_train and y_train, or remove them"),
        ("short.npz", r"y has shape \(4,\); expected one label per row of x"),
        ("one_hot.npz", r"y has shape \(3, 3\); expected one label per row"),
        ("empty.npz", "not an .npz file"),
        ("cut.npz", "not an .npz file"),
        ("locked.npz", r"locked\.npz: not an \.npz file of plain arrays \(.* is encrypted"),
        ("newer.npz", r"newer\.npz: not an \.npz file of plain arrays \(zip file version 21"),
        ("twice.npz", r"twice\.npz: not an .npz file of plain arrays \(two members have one name\)"),
        ("raw.npz", r"raw\.npz: not an .npz file of plain arrays \(a member is no array\)"),
        ("axes.npz", r"axes\.npz: not an .npz file of plain arrays \(an integer is required\)"),
        ("array.npy", "a single array; expected an .npz file"),
        ("text.npz", "not an .npz file"),
        ("missing.npz", "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            load_data(f"npz:{tmp_path / name}")


PLUGIN = """
import numpy as np, torch
from torch.utils.data import TensorDataset
def arrays(count=6):
    return {"train": (np.zeros((count, 2)), np.arange(count) % 2), "test": (np.zeros((2, 2)), [0, 1])}
def dataset():
    return {"train": TensorDataset(torch.arange(12.0).reshape(6, 2), torch.arange(6) % 3)}
def empty():
    return {"train": (np.zeros((0, 2)), np.zeros(0, dtype=int))}
def negative():
    return {"train": (np.zeros((2, 2)), [0, -1])}
def wrong():
    return [1, 2]
def odd():
    return {"train": 7}
def failing():
    return {}["train"]

def beyond():
    from ckpt_probe.data import ArraySplit, LabelledData

    splits = {"train": ArraySplit(np.ones((4, 2)), [0, 1, 0, 1]), "test": ArraySplit(np.ones((3, 2)), [0, 1, 3])}
    return LabelledData("mine", splits, 2, (2,))

def named():
    return {"train": (np.ones((2, 2)), ["b", "a"])}
"""


def test_data_are_loaded_by_a_function_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_data_for_tests.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    data = load_data("my_data_for_tests:arrays", {"count": 8})
    assert (len(data.split("train")), data.classes, data.arguments) == (8, 2, {"count": 8})
    data = load_data("my_data_for_tests:dataset")
    inputs, labels = data.split("train").batch(torch.tensor([4, 0]))
    assert inputs.tolist() == [[8, 9], [0, 1]]
    assert labels.tolist() == [1, 0]
    assert data.split("train").labels.tolist() == [0, 1, 2, 0, 1, 2]
    for function, message in (
        ("empty", "split 'train' is empty"),
        ("negative", "a label is -1"),
        ("wrong", "expected a dict of splits, found list"),
        ("odd", "split 'train' is neither"),
        ("beyond", "split 'test': the label of sample 2 is 3, outside 0 … 1, though the data have 2 classes"),
        ("named", r"labels: expected numbers of classes, 0 … C−1, found 'b'; number them: .*numpy\.unique"),
    ):
        with pytest.raises(DataError, match=message):
            load_data(f"my_data_for_tests:{function}")
    with pytest.raises(UsageError, match="cannot be loaded with arguments"):
        load_data("my_data_for_tests:arrays", {"size": 8})
    with pytest.raises(UsageError, match="data my_data_for_tests:failing: the function raised KeyError: 'train'"):
        load_data("my_data_for_tests:failing")


def test_an_unknown_name_lists_the_known_ones_and_a_path_its_kind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no data called 'mnist'; there are: digits, idx:DIR, npz:FILE"):
        load_data("mnist")
    with pytest.raises(UsageError, match=r"no data called '" + "x" * 300 + "'; there are"):
        load_data("x" * 300)
    (tmp_path / "a.txt").write_text("")
    for path, meant in ((tmp_path, "imagefolder:"), (tmp_path / "a.txt", "text:")):
        with pytest.raises(UsageError, match=f"did you mean {meant}{path}"):
            load_data(str(path))
    with pytest.raises(UsageError, match=r"unknown argument fraction; digits takes classes, .*, test_fraction"):
        load_data("digits", {"fraction": 0.5})
    with pytest.raises(DataError, match="no split 'validation'; there are: train, test"):
        load_data("digits").split("validation")


def test_inputs_of_every_kind_have_a_dtype_for_models() -> None:
    integers = ArraySplit(np.arange(6).reshape(3, 2), np.zeros(3, dtype=int))
    assert integers.batch(slice(0, 1))[0].dtype == torch.int64
    half = ArraySplit(torch.zeros(3, 2, dtype=torch.float16), torch.zeros(3))
    assert half.batch(slice(0, 1))[0].dtype == torch.float32
    split = DatasetSplit(TensorDataset(torch.zeros(5, 2), torch.arange(5)))
    assert len(split.batch(slice(1, 3))[0]) == 2
    assert LabelledData("mine", {"test": split}, 5, (2,)).split("test") is split
