"""Tests of the least-squares line against numpy's fit."""

import numpy as np
import pytest

from ckpt_probe.metrics.regression import line_through


def test_slope_intercept_and_r2_equal_those_of_numpys_fit() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=20) + 5, random.normal(size=20)
    y += 0.7 * x
    line = line_through(list(zip(x, y, strict=True)))
    assert line is not None
    slope, intercept = np.polyfit(x, y, 1)
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept))
    residuals = y - slope * x - intercept
    assert line.r2 == pytest.approx(1 - residuals @ residuals / ((y - y.mean()) @ (y - y.mean())))


def test_collinear_points_are_fitted_exactly_and_degenerate_ones_have_no_line() -> None:
    line = line_through([(0, 1), (1, 3), (2, 5)])
    assert line is not None
    assert (line.slope, line.intercept, line.r2) == pytest.approx((2, 1, 1))
    assert line_through([(0, 1), (1, 3)]) is None
    assert line_through([(1, 1), (1, 3), (1, 5)]) is None
    assert line_through([(0, 1), (1, 1), (2, 1)]) is None
