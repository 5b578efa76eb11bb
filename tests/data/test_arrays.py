"""Tests of data in arrays and HDF5 files: reading, subsets of classes and samples, and refused input."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ckpt_probe.data import LabelledData, load_data, ready_batches
from ckpt_probe.errors import DataError, UsageError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 4)).astype(">f8"), np.arange(30) % 3


@pytest.fixture
def numbered(tmp_path: Path) -> str:
    """Write an npz whose inputs are the numbers of the samples; five classes with 30 for training and 6 to test."""
    labels = np.random.default_rng(0).permutation(np.arange(150) % 5)
    test = np.arange(30) % 5
    x = np.arange(150.0)[:, None]
    np.savez(tmp_path / "numbered.npz", x_train=x, y_train=labels, x_test=x[:30], y_test=test)
    return f"npz:{tmp_path / 'numbered.npz'}"


def rows(data: LabelledData, split: str) -> dict[int, int]:
    inputs, labels = data.split(split).batch(slice(None))
    return dict(zip(inputs[:, 0].int().tolist(), labels.tolist(), strict=True))


def test_chosen_classes_are_renumbered_in_their_order(numbered: str) -> None:
    complete, data = load_data(numbered), load_data(numbered, {"classes": [4, 0, 3]})
    assert (data.classes, data.arguments) == (3, {"classes": [4, 0, 3]})
    for split in ("train", "test"):
        expected = {row: [4, 0, 3].index(label) for row, label in rows(complete, split).items() if label in (4, 0, 3)}
        assert list(rows(data, split).items()) == list(expected.items())


def test_samples_of_a_smaller_per_class_are_contained_in_those_of_a_larger_one(numbered: str) -> None:
    complete = load_data(numbered)
    fewer: dict[int, int] = {}
    for count in (1, 5, 17, 30):
        data = load_data(numbered, {"per_class": count})
        chosen = rows(data, "train")
        assert torch.bincount(data.split("train").labels).tolist() == [count] * 5
        assert fewer.items() <= chosen.items() <= rows(complete, "train").items()
        assert list(chosen) == sorted(chosen)
        assert rows(data, "test") == rows(complete, "test")
        fewer = chosen
    other_seed = rows(load_data(numbered, {"per_class": 5, "subset_seed": 1}), "train")
    assert other_seed != rows(load_data(numbered, {"per_class": 5}), "train")


def test_the_samples_of_a_class_do_not_depend_on_the_other_classes(numbered: str) -> None:
    among_all = rows(load_data(numbered, {"per_class": 5}), "train")
    alone = rows(load_data(numbered, {"per_class": 5, "classes": [3, 1]}), "train")
    assert alone == {row: [3, 1].index(label) for row, label in among_all.items() if label in (3, 1)}


def test_validation_samples_are_not_in_the_training_split_and_do_not_depend_on_per_class(numbered: str) -> None:
    complete = rows(load_data(numbered), "train")
    validations = []
    for count in (1, 10, 20, None):
        data = load_data(numbered, {"validation_per_class": 10} | ({"per_class": count} if count else {}))
        train, validation = rows(data, "train"), rows(data, "validation")
        assert not train.keys() & validation.keys()
        assert (train | validation).items() <= complete.items()
        assert torch.bincount(data.split("validation").labels).tolist() == [10] * 5
        assert torch.bincount(data.split("train").labels).tolist() == [count or 20] * 5
        validations.append(validation)
    assert all(validation == validations[0] for validation in validations)
    other_seed = load_data(numbered, {"validation_per_class": 10, "subset_seed": 1})
    assert rows(other_seed, "validation") != validations[0]
    few = load_data(numbered, {"validation_per_class": 10, "classes": [2], "per_class": 3})
    assert rows(few, "validation") == {row: 0 for row, label in validations[0].items() if label == 2}


def test_the_recorded_arguments_load_the_same_data() -> None:
    arguments = {"classes": [7, 2], "per_class": 20, "validation_per_class": 5, "subset_seed": 3, "split_seed": 1}
    data = load_data("digits", arguments)
    assert data.arguments == arguments
    loaded = load_data("digits", data.arguments)
    for name, split in data.splits.items():
        assert torch.equal(split.labels, loaded.split(name).labels)
        assert torch.equal(split.batch(slice(None))[0], loaded.split(name).batch(slice(None))[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": []}, r"classes: expected a list of labels such as \[0, 3, 7\], found \[\]"),
        ({"classes": 3}, "classes: expected a list"),
        ({"classes": ["0"]}, "classes: expected a list"),
        ({"classes": [True]}, "classes: expected a list"),
        ({"classes": [0, 1, 0]}, "classes: 0 is listed twice"),
        ({"classes": [0, 10]}, "no sample has the label 10; there are: 0, 1, 2"),
        ({"per_class": 0}, "per_class: expected a whole number of at least 1, found 0"),
        ({"per_class": 1.5}, "per_class: expected a whole number"),
        ({"validation_per_class": -1}, "validation_per_class: expected a whole number"),
        ({"per_class": 133}, "per_class = 133: class 8 has 130 samples in split train, which is too few"),
        ({"per_class": 133, "classes": [3, 8]}, "per_class = 133: class 8 has 130 samples"),
        ({"per_class": 100, "validation_per_class": 50}, "per_class = 100 and validation_per_class = 50: class 0 has"),
        ({"validation_per_class": 140}, "validation_per_class = 140: class 0 has"),
        ({"subset_seed": -1}, "subset_seed: expected a whole number of at least 0"),
        ({"subset_seed": "1"}, "subset_seed: expected a whole number of at least 0"),
    ],
)
def test_invalid_classes_and_counts_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=f"data digits: .*{message}"):
        load_data("digits", arguments)


def test_splits_that_do_not_fit_the_arguments_are_refused(tmp_path: Path) -> None:
    x, y = np.zeros((6, 2)), np.arange(6) % 2
    np.savez(tmp_path / "validation.npz", x_train=x, y_train=y, x_validation=x, y_validation=y)
    with pytest.raises(UsageError, match="the data have a split 'validation' already"):
        load_data(f"npz:{tmp_path / 'validation.npz'}", {"validation_per_class": 1})
    np.savez(tmp_path / "untrained.npz", x_test=x, y_test=y)
    with pytest.raises(UsageError, match="no split 'train'; there are: test"):
        load_data(f"npz:{tmp_path / 'untrained.npz'}", {"per_class": 1})
    np.savez(tmp_path / "unseen.npz", x_train=x, y_train=y, x_test=x, y_test=y + 1)
    with pytest.raises(UsageError, match="class 2 has 0 samples in split train"):
        load_data(f"npz:{tmp_path / 'unseen.npz'}", {"per_class": 1})
    with pytest.raises(DataError, match="split 'train' is empty"):
        load_data(f"npz:{tmp_path / 'unseen.npz'}", {"classes": [2]})
    np.savez(tmp_path / "many.npz", x_train=np.zeros((23, 2)), y_train=np.arange(23))
    with pytest.raises(UsageError, match=r"there are: 0, 1, .*, 19 and 3 more$"):
        load_data(f"npz:{tmp_path / 'many.npz'}", {"classes": [23]})
    np.savez(tmp_path / "negative.npz", x_train=x, y_train=y - 1)
    with pytest.raises(DataError, match="a label is -1"):
        load_data(f"npz:{tmp_path / 'negative.npz'}", {"per_class": 1})


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="needs Fashion-MNIST's files")
def test_fashion_mnist_is_stored_as_bytes() -> None:
    data = load_data(f"idx:{FASHION_MNIST}", {"per_class": 100, "validation_per_class": 50})
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 1000,
        "test": 10000,
        "validation": 500,
    }
    assert data.split("train").inputs.dtype == torch.uint8


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


def test_splits_are_read_from_an_hdf5_file(stored: Path) -> None:
    data = load_data(f"h5:{stored}")
    assert (list(data.splits), data.classes, data.class_names) == (["test", "train"], 3, ("ant", "bee", "käfer"))
    train = data.split("train")
    with ready_batches(train, 8) as batches:
        read = list(batches)
    expected = torch.from_numpy(X.astype(np.float32))
    assert torch.equal(torch.cat([torch.as_tensor(inputs) for inputs, _ in read]), expected)
    assert torch.cat([labels for _, labels in read]).tolist() == Y.tolist()
    rows = torch.tensor([5, 29, 5, 0])
    inputs, labels = train.batch(rows)
    assert torch.equal(torch.as_tensor(inputs), expected[rows])
    assert labels.tolist() == [2, 2, 2, 0]
    images, _ = data.split("test").batch(slice(0, 2))
    torch.testing.assert_close(images, torch.full((2, 1, 2, 2), 0.2))


def test_chosen_classes_are_read_into_memory(stored: Path) -> None:
    with h5py.File(stored, "a") as file:
        del file["test"]
    data = load_data(f"h5:{stored}", {"classes": [2, 0], "per_class": 3})
    assert (data.classes, data.class_names, len(data.split("train"))) == (2, ("käfer", "ant"), 6)
    with pytest.raises(UsageError, match="unknown argument test_fraction; h5 takes"):
        load_data(f"h5:{stored}", {"test_fraction": 0.5})


def test_arrays_at_the_root_of_a_file_are_one_split(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "test.h5", "w") as file:
        file["inputs"], file["labels"] = X, Y
    data = load_data(f"h5:{tmp_path / 'test.h5'}")
    assert (list(data.splits), data.class_names) == (["test"], None)


def write_invalid(path: Path, kind: str) -> None:
    with h5py.File(path, "w") as file:
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
        elif kind == "groups":
            file.create_group("labels")
            file.create_group("inputs")
        elif kind == "labels":
            file.create_dataset("labels", (10**8,), "u1", chunks=(10**6,), compression="gzip")
            file.create_dataset("inputs", (10**8, 1), "u1", chunks=(10**6, 1), compression="gzip")
        elif kind == "negative":
            file["inputs"], file["labels"] = X, Y - 1
        elif kind == "both":
            file["inputs"], file["labels"], file["test/inputs"], file["test/labels"] = X, Y, X, Y


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nothing", "no arrays inputs and labels, at its root or in a group for each split"),
        ("floats", r"a: labels: .* as an integer array \(N,\), found \(30,\) of float64"),
        ("uneven", r"a: inputs have shape \(30, 4\); expected \(N, …\) for labels \(5,\)"),
        ("link", r"a/inputs: a link to another file"),
        ("huge", "a/inputs: claims 16,000,000,000,000 bytes, but only 0 were ever written"),
        ("names", "class_names: expected"),
        ("negative", "a label is -1"),
        ("both", "inputs and labels at the root beside those in test; move them to a group"),
        ("groups", r"x\.h5: inputs or labels is no dataset"),
        ("labels", "labels: unpacks to 800,000,000 bytes or more"),
    ],
)
def test_invalid_hdf5_files_are_refused(kind: str, message: str, tmp_path: Path) -> None:
    write_invalid(tmp_path / "x.h5", kind)
    with pytest.raises(DataError, match=message):
        load_data(f"h5:{tmp_path / 'x.h5'}")


def test_missing_and_truncated_hdf5_files_are_refused(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_data(f"h5:{tmp_path / 'missing.h5'}")
    data = load_data(f"h5:{stored}")
    content = stored.read_bytes()
    stored.write_bytes(content[:500])
    with pytest.raises(DataError, match="not an HDF5 file, or a truncated one"):
        load_data(f"h5:{stored}")
    with pytest.raises(DataError, match="truncated"):
        data.split("train").batch(slice(None))
