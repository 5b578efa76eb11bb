"""Tests of analyzing a split in ranges of rows: same numbers with any number of workers, errors that name the row."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ckpt_probe.analysis import analyze
from ckpt_probe.errors import DataError

RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.arange(95) % 5)
WEIGHTS = RNG.normal(size=(5, 8))
FEATURES = WEIGHTS[LABELS] + RNG.normal(size=(95, 8))
LOGITS = FEATURES @ WEIGHTS.T + RNG.normal(size=5)


def dump(path: Path, **changes: np.ndarray | None) -> Path:
    datasets = {"train/features": FEATURES, "train/labels": LABELS, "classifier/weights": WEIGHTS} | changes
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            if value is not None:
                file[name] = value
    return path


def assert_the_same(records: Any, expected: Any, relative: float = 1e-11) -> None:
    for record, reference in zip(records, expected, strict=True):
        assert list(record) == list(reference)
        for name, value in reference.items():
            assert record[name] == (
                pytest.approx(value, rel=relative, abs=1e-12) if isinstance(value, float) else value
            )


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"train/logits": LOGITS}, {}),
        ({"train/prediction": LOGITS.argmax(axis=1), "train/loss": RNG.random(95)}, {}),
        ({"classifier/weights": None}, {}),
        ({"classifier/weights": None}, {"only": ("nc",)}),
        ({}, {"centred": True, "per_class": True, "orders": (2.0,)}),
        ({}, {"only": ("nc",), "min_samples": 19, "precision": "float32"}),
        ({}, {"errors": True, "centred": True}),
        # If rows are few and wide, the moments consist of the rows themselves.
        ({"train/features": np.hstack([FEATURES] * 30), "classifier/weights": np.hstack([WEIGHTS] * 30)}, {}),
    ],
)
@pytest.mark.parametrize("rows", [23, 94])
def test_ranges_give_the_numbers_of_the_full_split(tmp_path: Path, changes: Any, options: Any, rows: int) -> None:
    path = dump(tmp_path / "step-1.h5", **changes)
    # In single precision the order of rounding differs, and biases are small differences of large numbers.
    relative = 1e-5 if options.get("precision") == "float32" else 1e-7 if "errors" in options else 1e-11
    assert_the_same(analyze(path, rows_per_task=rows, **options), analyze(path, **options), relative)


def test_workers_change_neither_the_records_nor_their_order(tmp_path: Path) -> None:
    for step in (3, 1, 2):
        dump(tmp_path / f"step-{step}.h5", **{"test/features": FEATURES[:20], "test/labels": LABELS[:20]})
    # This dump consists of a single range, which is not sent to a worker.
    dump(tmp_path / "step-4.h5", **{"train/features": FEATURES[:30], "train/labels": LABELS[:30]})
    alone = list(analyze(tmp_path, rows_per_task=30))
    assert [(record["step"], record["split"]) for record in alone] == [
        *((step, split) for step in (1, 2, 3) for split in ("train", "test")),
        (4, "train"),
    ]
    assert list(analyze(tmp_path, rows_per_task=30, workers=2, cache=True)) == alone
    # The record is cached and not computed again for another number of rows per range.
    assert list(analyze(tmp_path, rows_per_task=11, cache=True)) == alone


@pytest.mark.parametrize(
    ("row", "message", "workers"), [(7, "row 7", 1), *((70, r"row 10 \(counted from row 60\)", n) for n in (1, 2))]
)
def test_an_invalid_row_is_named(tmp_path: Path, row: int, message: str, workers: int) -> None:
    features = FEATURES.copy()
    features[row] = np.nan
    path = dump(tmp_path / "step-1.h5", **{"train/features": features})
    with pytest.raises(DataError, match=rf"step-1\.h5: train: features: 1 row .*{message}$"):
        list(analyze(path, rows_per_task=30, workers=workers))
