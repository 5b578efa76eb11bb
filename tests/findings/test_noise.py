"""Tests of the noise of a series against formulas written out for each checkpoint."""

from itertools import pairwise

import numpy as np
import pytest

from ckpt_probe.findings.detection import positions
from ckpt_probe.findings.noise import (
    COEFFICIENTS,
    MEDIAN_OF_NORMAL,
    NoiseModel,
    _changes,
    _correlation,
    _least,
    _median_size,
    _weights,
    simulate,
)

X = positions(np.geomspace(1, 10_000, 44))


def without_line(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    return values - np.polyval(np.polyfit(x - x.mean(), values, 1), x - x.mean())


def test_simulated_noise_is_stationary_from_the_first_checkpoint_on() -> None:
    noise = simulate(np.random.default_rng(0), 0.7, 40_000, 5)
    correlations = np.corrcoef(noise.T)
    assert noise.var(axis=0) == pytest.approx(np.ones(5), abs=0.03)
    assert correlations == pytest.approx(0.7 ** np.abs(np.subtract.outer(range(5), range(5))), abs=0.02)


def test_second_differences_vanish_on_lines_and_have_unit_variance_for_white_noise() -> None:
    weight, size = _weights(X)
    line = 3 * X - 2
    assert weight * line[:-2] + (1 - weight) * line[2:] == pytest.approx(line[1:-1])
    assert ((weight > 0) & (weight < 1)).all()
    # The variance of v_1 − w v_0 − (1 − w) v_2.
    assert size**2 == pytest.approx([1 + w * w + (1 - w) * (1 - w) for w in weight])


@pytest.mark.parametrize("count", [12, 44, 130, 300])
def test_changes_are_unit_vectors_of_jumps_kinks_and_ramps_without_the_line(count: int) -> None:
    x = positions(np.geomspace(1, 10_000, count))
    trend, changes = _changes(x)
    assert trend.T @ trend == pytest.approx(np.eye(2))
    assert trend @ (trend.T @ x) == pytest.approx(x)
    assert np.linalg.norm(changes, axis=1) == pytest.approx(np.ones(len(changes)))
    assert changes @ np.c_[np.ones(count), x] == pytest.approx(0, abs=1e-8)

    def contains(change: np.ndarray) -> bool:
        residual = without_line(x, change)
        return bool((changes @ residual / np.linalg.norm(residual)).max() > 1 - 1e-9)

    # At every checkpoint up to 120 of them, then at every second one; kinks at half as many.
    of_jumps = [contains((np.arange(count) > start).astype(float)) for start in range(count - 2)]
    of_kinks = [contains(np.maximum(x - x[start], 0)) for start in range(1, count - 3)]
    assert of_jumps == [start % max(1, count // 120) == 0 for start in range(count - 2)]
    stride = max(1, count // 60)
    assert all(of_kinks[start - 1] for start in range(stride, count - 3, stride))
    assert sum(of_kinks) <= count / stride + 10
    wide = [contains(np.clip((x - x[s]) / (x[s + 9] - x[s]), 0, 1)) for s in range(count - 9)]
    assert sum(wide) >= (count - 9) // max(stride, 2) * (count < 60)


def test_the_correlation_of_residuals_clips_those_beyond_three_standard_deviations() -> None:
    rest = simulate(np.random.default_rng(1), 0.5, 3, 60)
    rest[1, 30], rest[2] = 1e3, 0
    for row, correlation in zip(rest, _correlation(rest), strict=True):
        bound = 3 * np.median(np.abs(row)) / MEDIAN_OF_NORMAL
        clipped = [min(max(value, -bound), bound) for value in row]
        products = sum(a * b for a, b in pairwise(clipped))
        assert correlation == pytest.approx(products / (sum(value**2 for value in clipped) or 1), rel=1e-12)
    assert _correlation(rest)[2] == 0


def test_sizes_of_differences_leave_out_exact_zeros_if_enough_others_remain() -> None:
    sizes = np.zeros((4, 40))
    sizes[0] = np.linspace(0.1, 4, 40)
    sizes[1, :10] = np.linspace(1, 10, 10)  # a quarter
    sizes[2, :9] = np.linspace(1, 9, 9)
    sizes[3, :36] = 2.0
    expected = [np.median(sizes[0]), np.median(sizes[1, :10]), 0, 2]
    assert _median_size(sizes) * MEDIAN_OF_NORMAL == pytest.approx(expected)
    few = np.zeros((2, 20))
    few[0, :8], few[1, :7] = 3, 3
    assert _median_size(few) * MEDIAN_OF_NORMAL == pytest.approx([3, 0])


def test_the_least_noise_is_a_share_of_the_range_or_half_of_the_smallest_gap_of_repeated_values() -> None:
    smooth, steps = np.linspace(0, 5, 20), np.repeat([0.0, 0.5, 0.6, 4.0], 5)
    values = np.stack([smooth, steps, np.repeat([0.0, 5.0], 10)])
    differences = np.array([np.full(18, 0.1), np.zeros(18), np.zeros(18)])
    assert _least(differences, values) == pytest.approx([0.005, 0.05, 0.005])
    assert _least(differences[:1], steps[None]) == pytest.approx([0.004])


@pytest.mark.parametrize("count", [16, 44, 130])
def test_the_scale_of_white_noise_is_that_of_innovations_after_a_line_and_the_largest_changes(count: int) -> None:
    x = positions(np.geomspace(1, 10_000, count))
    model = NoiseModel(x)
    values = simulate(np.random.default_rng(5), 0.0, 30, count)
    noise = model.estimate(values)
    _, changes = _changes(x)
    removed, compared = {16: 1, 44: 2, 130: 3}[count], 0
    for row, series in enumerate(values):
        rest = without_line(x, series)
        for _ in range(removed):
            best = max(changes, key=lambda change, rest=rest: abs(float(change @ rest)))
            rest = rest - (best @ rest) * best
        phi = COEFFICIENTS[noise.limit[row]]
        squares = (1 - phi**2) * rest[0] ** 2 + sum((b - phi * a) ** 2 for a, b in pairwise(rest))
        expected = np.sqrt(squares / (count - 2 - 2 * removed))
        # Otherwise second differences or a local scale replace it.
        if noise.second[row].min() * (1 + 2 / np.sqrt(count)) > expected:
            assert noise.scale[row].min() == pytest.approx(expected, rel=1e-9)
            compared += 1
    assert compared > 10
    assert np.median(noise.scale.min(axis=1)) == pytest.approx(1, abs=0.15)


def test_noise_that_is_louder_in_one_part_has_a_larger_scale_there() -> None:
    x = positions(np.geomspace(1, 10_000, 120))
    model = NoiseModel(x)
    values = simulate(np.random.default_rng(6), 0.0, 40, 120)
    values[:, 80:] *= 12
    noise = model.estimate(values)
    early, late = np.median(noise.second[:, 5:40], axis=0), np.median(noise.second[:, 100:115], axis=0)
    assert early.max() < 2
    # A local scale counts from 1.5 times the noise on.
    assert late == pytest.approx(12 / 1.5, rel=0.15)
