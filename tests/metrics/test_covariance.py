"""Tests of RankMe, α-ReQ and participation ratio against the formulas of the papers' code, and of fitted lines."""

import numpy as np
import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.errors import DataError
from ckpt_probe.metrics.covariance import decay_rate, fit_range, line_through

GENERATOR = np.random.default_rng(0)
ROWS = GENERATOR.normal(size=(300, 40)) @ np.diag(np.arange(1, 41.0) ** -0.7) + 0.3


def test_rankme_is_the_entropy_of_the_singular_values_of_raw_rows() -> None:
    for rows in (ROWS, ROWS[:25], 1e-200 * ROWS, 1e150 * ROWS):
        singular = np.linalg.svd(rows / np.abs(rows).max(), compute_uv=False)
        shares = singular / np.abs(singular).sum() + 1e-7
        assert cp.rankme(rows) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
        shares = singular / singular.sum()
        assert cp.rankme(rows) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
    assert cp.rankme(np.eye(7)) == pytest.approx(7, rel=1e-12)
    assert cp.rankme(np.ones((9, 3))) == pytest.approx(1, rel=1e-9)


def test_alpha_is_the_slope_of_the_weighted_fit() -> None:
    eigenvalues = np.linalg.eigvalsh(np.cov(ROWS.T))[::-1]
    ranks = np.arange(11, 41)
    weights = np.sqrt(1.0 / ranks)
    slope = np.polyfit(np.log(ranks), np.log(eigenvalues[10:40]), 1, w=weights)[0]
    assert cp.alpha_req(ROWS) == pytest.approx(-slope, rel=1e-9)
    # α-ReQ's own code solves this weighted least-squares problem with an intercept.
    x, w = np.stack([-np.log(ranks), np.ones(30)], axis=1), (1.0 / ranks)[:, None]
    alpha = np.linalg.solve(x.T @ (x * w), (w * x).T @ np.log(eigenvalues[10:40]))[0]
    assert cp.alpha_req(ROWS) == pytest.approx(alpha, rel=1e-9)


@pytest.mark.parametrize("count", [3, 12, 21, 22, 60, 100, 400])
def test_a_power_law_has_its_exponent_over_any_range(count: int) -> None:
    eigenvalues = torch.arange(1, count + 1, dtype=torch.float64) ** -1.37
    rate = decay_rate(eigenvalues)
    assert rate is not None
    assert rate.item() == pytest.approx(1.37, rel=1e-10)
    first, last = fit_range(count)
    assert (first, last) == (11 if count >= 22 else 1, min(count, 100))


def test_the_participation_ratio_counts_equal_directions() -> None:
    eigenvalues = np.linalg.eigvalsh(np.cov(ROWS.T))
    for rows in (ROWS, 1e180 * ROWS, ROWS + 5):
        assert cp.participation_ratio(rows) == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-9)
    assert cp.participation_ratio(np.eye(8)) == pytest.approx(7, rel=1e-12)


def test_undefined_values_are_errors_with_a_reason() -> None:
    with pytest.raises(DataError, match="all rows are zero"):
        cp.rankme(np.zeros((4, 3)))
    with pytest.raises(DataError, match="all rows are equal"):
        cp.participation_ratio(np.full((4, 3), 0.1))
    with pytest.raises(DataError, match="fewer than 3 directions"):
        cp.alpha_req(np.eye(3))


def test_all_three_functions_have_gradients() -> None:
    rows = torch.tensor(ROWS[:12, :5], requires_grad=True)
    for function in (cp.rankme, cp.alpha_req, cp.participation_ratio):
        assert torch.autograd.gradcheck(function, (rows,), atol=1e-6)


def test_the_record_has_the_values_of_the_functions() -> None:
    labels = np.arange(300) % 4
    features = ROWS + np.eye(4, 40)[labels]
    record = cp.analyze_features(features, labels)
    assert record["rankme"] == pytest.approx(cp.rankme(features), rel=1e-9)
    assert record["alpha_req"] == pytest.approx(cp.alpha_req(features), rel=1e-9)
    assert record["participation_ratio"] == pytest.approx(cp.participation_ratio(features), rel=1e-9)
    assert (record["alpha_req_first"], record["alpha_req_last"]) == (11, 40)
    alone = cp.analyze_features(features, np.zeros(300, dtype=int), only=["spectrum"])
    assert alone["rankme"] == pytest.approx(record["rankme"], rel=1e-9)


def test_equal_rows_have_a_reason_in_the_record() -> None:
    record = cp.analyze_features(np.full((30, 5), 0.1), np.arange(30) % 3, only=["spectrum"])
    assert record["rankme"] == pytest.approx(1, rel=1e-12)
    assert (record["participation_ratio"], record["alpha_req"]) == (None, None)
    assert "participation_ratio: all rows are equal" in record["missing"]
    assert record["alpha_req_first"] is None


def test_eigenvalues_of_fewer_than_two_digits_do_not_enter_the_decay() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(18) % 3
    rows = rng.normal(size=(3, 5))[labels]
    with pytest.raises(DataError, match="fewer than 3 directions"):
        cp.alpha_req(rows + 1e-7 * rng.normal(size=rows.shape))
    moved = rows + 1e-5 * rng.normal(size=rows.shape)
    values = np.linalg.svd(moved - moved.mean(axis=0), compute_uv=False) ** 2
    ranks = np.arange(1, 6)
    slope = np.polyfit(np.log(ranks), np.log(values), 1, w=ranks**-0.5)[0]
    assert cp.alpha_req(moved) == pytest.approx(-slope, rel=1e-4)


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
