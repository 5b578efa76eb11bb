"""Tests of metrics that compare rows with the class means of the training split."""

from pathlib import Path

import h5py
import numpy as np
import pytest

import ckpt_probe as cp

DRAW = np.random.default_rng(0)
CLASSES, WIDTH = 3, 4
CENTRES = DRAW.normal(size=(CLASSES, WIDTH))
NC4, ACCURACY = "nc4.disagreement_train_means", "nearest_mean_accuracy_train_means"


def arrays(rows: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(rows) % CLASSES
    return CENTRES[labels] + DRAW.normal(size=(rows, WIDTH)), labels


TRAIN, TEST = arrays(90), arrays(60)


def dump_of(path: Path, **splits: tuple[np.ndarray, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        file["classifier/weights"] = CENTRES
        for name, (features, labels) in splits.items():
            file[f"{name}/features"], file[f"{name}/labels"] = features, labels
    return path


def test_rows_are_compared_with_the_means_of_the_training_split(tmp_path: Path) -> None:
    train, test = cp.analyze(dump_of(tmp_path / "a.h5", train=TRAIN, test=TEST), errors=True, cache=False)
    means = np.stack([TRAIN[0][TRAIN[1] == label].mean(axis=0) for label in range(CLASSES)])
    nearest = np.linalg.norm(TEST[0][:, None] - means, axis=2).argmin(axis=1)
    correct, disagreeing = nearest == TEST[1], nearest != (TEST[0] @ CENTRES.T).argmax(axis=1)
    assert test[ACCURACY] == pytest.approx(correct.mean())
    assert test[NC4] == pytest.approx(disagreeing.mean())
    # The counts of labels are fixed, so the variance is computed within each class.
    by_class = [correct[TEST[1] == label] for label in range(CLASSES)]
    expected = np.sqrt(np.mean([part.var(ddof=1) for part in by_class]) / 60)
    assert test[f"{ACCURACY}_stderr"] == pytest.approx(expected, rel=1e-6)
    assert test[f"{ACCURACY}_bias"] == 0
    assert test["nearest_mean_accuracy"] != test[ACCURACY]
    for name in ("nc4.disagreement", "nearest_mean_accuracy"):
        for ending in ("", "_stderr", "_bias"):
            assert train[f"{name}_train_means{ending}"] == train[f"{name}{ending}"]


def test_ranges_of_rows_have_the_same_numbers(tmp_path: Path) -> None:
    path = dump_of(tmp_path / "a.h5", train=TRAIN, test=TEST)
    full, parts = cp.analyze(path, cache=False), cp.analyze(path, cache=False, rows_per_task=25)
    assert [record[name] for record in full for name in (NC4, ACCURACY)] == [
        record[name] for record in parts for name in (NC4, ACCURACY)
    ]


def test_values_are_absent_without_a_training_split_and_missing_if_training_classes_are_too_small(
    tmp_path: Path,
) -> None:
    [record] = cp.analyze(dump_of(tmp_path / "a.h5", test=TEST), cache=False)
    assert ACCURACY not in record
    few = (TRAIN[0][:9], TRAIN[1][:9])
    path = dump_of(tmp_path / "b.h5", train=few, test=TEST)
    record = cp.analyze(path, cache=False, min_samples=5)[-1]
    assert record[ACCURACY] is None
    assert f"{ACCURACY}" in record["missing"]
