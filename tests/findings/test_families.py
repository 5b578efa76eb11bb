"""Tests of the tested intervals, their statistics and p-values, and of the order of onsets, against direct formulas."""

from itertools import pairwise, product

import numpy as np
import pytest

from ckpt_probe.findings.detection import _levels, at_rest, positions
from ckpt_probe.findings.intervals import Interval, families, narrowest
from ckpt_probe.findings.noise import COEFFICIENTS, Noise, contrasts, simulate
from ckpt_probe.findings.order import _order_in_time, _towards_zero, flip_p_values, noise_lag
from ckpt_probe.findings.series import Series

STEPS = np.geomspace(1, 10_000, 30)
X = positions(STEPS)


def test_the_statistic_of_an_interval_is_its_largest_test_over_the_noise_at_its_middle() -> None:
    _, level, line = families(tuple(X))
    values = simulate(np.random.default_rng(0), 0.3, 4, 30)
    scale = np.random.default_rng(1).uniform(0.5, 2, (4, 30))
    noise = Noise(scale, np.array([0, 3, 6, 3]), 3 * scale)
    of_line, of_level = line.statistics(values, noise), level.statistics(values, noise)
    for index in range(0, len(line.intervals), 7):
        start, stop = line.intervals[index]
        x, middle = X[start:stop], (start + stop) // 2
        for row, limit in enumerate(noise.limit):
            phi = float(COEFFICIENTS[limit])
            answers = contrasts(x, 1, 9, phi) @ values[row, start:stop]
            assert of_line[index, row] == pytest.approx(np.abs(answers).max() / scale[row, middle])
            tests = contrasts(x, 0, 9)
            covariance = phi ** np.abs(np.subtract.outer(range(stop - start), range(stop - start)))
            variance = np.mean([test @ covariance @ test for test in tests])
            size = np.abs(tests @ values[row, start:stop]).max() * np.sqrt((1 - phi**2) / variance)
            assert of_level[index, row] == pytest.approx(size / (3 * scale[row, middle]))


def test_p_values_and_critical_values_are_inverse_and_those_of_the_tail_fall_monotonically() -> None:
    _, level, line = families(tuple(X))
    for family in (level, line):
        for probability in (0.4, 0.1, 0.05, 0.02, 1e-3, 1e-6):
            assert family.p_value(family.critical(probability)) == pytest.approx(probability, rel=0.03)
        sizes = np.linspace(0, 60, 400)
        p_values = [family.p_value(size) for size in sizes]
        assert p_values[0] == 1
        assert all(0 < after <= before for before, after in pairwise(p_values))
        assert p_values[-1] < 1e-5


def test_a_jump_beyond_all_planted_ones_is_detectable_in_proportion_to_the_critical_value() -> None:
    _, _, line = families(tuple(X))
    once, twice = (line.detectable(2, critical) for critical in (1e5, 2e5))
    assert twice == pytest.approx(2 * once)
    near = [line.detectable(2, critical) for critical in (3.0, 5.0, 8.0, 13.0)]
    assert near == sorted(near)
    assert once > 100 * near[-1]


def test_significant_intervals_are_chosen_by_width_and_may_share_a_checkpoint() -> None:
    _, _, line = families(tuple(X))
    index = {each: k for k, each in enumerate(line.intervals)}

    def chosen(**sizes: float) -> list[tuple[int, int]]:
        statistics = np.zeros(len(line.intervals))
        for name, size in sizes.items():
            start, stop = map(int, name.strip("_").split("_"))
            statistics[index[Interval(start, stop)]] = size
        return [tuple(each) for each in narrowest(line, statistics, 3.0)]

    assert chosen(_0_4=5, _3_7=5) == [(0, 4), (3, 7)]
    assert chosen(_3_7=5, _0_4=4) == [(0, 4), (3, 7)]
    assert chosen(_0_4=2, _20_24=9, _3_7=3.1) == [(3, 7), (20, 24)]
    assert chosen(_2_6=5, _0_30=50) == [(2, 6)]
    # The later of two overlapping ones is narrower in log step here.
    narrow = min([(4, 8), (2, 6)], key=lambda each: X[each[1] - 1] - X[each[0]])
    assert chosen(_4_8=4, _2_6=9) == [narrow if abs(np.ptp(X[4:8]) - np.ptp(X[2:6])) > 1e-9 else (2, 6)]
    assert chosen(_3_7=3) == []


@pytest.mark.parametrize("seeds", [5, 12, 13])
def test_p_values_of_flips_are_shares_of_sign_patterns(seeds: int) -> None:
    lags = np.random.default_rng(seeds).normal(0.35, 1, size=(3, seeds))
    statistics = np.linalg.norm(lags, axis=1)
    exceeded, patterns = np.zeros(3), 0
    observed = np.abs(lags.sum(axis=1)) / statistics
    for signs in product((1, -1), repeat=seeds):
        largest = (np.abs(lags @ signs) / statistics).max()
        exceeded += largest >= observed - 1e-9
        patterns += 1
    drawn = 4096 if seeds > 12 else np.inf
    exact = exceeded / patterns
    assert flip_p_values(lags) == pytest.approx(exact, abs=1e-12 + float(4 * np.sqrt(0.25 / drawn)))
    # The observed pattern itself is always one of them.
    assert flip_p_values(np.full((1, seeds), 2.0))[0] >= 1 / min(2**seeds, 4096)
    assert flip_p_values(np.full((1, seeds), 2.0))[0] <= 4 / min(2**seeds, 4096)


def test_lags_are_reduced_by_what_noise_alone_produces_but_not_beyond_zero() -> None:
    lags = np.array([2.0, 2.0, 2.0, -2.0, -2.0, 0.0])
    of_noise = np.array([0.5, 3.0, -1.0, -0.5, 0.5, 1.0])
    assert _towards_zero(lags, of_noise).tolist() == [1.5, 0, 2, -1.5, -2, 0]


def test_residuals_of_one_curve_have_no_order_in_time() -> None:
    steps, values = np.arange(20.0), np.linspace(0, 1, 20) ** 2
    assert _order_in_time([(steps, values, values**3)], 1, 2) == (0, 0)
    assert _order_in_time([(steps, values, -values)], 1, 2) == (0, 0)
    # Residuals about the constant that is the best monotone fit of two runs apart in level.
    waves = np.tile([1.0, 1.0, -1.0, -1.0], 5)
    correlation, covariance = _order_in_time([(steps, waves, np.zeros(20)), (steps, waves, np.zeros(20))], 1, 2)
    products = sum(a * b for a, b in pairwise(waves))
    assert (correlation, covariance) == (pytest.approx(products / 20, abs=0.2), pytest.approx(products / 20, abs=0.2))


def test_noise_makes_an_onset_late_so_the_cleaner_metric_seems_earlier() -> None:
    generator, curve = np.random.default_rng(0), 1 / (1 + np.exp(-(X - 5) / 0.8))
    clean, noisy = (
        Series("g", "s", {}, str(sigma), STEPS, curve + sigma * generator.normal(size=30)) for sigma in (0.002, 0.08)
    )
    assert 0.2 < noise_lag(clean, noisy) < 4
    assert noise_lag(clean, clean) == 0


def test_a_metric_is_at_rest_at_the_first_value_within_the_noise_of_all_later_ones() -> None:
    values = np.array([0, 1, 2, 3, 3.5, 4, 4.02, 3.98, 4.01, 3.99, 4.0, 4.02])
    assert at_rest(values, 0, 0.02) == 5
    assert at_rest(values, 6, 0.02) == 6
    assert at_rest(values, 8, 0.02) is None
    assert at_rest(values, 7, 0.02) == 7
    assert at_rest(np.linspace(0, 1, 20), 3, 1e-6) is None


def test_levels_are_those_of_holm() -> None:
    # 0.012 is below 0.05 / 3, 0.02 is below 0.05 / 2, and 0.2 is not below 0.05.
    assert _levels([0.2, 0.012, 0.02], 0.05) == [None, pytest.approx(0.05 / 3), pytest.approx(0.05 / 2)]
    assert _levels([0.03, 0.04], 0.05) == [None, None]
