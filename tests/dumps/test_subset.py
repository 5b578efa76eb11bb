"""Tests of the subset of rows in every dump: the same rows for every store, layer and checkpoint."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.errors import DataError
from ckpt_probe.extraction import Block, Storage, store_writer
from ckpt_probe.models import LayerTap, Taps

CLASSES, ROWS, SUBSET = 4, 300, 40
DRAW = np.random.default_rng(0)
LABELS = torch.from_numpy(DRAW.choice(CLASSES, ROWS, p=[0.7, 0.2, 0.08, 0.02]))
FEATURES = torch.from_numpy(DRAW.normal(size=(ROWS, 6)).astype(np.float32)) + torch.nn.functional.one_hot(LABELS, 6)
WEIGHTS = torch.from_numpy(DRAW.normal(size=(CLASSES, 6)))


def dump_of(path: Path, at_once: int = 50, chosen: torch.Tensor | None = None, **storage: object) -> Path:
    """Write a dump of all rows in blocks of `at_once` rows, and return its path."""
    blocks = [
        Block(rows, labels, (rows @ WEIGHTS.T.float()), {"body": 2 * rows[:, :3]})
        for rows, labels in zip(FEATURES.split(at_once), LABELS.split(at_once), strict=True)
    ]
    taps = Taps((LayerTap("body", 0.0, "features", (3,), 3),))
    settings = Storage(subset_rows=SUBSET, **storage)  # pyright: ignore[reportArgumentType]
    with store_writer(path, None, settings, WEIGHTS, taps=taps) as writer:
        writer.write_split("test", blocks, rows=ROWS, chosen=chosen)
    return path


def subset_in(path: Path) -> dict[str, np.ndarray]:
    with cp.open_dump(path) as dump:
        subset = dump["test"].read_subset()
        assert subset is not None
        [body, last] = dump["test"].layers
        assert np.array_equal(body.rows[()], 2 * subset["features"][:, :3])
        assert np.array_equal(last.rows[()], subset["features"])
        assert np.array_equal((body.read_subset() or {})["features"], body.rows[()])
    return subset


def test_rows_are_balanced_by_class_and_the_same_for_every_store(tmp_path: Path) -> None:
    subset = subset_in(dump_of(tmp_path / "a.h5"))
    assert np.array_equal(subset["features"], FEATURES[subset["indices"]].numpy())
    assert np.array_equal(subset["labels"], LABELS[subset["indices"]].numpy())
    counts, totals = np.bincount(subset["labels"]), np.bincount(LABELS)
    assert counts.sum() == SUBSET
    assert all(count == total or count >= counts.max() - 1 for count, total in zip(counts, totals, strict=True))
    others = {
        "moments": dump_of(tmp_path / "b.h5", store="moments"),
        "blocks": dump_of(tmp_path / "c.h5", at_once=7, store="both", layer_store="both"),
        "some": dump_of(tmp_path / "d.h5", chosen=torch.arange(0, ROWS, 3)),
    }
    for name, path in others.items():
        assert np.array_equal(subset_in(path)["indices"], subset["indices"]), name
        assert np.array_equal(subset_in(path)["features"], subset["features"]), name


def test_errors_do_not_depend_on_the_store(tmp_path: Path) -> None:
    features = cp.analyze(dump_of(tmp_path / "a.h5", store="both", layer_store="both"), errors=True)[-1]
    moments = cp.analyze(dump_of(tmp_path / "b.h5", store="moments"), errors=True)[-1]
    for name in ("nc1.pinv", "class.mir", "sample.mir", "within.entropy_mean"):
        assert features[f"{name}_stderr"] > 0
        # With features up to 2,048 rows are used for errors, with moments the 40 rows of the subset.
        assert moments[f"{name}_stderr"] == pytest.approx(features[f"{name}_stderr"], rel=0.25)
        assert moments[f"{name}_bias"] == pytest.approx(features[f"{name}_bias"], rel=1e-6)


def test_an_invalid_subset_is_refused(tmp_path: Path) -> None:
    path = dump_of(tmp_path / "a.h5", store="moments")
    with h5py.File(path, "r+") as file:
        del file.attrs["structure_sha256"], file.attrs["format"]
        labels = file["test/subset/labels"][()]  # pyright: ignore[reportIndexIssue]
        del file["test/subset/labels"]
        file["test/subset/labels"] = labels[:-1]
    with pytest.raises(
        DataError,
        match=r"subset/labels: expected integers of shape \(R,\), R = 40 as in test/subset/indices, found shape \(39",
    ):
        cp.analyze(path, errors=True)[0]


def test_dumps_of_moments_of_earlier_formats_have_no_errors_and_a_reason(tmp_path: Path) -> None:
    path = dump_of(tmp_path / "a.h5", store="moments")
    with h5py.File(path, "r+") as file:
        del file["test/subset"], file["test/layers"], file["test/moments/first_half"], file["test/moments/second_half"]
        del file.attrs["structure_sha256"]
        file.attrs["format_version"] = 2
    plain = cp.analyze(path)[-1]
    record = cp.analyze(path, errors=True)[-1]
    assert record["nc1.pinv"] == plain["nc1.pinv"]
    assert record["nc1.pinv_stderr"] is None
    assert record["nc1.pinv_bias"] is None
    assert "nc1.pinv_stderr" in record["missing"]
