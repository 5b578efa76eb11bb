"""Tests of errors of the numbers per class: closed forms, reasons for missing errors, and the table."""

from pathlib import Path

import h5py
import numpy as np
import pytest

import ckpt_probe as cp
from ckpt_probe.analysis.record import compute_from_blocks
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.cli.app import run
from ckpt_probe.moments.details import FEW_OF_CLASS
from ckpt_probe.moments.errors.design import NO_SPREAD
from ckpt_probe.moments.errors.sample import FEW_ROWS, NOT_FINITE

SIZES = (60, 90, 25, 5)


def gaussian_classes(sizes: tuple[int, ...] = SIZES, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    labels = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return 0.7 * random.normal(size=(len(sizes), width))[labels] + random.normal(size=(len(labels), width)), labels


def rows_of_classes(features: np.ndarray, labels: np.ndarray) -> list[dict]:
    settings = Settings(per_class=True, errors=True)
    return compute_from_blocks(lambda: [(features, labels, None)], None, None, settings).per_class


def closed_forms(features: np.ndarray, means: np.ndarray, labels: np.ndarray, label: int) -> dict[str, np.ndarray]:
    """Return the influence of each row of a class on its numbers, up to a constant."""
    rows = features[labels == label]
    mean, unit = rows.mean(axis=0), rows / np.linalg.norm(rows, axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(unit.T @ unit / len(rows))
    nearest = np.linalg.norm(rows[:, None] - means, axis=2).argmin(axis=1)
    return {
        "mean_norm": rows @ mean / np.linalg.norm(mean),
        "variance": np.square(rows - mean).sum(axis=1),
        "within.entropy": -(np.square(unit @ vectors) @ np.log(values)),
        "nearest.own": (nearest == label).astype(float),
    }


def test_errors_equal_their_closed_forms_over_the_rows_of_the_class() -> None:
    features, labels = gaussian_classes()
    means = np.stack([features[labels == label].mean(axis=0) for label in range(len(SIZES))])
    for row in rows_of_classes(features, labels)[:3]:
        for name, influences in closed_forms(features, means, labels, row["class"]).items():
            expected = influences.std() / len(influences) ** 0.5
            # The formula over all rows divides by N − 1.
            assert row[f"{name}_stderr"] == pytest.approx(expected, rel=0.01), (row["class"], name)
        assert list(row)[-2:] == ["nearest.own_stderr", "nearest.confusion"]
        assert row["variance"] == pytest.approx(
            np.square(features - means[labels])[labels == row["class"]].sum(1).mean()
        )


def test_errors_agree_with_a_bootstrap() -> None:
    features, labels = gaussian_classes((80, 80, 80))
    random, row = np.random.default_rng(0), rows_of_classes(features, labels)[1]
    rows, draws = features[labels == 1], []
    for _ in range(400):
        chosen = rows[random.integers(len(rows), size=len(rows))]
        unit = chosen / np.linalg.norm(chosen, axis=1, keepdims=True)
        values = np.linalg.eigvalsh(unit.T @ unit / len(chosen))
        mean = chosen.mean(axis=0)
        entropy = -(values * np.log(values)).sum()
        draws.append([np.linalg.norm(mean), np.square(chosen - mean).sum(axis=1).mean(), entropy])
    for name, spread in zip(("mean_norm", "variance", "within.entropy"), np.std(draws, axis=0), strict=True):
        assert row[f"{name}_stderr"] == pytest.approx(spread, rel=0.15), name


def test_classes_without_errors_have_reasons() -> None:
    rows = rows_of_classes(*gaussian_classes())
    assert rows[3]["samples"] == 5
    assert rows[3]["mean_norm_stderr"] is None
    assert rows[3]["missing"] == (
        f"mean_norm_stderr, variance_stderr, within.entropy_stderr, nearest.own_stderr: {FEW_ROWS}"
    )
    apart, labels = gaussian_classes((30, 30))
    [first, _] = rows_of_classes(apart + 100.0 * labels[:, None], labels)
    assert first["nearest.own"] == 1
    assert first["nearest.own_stderr"] is None
    assert first["missing"] == f"nearest.own_stderr: {NO_SPREAD}"
    for row in rows_of_classes(1e160 * gaussian_classes((30, 30))[0], labels):
        assert row["variance_stderr"] is None
        assert f"variance_stderr: {NOT_FINITE}" in row["missing"]
    many = rows_of_classes(*gaussian_classes((10,) * 300, width=3))
    assert all(FEW_OF_CLASS in row["missing"] for row in many)
    identical = rows_of_classes(np.repeat([[1.0, 2.0], [2.0, 1.0]], 20, axis=0), np.repeat([0, 1], 20))
    for row in identical:
        assert all(row[f"{name}_stderr"] is None for name in ("mean_norm", "variance", "within.entropy"))


def test_the_table_of_classes_prints_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features, labels = gaussian_classes()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["test/features"], file["test/labels"] = features, labels
    assert run(["analyze", str(tmp_path / "a.h5"), "--per-class", "--errors", "--wide"]) == 0
    output = capsys.readouterr().out
    [row, *_] = cp.analyze(tmp_path / "a.h5", per_class=True, errors=True)
    assert row["variance_stderr"] > 0
    assert f"({round(row['variance_stderr'] * 100)})" in output
    assert (
        "no standard error of mean_norm, variance, within.entropy, nearest.own: a standard error needs at least 8 rows"
        in output
    )
