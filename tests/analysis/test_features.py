"""Checks that the functions for NC1 to NC4 return the values of a record."""

import numpy as np
import pytest
import torch

import ckpt_probe as cp


def test_nc1_to_nc4_are_the_values_of_the_record() -> None:
    random = np.random.default_rng(0)
    labels, weights, bias = np.arange(90) % 3, random.normal(size=(3, 5)), random.normal(size=3)
    features = random.normal(size=(3, 5))[labels] + random.normal(size=(90, 5))
    record = cp.analyze_features(features, labels, weights, bias)
    assert cp.nc1(features, labels) == pytest.approx(record["nc1.pinv"], rel=1e-12)
    assert cp.nc2(torch.from_numpy(features), torch.from_numpy(labels)) == pytest.approx(record["nc2.etf"], rel=1e-12)
    assert cp.nc3(features, labels, weights) == pytest.approx(record["nc3.duality"], rel=1e-12)
    assert cp.nc4(features, labels, weights, bias) == record["nc4.disagreement"]
    assert record["nc4.disagreement"] > 0


def test_an_undefined_value_is_an_error_with_the_reason() -> None:
    with pytest.raises(cp.DataError, match=r"nc1\.pinv: .*class means coincide"):
        cp.nc1(np.tile([[1.0, 2.0], [3.0, 4.0]], (2, 1)), [0, 0, 1, 1])


def test_cdnv_beyond_the_range_of_numbers_is_an_error() -> None:
    rows, labels = np.random.default_rng(0).normal(size=(12, 3)) * 1e-170, np.arange(12) % 3
    with pytest.raises(cp.DataError, match="beyond the range of float64 with `dist_exp=2`"):
        cp.cdnv(rows, labels, dist_exp=2)
