"""Tests of the order of onsets: planted lags are detected; two metrics of one process have no order."""

import numpy as np
import pytest

from ckpt_probe.findings import findings_of
from ckpt_probe.findings.order import _without_implied, flip_p_values, is_one_process, lag, noise_lag
from ckpt_probe.findings.series import Series

STEPS = np.unique(np.geomspace(1, 6000, 44).round())
X = np.log(STEPS + 1)


def logistic(centre: float, width: float = 0.12) -> np.ndarray:
    return 1 / (1 + np.exp(-(X - centre) / width))


def runs(seeds: int, second: float, noise: tuple[float, float] = (0.02, 0.02), power: float = 1) -> dict:
    """Return series of two metrics: the second moves later by `second` in log step, or is a power of the first."""
    result = {}
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        centre = 5 + 0.3 * generator.normal()
        curves = {"first": logistic(centre), "second": logistic(centre + second) ** power}
        name = f"seed-{seed}"
        result["group", name] = [
            Series("group", name, {}, metric, STEPS, curve + sigma * generator.normal(size=len(X)))
            for (metric, curve), sigma in zip(curves.items(), noise, strict=True)
        ]
    return result


def test_a_planted_lag_is_reported_once_for_six_seeds_and_per_run_for_fewer() -> None:
    [order] = findings_of(runs(6, 1.5)).orders
    assert (order["before"], order["after"], order["relation"], order["seeds"]) == ("first", "second", "before", 6)
    assert order["p_value"] == pytest.approx(2 / 64)
    assert order["lag_factor"] == pytest.approx(np.exp(1.5), rel=0.15)
    few = findings_of(runs(3, 1.5)).orders
    assert len(few) == 3
    assert [(each["group"], each["seed"], each["before"], each["after"]) for each in few] == [
        ("group", f"seed-{seed}", "first", "second") for seed in range(3)
    ]
    assert all(set(each) == {"group", "seed", "before", "after", "first_by", "second_from"} for each in few)
    assert all(each["first_by"] <= each["second_from"] for each in few)


@pytest.mark.parametrize("power", [3, 1 / 3])
def test_two_scales_of_one_process_have_no_order(power: float) -> None:
    [order] = findings_of(runs(6, 0, power=power)).orders
    pair = {"before": "first", "after": "second", "relation": "one process"}
    assert order == {"group": "group", "seeds": 6, **pair}
    assert findings_of(runs(1, 0, power=power)).orders == []


def test_one_process_is_recognised_in_either_direction() -> None:
    pairs = [tuple(series) for series in runs(6, 0, power=3).values()]
    assert is_one_process(pairs)
    assert is_one_process([(second, first) for first, second in pairs])
    assert not is_one_process([tuple(series) for series in runs(6, 1.5).values()])


def test_sign_flips_are_counted_and_adjusted_for_pairs() -> None:
    lags = np.array([[1.0, 1.2, 0.9, 1.1, 1.0, 0.8], [0.5, -0.4, 0.3, -0.2, 0.1, -0.3]])
    first, second = flip_p_values(lags)
    assert first == pytest.approx(2 / 64)
    assert second > 0.5
    assert flip_p_values(np.zeros((1, 6)))[0] == 1


def test_lags_of_overlapping_intervals_are_zero() -> None:
    assert lag((1, 2), (1.5, 3)) == 0
    assert lag((1, 2), (2, 4)) == 1.5
    assert lag((2, 4), (1, 2)) == -1.5


def test_the_lag_from_noise_is_antisymmetric_and_positive_for_the_noisier_metric() -> None:
    [(clean, noisy)] = [tuple(series) for series in runs(1, 0, noise=(0.004, 0.15)).values()]
    assert noise_lag(clean, noisy) >= 0
    assert noise_lag(noisy, clean) == -noise_lag(clean, noisy)


def test_pairs_that_follow_from_two_others_are_left_out_of_an_order() -> None:
    assert _without_implied({("a", "b"), ("a", "c")}) == [("a", "b"), ("a", "c")]
    assert _without_implied({("a", "b"), ("b", "c"), ("a", "c")}) == [("a", "b"), ("b", "c")]
