"""Tests of functions of users that return data: arrays, datasets, loaders, splits, and invalid values."""

import sys
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from ckpt_probe.data import DatasetSplit, load_data, ready_batches
from ckpt_probe.errors import DataError, UsageError

OWN = """
import numpy as np, torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

X, Y = torch.arange(24.0).reshape(12, 2), torch.arange(12) % 3

class Named(Dataset):
    classes = ["ant", "bee", "cat"]
    targets = Y.tolist()
    def __len__(self): return 12
    def __getitem__(self, i): return X[i], int(Y[i])

class InBytes(Named):
    classes = ["ant", "b\u00e9e".encode(), "cat".encode()]

class Other(Named):
    classes = ["bee", "ant", "cat"]

class Binary(Named):
    def __init__(self): self.target_transform = lambda label: int(label == 2)
    def __getitem__(self, i): return X[i], self.target_transform(int(Y[i]))

def clashing(): return {"train": Named(), "test": Subset(Other(), range(3))}
def binary(): return Binary()

class InLatin(Named):
    classes = ["b\u00e9e".encode("latin-1")]

class Mapped(Dataset):
    def __len__(self): return 12
    def __getitem__(self, i):
        return {"input_ids": torch.tensor([i, 1]), "attention_mask": torch.ones(2), "labels": int(Y[i])}

class Failing(Named):
    def __getitem__(self, i):
        if i == 7: raise KeyError("row seven")
        return super().__getitem__(i)

class Endless(IterableDataset):
    def __iter__(self): return iter(zip(X, Y))

def halved(samples):
    return torch.stack([x for x, _ in samples]) / 2, torch.tensor([y for _, y in samples])

def in_bytes(): return InBytes()
def in_latin(): return InLatin()
def pair(): return np.zeros((4, 2)), [0, 1, 1, 0]
def dataset(): return Named()
def subset(): return {"test": Subset(Named(), [5, 1])}
def loader(workers=0):
    return {"test": DataLoader(Named(), batch_size=5, shuffle=True, collate_fn=halved, num_workers=workers)}
def mapped(): return {"test": Mapped()}
def failing(): return {"test": Failing()}
def endless(): return {"test": Endless()}
def endless_loader(): return DataLoader(Endless())
def sampled(): return DataLoader(Named(), sampler=WeightedRandomSampler([1.0] * 12, 30))
def uneven(): return {"test": DatasetOf([(torch.zeros(2), 0), (torch.zeros(3), 1)])}
def unlabelled(): return {"test": DatasetOf([{"x": torch.zeros(2)}] * 2)}
def alone(): return {"test": TensorDataset(X)}

class DatasetOf(Dataset):
    def __init__(self, samples): self.samples, self.targets = samples, [0] * len(samples)
    def __len__(self): return len(self.samples)
    def __getitem__(self, i): return self.samples[i]
"""


@pytest.fixture(autouse=True)
def _restored_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore `sys.path`, to which loading a function's file adds its directory."""
    monkeypatch.setattr(sys, "path", sys.path.copy())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    return path


def everything(split: object) -> tuple[torch.Tensor, list[int]]:
    with ready_batches(split, 5) as batches:  # pyright: ignore[reportArgumentType]
        parts = list(batches)
    return torch.cat([inputs for inputs, _ in parts]), torch.cat([labels for _, labels in parts]).tolist()


def test_a_single_split_needs_no_name(source: Path) -> None:
    data = load_data(f"{source}:pair")
    assert (list(data.splits), data.classes, data.input_shape) == (["data"], 2, (2,))
    data = load_data(f"{source}:dataset")
    assert (list(data.splits), data.class_names) == (["data"], ("ant", "bee", "cat"))
    data = load_data(f"{source}:subset")
    assert (data.class_names, data.classes, data.split("test").labels.tolist()) == (("ant", "bee", "cat"), 3, [2, 1])


def test_names_of_classes_in_bytes_are_decoded(source: Path) -> None:
    assert load_data(f"{source}:in_bytes").class_names == ("ant", "bée", "cat")
    with pytest.raises(DataError, match=r"classes: b'b\\xe9e' is not UTF-8"):
        load_data(f"{source}:in_latin")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_is_read_in_order_with_its_collate_function_each_sample_once(source: Path, workers: int) -> None:
    data = load_data(f"{source}:loader", {"workers": workers})
    inputs, labels = everything(data.split("test"))
    assert torch.equal(inputs, torch.arange(24.0).reshape(12, 2) / 2)
    assert labels == [0, 1, 2] * 4
    assert (data.class_names, data.arguments) == (("ant", "bee", "cat"), {"workers": workers})


def test_samples_can_be_mappings(source: Path) -> None:
    data = load_data(f"{source}:mapped")
    inputs, labels = data.split("test").batch(slice(0, 3))
    assert (set(inputs), inputs["input_ids"].tolist()) == ({"input_ids", "attention_mask"}, [[0, 1], [1, 1], [2, 1]])
    assert (labels.tolist(), data.classes, data.input_shape) == ([0, 1, 2], 3, ())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_raises_is_reported_with_its_number(source: Path, workers: int) -> None:
    split = load_data(f"{source}:failing", workers=workers).split("test")
    assert isinstance(split, DatasetSplit)
    with pytest.raises(DataError) as caught:
        everything(split)
    assert str(caught.value) == "sample 7: KeyError: 'row seven'"
    assert active_children() == []
    # The traceback is a note of the error for --debug.
    assert "raise KeyError" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("endless", "split 'test': .* can only be iterated; return one with len and"),
        ("endless_loader", "split 'data': .* can only be iterated"),
        ("sampled", "split 'data': a loader with a WeightedRandomSampler; return the dataset, or a Subset of it"),
        ("clashing", "split 'train' has the classes ant, bee, cat, but split 'test' has bee, ant, cat"),
        ("unlabelled", "samples have no labels or label, but x"),
        ("alone", "sample 0 is neither \\(input, label\\) nor a mapping with a label"),
    ],
)
def test_other_return_values_are_refused(source: Path, function: str, message: str) -> None:
    with pytest.raises((DataError, UsageError), match=message):
        load_data(f"{source}:{function}")


def test_samples_of_different_shapes_are_refused(source: Path) -> None:
    split = load_data(f"{source}:uneven").split("test")
    with pytest.raises(DataError, match="samples do not make a batch: RuntimeError"):
        everything(split)


def test_labels_that_a_dataset_transforms_are_those_of_its_samples(source: Path) -> None:
    data = load_data(f"{source}:binary")
    assert (data.classes, data.class_names) == (2, None)
    assert data.split("data").labels.tolist() == [0, 0, 1] * 4
