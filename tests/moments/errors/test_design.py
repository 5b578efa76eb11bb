"""Tests of differences of records: paired errors, and the statement about rows that differ."""

from typing import Any

import numpy as np
import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.errors import DataError
from ckpt_probe.moments import Moments
from ckpt_probe.moments.record import compute_record


def record_of(rows, labels, weights, **options):
    moments = Moments(4, halves=True, subset=2048)
    moments.update(rows, labels)
    return moments.compute(weights, errors=True, **options)


def networks(seed: int = 0, samples: int = 400, noise: float = 0.01):
    """Return features of two networks that differ by noise, and the labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(samples) % 4
    centres = np.random.default_rng(99).normal(size=(4, 8))
    rows = centres[labels] + random.normal(size=(samples, 8))
    return rows, rows * (1 + noise) ** np.arange(8) + noise * random.normal(size=rows.shape), labels, centres


def test_paired_errors_match_the_spread_over_draws() -> None:
    first, second, labels, centres = networks()
    result = cp.difference(record_of(first, labels, centres), record_of(second, labels, centres), ["nc1.pinv", "MIR"])
    assert list(result) == [
        *("nc1.pinv", "nc1.pinv_stderr", "nc1.pinv_bias", "nc1.pinv_corrected"),
        *("class.mir", "class.mir_stderr", "class.mir_bias", "class.mir_corrected", "rows", "missing"),
    ]
    assert result["rows"] == "paired"
    changes = []
    for seed in range(1, 121):
        first, second, labels, _ = networks(seed)
        values = []
        for rows in (first, second):
            moments = Moments(4, only=["nc1"])
            moments.update(rows, labels)
            values.append(moments.compute()["nc1.pinv"])
        changes.append(values[0] - values[1])
    assert result["nc1.pinv_stderr"] == pytest.approx(np.std(changes), rel=0.3)
    assert result["nc1.pinv_corrected"] == pytest.approx(result["nc1.pinv"] - result["nc1.pinv_bias"])


def test_errors_of_other_rows_are_combined_as_independent() -> None:
    first, _, labels, centres = networks()
    unpaired, _, fewer, _ = networks(5, samples=300)
    a, b = record_of(first, labels, centres), record_of(unpaired, fewer, centres)
    result = cp.difference(a, b)
    assert result["rows"] == "independent: the records have different rows"
    for name in ("nc1.pinv", "sample.mir"):
        assert result[name] == a[name] - b[name]
        assert result[f"{name}_stderr"] == pytest.approx(np.hypot(a[f"{name}_stderr"], b[f"{name}_stderr"]))
    stored = cp.difference(dict(a), dict(b))
    assert stored["rows"] == "independent: a record has no influences of its rows"


def test_the_error_of_a_difference_of_equal_records_is_missing() -> None:
    first, _, labels, centres = networks()
    record = record_of(first, labels, centres)
    result = cp.difference(record, record, "nc1.pinv")
    assert result["nc1.pinv"] == 0
    assert result["nc1.pinv_stderr"] is None
    assert "nc1.pinv_stderr" in result["missing"]


def test_records_without_errors_and_unknown_metrics_are_errors() -> None:
    first, _, labels, centres = networks()
    record = record_of(first, labels, centres)
    with pytest.raises(DataError, match="errors=True"):
        cp.difference(dict.fromkeys(["nc1.pinv"], 1.0), record)
    with pytest.raises(DataError, match="did you mean"):
        cp.difference(record, record, "nc1.pin")


def test_details_have_influences_of_the_rows_of_the_subset() -> None:
    first, _, labels, centres = networks()
    moments = Moments(4, halves=True, subset=100)
    moments.update(first, labels)
    detailed = compute_record(moments.inputs(centres, errors=True))
    assert detailed.influences is not None
    assert detailed.influences.indices.tolist() == moments.subset.indices.tolist()
    assert detailed.influences["class.mir"].shape == (100,)
    assert detailed.influences["class.mir"].dtype == torch.float32


def test_records_of_features_have_errors_and_differences() -> None:
    first, second, labels, centres = networks()
    a, b = (cp.analyze_features(rows, labels, centres, errors=True) for rows in (first, second))
    assert a["accuracy_stderr"] > 0
    assert a["nc4.disagreement_bias"] is not None
    change = cp.difference(a, b)
    assert change["rows"] == "paired"
    assert 0 < change["nc1.pinv_stderr"] < a["nc1.pinv_stderr"]
    assert change["sample.mir"] == a["sample.mir"] - b["sample.mir"]


@pytest.mark.parametrize("wrong", [None, [{"accuracy": 1.0, "accuracy_stderr": 0.1}], "records.jsonl"])
def test_objects_that_are_no_records_are_an_error_of_one_line(wrong: Any) -> None:
    with pytest.raises(DataError, match="difference: expected two records, found an object of type"):
        cp.difference({"accuracy": 1.0, "accuracy_stderr": 0.1}, wrong)
