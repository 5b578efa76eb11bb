"""Tests of joined data sources: labels, splits, shapes and dtypes, and invalid arguments."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from ckpt_probe.data import LabelledData, load_data
from ckpt_probe.errors import DataError, UsageError

Load = Callable[..., LabelledData]


@pytest.fixture
def union(study: Callable[[str], str]) -> Load:
    """Return a function that loads a union with the given arguments."""
    return lambda **arguments: load_data(study("class_count/digits_and_fashion.py:union"), arguments)


def source_entry(
    directory: Path, name: str, shape: tuple[int, ...], classes: int, kind: str = "uint8", splits: str = "a b"
) -> dict:
    """Write an npz of 12 samples per split that depend on the name, and return its entry of `sources`."""
    generator = np.random.default_rng(list(name.encode()))
    arrays = {}
    for split in splits.split():
        values = generator.integers(0, 256, (12, *shape), dtype=np.uint8)
        arrays[f"x_{split}"] = values if kind == "uint8" else (values / 255).astype(kind)
        arrays[f"y_{split}"] = np.arange(12) % classes
    np.savez(directory / f"{name}.npz", **arrays)
    return {"name": f"npz:{directory / f'{name}.npz'}"}


def test_labels_of_sources_are_consecutive_and_bytes_stay_bytes(union: Load, tmp_path: Path) -> None:
    sources = [source_entry(tmp_path, "one", (1, 4, 5), 3), source_entry(tmp_path, "two", (1, 4, 5), 2, splits="b c")]
    sources.append(source_entry(tmp_path, "three", (1, 4, 5), 4))
    data = union(sources=sources)
    assert data.name.endswith("digits_and_fashion.py:union")
    assert (list(data.splits), data.classes, data.input_shape) == (["b"], 9, (1, 4, 5))
    assert data.arguments == {"sources": sources}
    inputs, labels = data.split("b").batch(slice(None))
    parts = [load_data(entry["name"]).split("b").batch(slice(None)) for entry in sources]
    assert torch.equal(inputs, torch.cat([part[0] for part in parts]))
    assert labels.tolist() == [i % 3 for i in range(12)] + [3 + i % 2 for i in range(12)] + [
        5 + i % 4 for i in range(12)
    ]
    assert data.split("b").inputs.dtype == torch.uint8


@pytest.mark.parametrize("size", [(28, 28), (3, 5), (1, 2), (8, 8)])
def test_resized_images_equal_those_of_scipys_zoom(union: Load, tmp_path: Path, size: tuple[int, int]) -> None:
    entry = source_entry(tmp_path, "bytes", (1, 10, 6), 2, splits="train test")
    data = union(sources=[{"name": "digits"}, entry], size=list(size))
    assert data.input_shape == (1, *size)
    for split in ("train", "test"):
        digits = load_data("digits").split(split).batch(slice(None))[0].numpy()
        images = load_data(entry["name"]).split(split).batch(slice(None))[0].numpy()
        expected = [
            ndimage.zoom(x.astype(float), (1, 1, size[0] / x.shape[2], size[1] / x.shape[3]), order=1)
            for x in (digits, images)
        ]
        resized = data.split(split).batch(slice(None))[0].numpy()
        assert (resized.min() >= 0, resized.max() <= 1, resized.dtype) == (True, True, np.float32)
        np.testing.assert_allclose(resized[: len(digits)], expected[0], atol=1e-6)
        assert np.abs(resized[len(digits) :] - expected[1]).max() <= 0.5 / 255 + 1e-6


def test_bytes_joined_with_floats_keep_their_values(union: Load, tmp_path: Path) -> None:
    sources = [source_entry(tmp_path, "same", (3, 3), 2), source_entry(tmp_path, "other", (3, 3), 2, "float64")]
    inputs = union(sources=sources).split("a").inputs
    assert inputs.dtype == torch.float32
    for part, entry in zip(inputs.split(12), sources, strict=True):
        torch.testing.assert_close(part, load_data(entry["name"]).split("a").batch(slice(None))[0])


def test_samples_can_be_chosen_from_each_source_and_from_the_union(union: Load, study: Callable[[str], str]) -> None:
    first_source = {"name": "digits", "arguments": {"classes": [1, 7], "per_class": 20, "validation_per_class": 5}}
    inverted = {**first_source["arguments"], "source": "digits", "shift": "invert"}
    second_source = {"name": study("cma/shifted.py:shifted"), "arguments": inverted}
    data = union(sources=[first_source, second_source])
    assert (list(data.splits), data.classes) == (["train", "test", "validation"], 4)
    inputs, labels = data.split("validation").batch(slice(None))
    assert torch.bincount(labels).tolist() == [5, 5, 5, 5]
    torch.testing.assert_close(inputs[10:], 1 - inputs[:10])
    fewer = union(sources=[first_source, second_source], classes=[3, 0], per_class=4)
    assert torch.bincount(fewer.split("train").labels).tolist() == [4, 4]
    torch.testing.assert_close(fewer.split("validation").inputs[labels[labels % 3 == 0] == 0], inputs[labels == 0])
    nested = union(sources=[{"name": data.name, "arguments": {"sources": [first_source, second_source]}}, first_source])
    assert nested.classes == 6


def test_tables_of_integers_can_be_joined(union: Load, study: Callable[[str], str]) -> None:
    name = study("grokking/modular.py:modular_table")
    data = union(sources=[{"name": name, "arguments": {"p": 5, "op": op}} for op in ("add", "multiply")])
    assert (data.classes, data.input_shape, data.split("test").inputs.dtype) == (10, (2,), torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "missing 1 required positional argument: 'sources'"),
        ({"sources": None}, r"sources: expected a list such as \[{name = \"digits\"}\], found None"),
        ({"sources": []}, "sources: expected a list"),
        ({"sources": "digits"}, "sources: expected a list"),
        ({"sources": ["digits"]}, "sources: entry 1 has no name: 'digits'"),
        ({"sources": [{"name": "digits"}, {"data": "digits"}]}, "sources: entry 2 has no name"),
        ({"sources": [{"name": "digits", "split": "test"}]}, "entry 1: unknown key 'split'; it takes name and"),
        ({"sources": [{"name": "digits", "arguments": [1]}]}, "entry 1: arguments: expected a table"),
        ({"sources": [{"name": "mnist"}]}, "no data called 'mnist'"),
        ({"sources": [{"name": "digits", "arguments": {"per_class": 999}}]}, "data digits: per_class = 999: class 0"),
        (
            {"sources": [{"name": "digits"}], "size": 28},
            r"size: expected height and width in pixels such as \[28, 28\]",
        ),
        ({"sources": [{"name": "digits"}], "size": [28, 0]}, "size: expected height and width"),
        ({"sources": [{"name": "digits"}], "balance": True}, "cannot be loaded with arguments"),
    ],
)
def test_invalid_arguments_are_refused(union: Load, arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=f"digits_and_fashion.py:union: .*{message}"):
        union(**arguments)


OWN = """
import torch
from torch.utils.data import TensorDataset
def dataset():
    return {"train": TensorDataset(torch.zeros(6, 1, 8, 8), torch.arange(6) % 3)}
"""


def test_sources_that_cannot_be_joined_are_refused(union: Load, tmp_path: Path) -> None:
    (tmp_path / "own_data_for_unions.py").write_text(OWN)
    small, large = source_entry(tmp_path, "small", (1, 4, 4), 2), source_entry(tmp_path, "large", (1, 5, 4), 2)
    coloured, flat = source_entry(tmp_path, "coloured", (3, 4, 4), 2), source_entry(tmp_path, "flat", (16,), 2)
    for sources, size, message in (
        (
            [small, large],
            None,
            r"differ in shape; size = \[height, width\] resizes images: .*small.npz \(1, 4, 4\), .*lar",
        ),
        ([small, coloured], [8, 8], r"channels differ: .*\(1, 8, 8\), .*coloured.npz \(3, 8, 8\)"),
        ([flat], [8, 8], r"flat.npz has no images: its inputs have shape \(16,\)"),
        (
            [small, {"name": "digits"}],
            [4, 4],
            r"the sources have no split in common \(npz:.*: a, b; digits: train, test\)",
        ),
        (
            [small, source_entry(tmp_path, "whole", (1, 4, 4), 2, "int32")],
            None,
            "inputs of different dtypes cannot be joined: torch.uint8, torch.int32",
        ),
        (
            [{"name": f"{tmp_path}/own_data_for_unions.py:dataset"}],
            None,
            "only arrays in memory can be joined, not a dataset read sample by sample",
        ),
    ):
        with pytest.raises(DataError, match=message):
            union(sources=sources, size=size)
    np.savez(tmp_path / "wide.npz", x_a=np.full((4, 1, 4, 4), 200.0), y_a=np.arange(4) % 2)
    with pytest.raises(DataError, match=r"split a: uint8 images beside floats outside \[0, 1\]"):
        union(sources=[small, {"name": f"npz:{tmp_path / 'wide.npz'}"}])
