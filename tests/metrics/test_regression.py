"""A line of least squares against numpy's own fit."""

import numpy as np
import pytest

from ckpt_probe.metrics.regression import line_through


def test_the_line_is_numpys_and_r2_that_of_its_residuals() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=20) + 5, random.normal(size=20)
    y += 0.7 * x
    line = line_through(list(zip(x, y, strict=True)))
    assert line is not None
    slope, intercept = np.polyfit(x, y, 1)
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept))
    rest = y - slope * x - intercept
    assert line.r2 == pytest.approx(1 - rest @ rest / ((y - y.mean()) @ (y - y.mean())))


def test_points_on_a_line_and_points_through_which_none_is_drawn() -> None:
    line = line_through([(0, 1), (1, 3), (2, 5)])
    assert line is not None
    assert (line.slope, line.intercept, line.r2) == pytest.approx((2, 1, 1))
    assert line_through([(0, 1), (1, 3)]) is None
    assert line_through([(1, 1), (1, 3), (1, 5)]) is None
    assert line_through([(0, 1), (1, 1), (2, 1)]) is None
