"""Tests of analyzing dumps, also of other programs: records in the order of steps, and errors that name the row."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from ckpt_probe.analysis import analyze, analyze_features
from ckpt_probe.dumps import SplitView
from ckpt_probe.errors import DataError

RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 3
WEIGHTS = RNG.normal(size=(3, 5))
FEATURES = WEIGHTS[LABELS] + RNG.normal(size=(60, 5))


def dump(path: Path, **changes: np.ndarray | None) -> Path:
    datasets = {"test/features": FEATURES, "test/labels": LABELS, "classifier/weights": WEIGHTS} | changes
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            if value is not None:
                file[name] = value
    return path


def test_a_dump_written_with_h5py_has_the_record_of_its_arrays(tmp_path: Path) -> None:
    [record] = analyze(dump(tmp_path / "run-step-12.h5"))
    assert (record["checkpoint"], record["step"], record["split"]) == ("run-step-12", 12, "test")
    expected = analyze_features(FEATURES, LABELS, WEIGHTS)
    for name, value in expected.items():
        assert record[name] == (pytest.approx(value, rel=1e-10, abs=1e-13) if isinstance(value, float) else value)


def test_a_series_has_records_in_order_of_steps_and_of_chosen_splits(tmp_path: Path) -> None:
    for step in (10, 9, 100):
        dump(tmp_path / f"step-{step}.h5", **{"train/features": FEATURES[:30], "train/labels": LABELS[:30]})
    steps = [(r["step"], r["split"]) for r in analyze(tmp_path)]
    assert steps == [(step, split) for step in (9, 10, 100) for split in ("train", "test")]
    assert [r["split"] for r in analyze(tmp_path, splits=["test"])] == ["test"] * 3
    with pytest.raises(DataError, match="no split 'validation'"):
        list(analyze(tmp_path, splits=["validation"]))


def test_metrics_that_need_no_weights_are_computed_from_features_alone(tmp_path: Path) -> None:
    [record] = analyze(dump(tmp_path / "a.h5", **{"classifier/weights": None}))
    assert record["nc1.pinv"] is not None
    assert record["class.mir"] is None
    assert record["step"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test/features": np.where(np.arange(60)[:, None] == 7, np.nan, FEATURES)}, r"test: features: 1 row .* row 7"),
        ({"test/labels": np.where(np.arange(60) == 9, 5, LABELS)}, "test: labels: row 9 is 5"),
        ({"test/labels": np.where(np.arange(60) == 9, -2, LABELS)}, "test: labels: row 9 is -2"),
        ({"test/labels": LABELS[:-1]}, "test/labels: expected integers of shape .N,., N = 60 as in test/features"),
        ({"test/features": FEATURES[:0], "test/labels": LABELS[:0]}, "test: no samples; choose the other splits"),
        ({"test/features": FEATURES * 0}, "60 of 60 rows have zero length"),
        ({"classifier/weights": WEIGHTS * np.nan}, "classifier weights: 3 rows hold NaN"),
        ({"classifier/weights": WEIGHTS[:1]}, "at least two classes"),
    ],
)
def test_invalid_dumps_are_refused_with_file_split_and_row(tmp_path: Path, changes: dict, message: str) -> None:
    path = dump(tmp_path / "bad.h5", **changes)
    with pytest.raises(DataError, match=rf"bad\.h5.*{message}"):
        list(analyze(path))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_dump_that_cannot_be_analyzed_does_not_keep_the_others_from_it(tmp_path: Path, workers: int) -> None:
    for step in range(4):
        dump(tmp_path / f"step-{step}.h5", **({"test/features": FEATURES * np.nan} if step == 1 else {}))
    records = iter(analyze(tmp_path, workers=workers))
    assert [next(records)["step"] for _ in range(3)] == [0, 2, 3]
    with pytest.raises(DataError, match=r"step-1\.h5: test: features: 60 rows hold NaN"):
        next(records)


def test_all_dumps_that_cannot_be_analyzed_are_named(tmp_path: Path) -> None:
    for step in range(4):
        dump(tmp_path / f"step-{step}.h5", **({"test/features": FEATURES * np.nan} if step % 2 else {}))
    with pytest.raises(DataError, match=r"2 of 4 failed, the others are done: .*step-1\.h5.*step-3\.h5"):
        list(analyze(tmp_path))


def test_a_split_named_twice_is_analyzed_once(tmp_path: Path) -> None:
    path = dump(tmp_path / "a.h5")
    assert [r["split"] for r in analyze(path, splits=["test", "test"])] == ["test"]
    assert len(analyze(path, splits=["test", "test"])) == 1


def test_features_whose_squares_overflow_are_analyzed_and_cached(tmp_path: Path) -> None:
    path = dump(tmp_path / "a.h5", **{"test/features": FEATURES * 1e160})
    first, second = (list(analyze(path, cache=True)) for _ in range(2))
    assert first == second
    expected = analyze_features(FEATURES, LABELS, WEIGHTS)
    assert first[0]["nc1.cdnv"] == pytest.approx(expected["nc1.cdnv"], rel=1e-12)
    assert first[0]["class.mir"] == pytest.approx(expected["class.mir"], rel=1e-9)
    assert json.loads(json.dumps(first[0], allow_nan=False)) == first[0]


@pytest.mark.parametrize(
    ("only", "read"),
    [(("nc",), [True, False]), (("nc1", "class"), [False]), (None, [True, False]), (("nc4",), [True, False])],
)
def test_logits_are_read_once_and_only_if_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: tuple[str, ...] | None, read: list[bool]
) -> None:
    logits = (FEATURES @ WEIGHTS.T).astype(np.float32)
    path = dump(tmp_path / "a.h5", **{"test/logits": logits})
    passes, blocks = [], SplitView.blocks
    monkeypatch.setattr(SplitView, "blocks", lambda *a, scores=True: passes.append(scores) or blocks(*a, scores=scores))
    [record] = analyze(path, only=only)
    assert passes == read
    expected = analyze_features(FEATURES, LABELS, WEIGHTS, logits=logits, only=only)
    assert {name: record[name] for name in expected} == expected


def test_stored_logits_count_if_they_disagree_with_the_head(tmp_path: Path) -> None:
    logits = -(FEATURES @ WEIGHTS.T).astype(np.float32)
    [record] = analyze(dump(tmp_path / "a.h5", **{"test/logits": logits}), only=("nc4",))
    means = np.stack([FEATURES[c == LABELS].mean(axis=0) for c in range(3)])
    nearest = ((FEATURES[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert record["nc4.disagreement"] == (nearest != logits.argmax(axis=1)).mean()


def test_a_cache_beside_the_dumps_is_neither_read_nor_written(tmp_path: Path) -> None:
    """Check that a pipe is not opened in the directory where earlier versions cached records."""
    (tmp_path / "dumps").mkdir()
    dump(tmp_path / "dumps" / "step-1.h5")
    (tmp_path / "dumps" / ".ckpt-probe-cache").mkdir()
    os.mkfifo(tmp_path / "dumps" / ".ckpt-probe-cache" / "step-1.json")
    assert len(list(analyze(tmp_path / "dumps", cache=True))) == 1
    assert [entry.name for entry in (tmp_path / "dumps" / ".ckpt-probe-cache").iterdir()] == ["step-1.json"]


def test_a_pipe_in_the_cache_of_the_user_is_replaced_and_not_opened(tmp_path: Path, user_cache: Path) -> None:
    dump(tmp_path / "step-1.h5")
    [before] = analyze(tmp_path, cache=True)
    [entry] = (user_cache / "records").glob("*.json")
    entry.unlink()
    os.mkfifo(entry)
    assert list(analyze(tmp_path, cache=True)) == [before]
    assert entry.is_file()
