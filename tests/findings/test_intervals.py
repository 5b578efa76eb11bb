"""Tests of the intervals of changes: their error rate without a change, and their coverage of planted changes."""

from itertools import pairwise

import numpy as np
import pytest

from ckpt_probe.findings.detection import find_events, positions
from ckpt_probe.findings.intervals import Interval, families, first_departure, narrowest, spans
from ckpt_probe.findings.noise import COEFFICIENTS, INNOVATIONS, contrasts, simulate
from ckpt_probe.findings.series import Series

STEPS = np.geomspace(1, 10_000, 44)


def test_contrasts_are_unit_vectors_without_the_trend_and_answer_a_jump_by_its_residual() -> None:
    x = np.log(STEPS[:9] + 1)
    vectors = contrasts(x, 1, 20)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert np.allclose(vectors @ np.c_[np.ones(9), x], 0, atol=1e-10)
    for split, vector in enumerate(vectors[:8], 1):
        jump = (np.arange(9) >= split).astype(float)
        residual = jump - np.polyval(np.polyfit(x, jump, 1), x)
        assert vector @ jump == pytest.approx(np.linalg.norm(residual))


@pytest.mark.parametrize("count", [24, 44])
def test_the_smallest_detectable_jump_is_reported_in_nine_of_ten_series(count: int) -> None:
    x = positions(np.geomspace(1, 10_000, count))
    model, _, line = families(tuple(x))
    critical, limit = line.critical(0.05), 3
    jump = line.detectable(limit, critical) * INNOVATIONS[limit]
    noise = simulate(np.random.default_rng(11), float(COEFFICIENTS[limit]), 400, count)
    for height, least, most in ((jump, 0.8, 0.97), (jump / 2, 0, 0.6)):
        values = noise + height * (np.arange(count) >= count // 2)
        significant = line.statistics(values, model.estimate(values)) > critical
        around = [each.start < count // 2 < each.stop for each in line.intervals]
        assert least < significant[around].any(axis=0).mean() < most


def test_noise_is_estimated_with_changes_in_the_series() -> None:
    x = positions(STEPS)
    model, _, _ = families(tuple(x))
    noise = simulate(np.random.default_rng(0), 0.0, 400, 44) + 50 * (np.arange(44) > 20) + 3 * x
    assert np.median(model.estimate(noise).scale) == pytest.approx(1, abs=0.1)
    correlated = simulate(np.random.default_rng(0), 0.7, 400, 44)
    assert (COEFFICIENTS[model.estimate(correlated).limit] >= 0.7).mean() > 0.7
    assert np.corrcoef(correlated[:, 1:].ravel(), correlated[:, :-1].ravel())[0, 1] == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_the_scale_of_noise_is_in_units_of_the_values_and_its_correlation_is_not(size: float) -> None:
    model, _, _ = families(tuple(positions(STEPS)))
    values = simulate(np.random.default_rng(3), 0.7, 50, 44)
    noise, of_multiples = model.estimate(values), model.estimate(size * (values + 5))
    assert np.array_equal(of_multiples.limit, noise.limit)
    assert np.allclose(of_multiples.scale, size * noise.scale, rtol=1e-9, atol=0)


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.9])
def test_contrasts_have_the_standard_error_of_the_innovations(coefficient: float) -> None:
    x = np.log(STEPS[5:17] + 1)
    vectors = contrasts(x, 1, 9, coefficient)
    covariance = coefficient ** np.abs(np.subtract.outer(np.arange(12), np.arange(12)))
    assert np.allclose(np.einsum("ti,ij,tj->t", vectors, covariance, vectors), 1 - coefficient**2)
    assert np.allclose(vectors @ np.c_[np.ones(12), x], 0, atol=1e-10)


def test_standard_error_at_the_largest_coefficient_equals_that_of_the_innovations() -> None:
    x = positions(STEPS)
    model, _, _ = families(tuple(x))
    noise = model.estimate(simulate(np.random.default_rng(1), 0.5, 4000, 44))
    limit = COEFFICIENTS[noise.limit]
    # e_t − φ e_(t−1) has the variance 1 + φ² − 2 φ ρ if the correlation of neighbours is ρ.
    expected = np.sqrt(1 + limit**2 - 2 * limit * 0.5)
    assert np.median(noise.scale[:, 22] / expected) == pytest.approx(1, abs=0.05)


def test_standard_error_of_a_smooth_curve_comes_from_its_second_differences() -> None:
    steps = np.geomspace(1, 10_000, 100)
    model, _, _ = families(tuple(positions(steps)))
    curve = simulate(np.random.default_rng(2), 0.0, 200, 100) + 200 * np.sin(positions(steps) / 2)
    noise = model.estimate(curve)
    assert np.median(noise.scale / INNOVATIONS[noise.limit][:, None]) < 6


@pytest.mark.parametrize("coefficient", [0.0, 0.7])
def test_lines_with_noise_rarely_have_an_interval(coefficient: float) -> None:
    x = positions(STEPS)
    model, _, line = families(tuple(x))
    values = 4 * x + simulate(np.random.default_rng(2), coefficient, 600, 44)
    largest = line.statistics(values, model.estimate(values)).max(axis=0)
    # Three standard errors above 5 %: sqrt(0.05 · 0.95 / 600) = 0.009.
    assert (largest > line.critical(0.05)).mean() < 0.077
    p_values = [line.p_value(size) for size in largest]
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx((largest > line.critical(0.05)).mean(), abs=0.01)


def test_intervals_contain_a_planted_jump_and_are_disjoint() -> None:
    x = positions(STEPS)
    model, _, line = families(tuple(x))
    values = simulate(np.random.default_rng(3), 0.3, 200, 44) + 12 * (np.arange(44) >= 25)
    statistics = line.statistics(values, model.estimate(values))
    hits = 0
    for column in statistics.T:
        intervals = narrowest(line, column, line.critical(0.05))
        hits += any(each.start < 25 < each.stop for each in intervals)
        assert all(a.stop - 1 <= b.start for a, b in pairwise(intervals))
    assert hits / 200 > 0.95


def test_spans_are_distinct_and_reach_from_four_checkpoints_to_all() -> None:
    intervals = spans(30)
    assert intervals[0] == (0, 4)
    assert intervals[-1] == (0, 30)
    assert len(set(intervals)) == len(intervals)
    assert all(0 <= start < stop <= 30 for start, stop in intervals)


def series(values: np.ndarray, steps: np.ndarray = STEPS) -> Series:
    return Series("run", "run", {"split": "test"}, "accuracy", steps, values)


def test_a_jump_is_abrupt_and_smooth_curves_are_not() -> None:
    noise = simulate(np.random.default_rng(4), 0.0, 1, 44)[0]
    events, limits = find_events([series(0.01 * noise + (np.arange(44) >= 25))])
    changes = [event for event in events if event["kind"] == "change"]
    assert [event["abrupt"] for event in changes] == [True]
    assert changes[0]["from_step"] < STEPS[25] <= changes[0]["to_step"] <= 2.1 * changes[0]["from_step"]
    assert {event["kind"] for event in events} == {"change", "onset", "end"}
    assert 0.03 < limits[0]["smallest_detectable"] < 0.3
    for curve in (STEPS**-0.5, np.cos(np.pi * STEPS / STEPS[-1]), np.exp(-STEPS / 500)):
        events, _ = find_events([series(curve + 0.01 * noise)])
        assert events
        assert not any(event.get("abrupt") for event in events)


def test_a_metric_that_still_moves_at_the_last_checkpoint_has_no_end() -> None:
    noise = 0.01 * simulate(np.random.default_rng(5), 0.0, 1, 44)[0]
    events, _ = find_events([series(np.maximum(positions(STEPS) - 6, 0) + noise)])
    assert {event["kind"] for event in events} >= {"change", "onset"}
    assert not any(event["kind"] == "end" for event in events)


def test_lines_rarely_have_an_end_and_steps_have_one() -> None:
    noise = simulate(np.random.default_rng(8), 0.0, 60, 44)
    line, step = np.linspace(0, 60, 44), 20.0 * (np.arange(44) >= 20)
    ends = [
        np.mean([any(event["kind"] == "end" for event in find_events([series(trend + row)])[0]) for row in noise])
        for trend in (line, step)
    ]
    assert ends[0] <= 0.05
    assert ends[1] >= 0.85


def test_the_onset_is_the_first_departure_or_a_much_narrower_one_after_it() -> None:
    intervals = [Interval(3, 20), Interval(2, 12), Interval(9, 13), Interval(10, 14), Interval(4, 12)]
    assert first_departure(intervals) == Interval(9, 13)
    assert first_departure(intervals[:2]) == Interval(2, 12)
    assert first_departure([Interval(7, 12), Interval(9, 13)]) == Interval(7, 12)
    assert first_departure([]) is None


def test_short_and_constant_series_have_a_reason_instead_of_events() -> None:
    events, limits = find_events([series(np.arange(11.0), STEPS[:11]), series(np.ones(44))])
    assert events == []
    assert [limit["missing"] for limit in limits] == [
        "11 checkpoints with a value; events need at least 12",
        "all values are 1",
    ]


def test_detecting_a_jump_is_harder_among_many_metrics() -> None:
    noise = simulate(np.random.default_rng(6), 0.0, 40, 44)
    alone = find_events([series(noise[0])])[1][0]["smallest_detectable"]
    many = find_events([series(row) for row in noise])
    assert many[0] == []
    assert many[1][0]["smallest_detectable"] > 1.1 * alone


def test_one_sample_of_a_saturated_accuracy_is_no_event_but_a_jump_is() -> None:
    saturated = np.ones(44)
    saturated[:12] = np.round(64 * np.linspace(0.1, 1, 12)) / 64
    saturated[[20, 30]] = 63 / 64
    events, _ = find_events([series(saturated)])
    assert all(event["to_step"] <= STEPS[16] for event in events)
    jump = (np.arange(44) >= 25).astype(float)
    events, _ = find_events([series(jump)])
    assert {event["kind"] for event in events} == {"change", "onset", "end"}


def test_the_interval_of_the_end_reaches_the_final_level_of_a_metric_that_saturates() -> None:
    steps = np.array([0, 5, 10, 20, 35, 60, 100, 150, 250, 400, 650, 1000, 1500, 2200])
    accuracy = np.array([0.08, 0.14, 0.36, 0.669, 0.791, 0.833, 0.938, 0.956, 0.96, 0.969, 0.951, 0.973, 0.971, 0.973])
    for count in (14, 13, 12):
        events, _ = find_events([Series("run", "run", {}, "accuracy", steps[:count], accuracy[:count])])
        (end,) = (event for event in events if event["kind"] == "end")
        assert end["value_after"] >= 0.938
