"""Tests of dumps as trees of xarray, read lazily, and of their view in a notebook."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.dumps import DumpWriter
from ckpt_probe.errors import DataError, UsageError

RNG = np.random.default_rng(0)
LABELS = np.arange(40) % 3
WEIGHTS, BIAS = RNG.normal(size=(3, 5)), RNG.normal(size=3)
FEATURES = (WEIGHTS[LABELS] + RNG.normal(size=(40, 5))).astype(np.float32)


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a dump with rows and moments of split test."""
    path = tmp_path_factory.mktemp("dump") / "step-000007.h5"
    moments = cp.Moments(3)
    moments.update(FEATURES, LABELS)
    with DumpWriter(path, None, classes=3, features=5) as writer:
        writer.write_classifier(torch.tensor(WEIGHTS), torch.tensor(BIAS))
        writer.start_split("test", 40, logits=True)
        writer.append("test", torch.tensor(FEATURES), torch.tensor(LABELS), torch.tensor(FEATURES @ WEIGHTS.T + BIAS))
        writer.write_moments("test", moments.state_dict(), {"samples": 40})
    return path


def test_a_tree_has_every_array_with_named_dimensions(dump: Path) -> None:
    with cp.open_dump(dump) as opened:
        tree = opened.to_xarray().load()
    test = tree["test"].dataset
    assert (tree.name, tree.attrs["step"], dict(test.sizes)) == (
        "step-000007",
        7,
        {"sample": 40, "feature": 5, "class": 3},
    )
    np.testing.assert_array_equal(test.features, FEATURES)
    np.testing.assert_array_equal(test.labels, LABELS)
    np.testing.assert_array_equal(tree["classifier"].weights, WEIGHTS)
    np.testing.assert_array_equal(tree["classifier/bias"], BIAS)
    means = test.features.groupby(test.labels).mean()
    np.testing.assert_allclose(means, tree["test/moments/means"], rtol=1e-6)
    assert tree["test/moments/counts"].dims == ("seen_class",)


def test_rows_are_read_when_they_are_accessed(dump: Path) -> None:
    with cp.open_dump(dump) as opened:
        features = opened.to_xarray()["test/features"]
        np.testing.assert_array_equal(features[3:9:2, [4, 0]], FEATURES[3:9:2][:, [4, 0]])
        np.testing.assert_array_equal(features.isel(sample=[7, 7, 2]), FEATURES[[7, 7, 2]])
        late = opened.to_xarray()["test/features"]
    with pytest.raises(DataError, match=r"step-000007\.h5"):
        late.load()


def test_dumps_of_other_programs_are_read_in_any_byte_order(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["test/features"], file["test/labels"] = FEATURES.astype(">f4"), LABELS.astype(">i2")
        file["test/more"] = np.arange(3)
    with cp.open_dump(tmp_path / "other.h5") as opened:
        tree = opened.to_xarray().load()
    assert set(tree.children) == {"test"}
    assert set(tree["test"].data_vars) == {"features", "labels"}
    assert tree["test/features"].dtype == "=f4"
    np.testing.assert_array_equal(tree["test/features"], FEATURES)


def test_a_notebook_shows_the_arrays_of_an_open_dump_and_that_a_dump_is_closed(dump: Path) -> None:
    with cp.open_dump(dump) as opened:
        root = ET.fromstring(opened._repr_html_())
    rows = [[cell.text for cell in row.iter("td")] for row in root.findall("tr")]
    assert rows[0][:3] == ["classifier/weights", "(3, 5)", "float64"]
    assert ["test/features", "(40, 5)", "float32", None] in rows
    assert root.findtext("caption") == "dump step-000007, step 7"
    assert len(list(root.iter("path"))) == 1
    assert "closed (it had test)" in ET.fromstring(opened._repr_html_()).findtext("caption")


def test_without_xarray_the_extra_is_named(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    with cp.open_dump(dump) as opened, pytest.raises(UsageError, match=r'pip install "ckpt-probe\[frames\]"'):
        opened.to_xarray()
