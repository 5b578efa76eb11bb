"""Tests of the error rates of events: simulated series without a change, smooth curves, and planted jumps."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_probe.findings import findings_of
from ckpt_probe.findings.detection import positions
from ckpt_probe.findings.noise import simulate

FILE = Path(__file__).parents[2] / "benchmarks" / "events_calibration.py"


@pytest.fixture(scope="module")
def calibration() -> Any:
    """Return the module `benchmarks/events_calibration.py`."""
    spec = importlib.util.spec_from_file_location("events_calibration", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("spacing", ["linear", "logarithmic"])
@pytest.mark.parametrize("count", [12, 24, 44, 100, 200])
@pytest.mark.parametrize("coefficient", [0.0, 0.3, 0.5, 0.7])
def test_series_without_a_change_rarely_have_events(
    calibration: Any, spacing: str, count: int, coefficient: float
) -> None:
    noise = simulate(np.random.default_rng(11), coefficient, 800, count)
    share = np.mean([bool(events) for events in calibration.events_alone(noise, calibration.grid(spacing, count))])
    assert share <= 0.05
    assert share + 1.96 * math.sqrt(share * (1 - share) / 800) < 0.07


@pytest.mark.slow
@pytest.mark.parametrize("count", [44, 100])
def test_smooth_curves_are_rarely_abrupt(calibration: Any, count: int) -> None:
    for spacing in ("linear", "logarithmic"):
        steps = calibration.grid(spacing, count)
        noise = 0.01 * simulate(np.random.default_rng(12), 0.3, 200, count)
        for name, curve in calibration.CURVES.items():
            values = curve(steps) / np.ptp(curve(steps)) + noise
            abrupt = [any(e.get("abrupt") for e in events) for events in calibration.events_alone(values, steps)]
            assert np.mean(abrupt) <= 0.05, name


@pytest.mark.slow
@pytest.mark.parametrize("count", [24, 44, 100])
@pytest.mark.parametrize("coefficient", [0.0, 0.5])
def test_planted_jumps_are_covered_in_intervals_at_most_twice_as_wide_as_the_best(
    calibration: Any, coefficient: float, count: int
) -> None:
    steps, jump = calibration.grid("logarithmic", count), 3 * count // 5
    values = simulate(np.random.default_rng(13), coefficient, 200, count) + 8 * (np.arange(count) >= jump)
    x = positions(steps)
    best = calibration.known_noise(x, coefficient)(values, np.full(200, jump))
    of = dict(zip(steps.tolist(), x.tolist(), strict=True))
    widths = [
        min(
            (
                of[e["to_step"]] - of[e["from_step"]]
                for e in events
                if e["kind"] == "change" and e["from_step"] < steps[jump] <= e["to_step"] * (1 + 1e-9)
            ),
            default=math.inf,
        )
        for events in calibration.events_alone(values, steps)
    ]
    assert np.isfinite(widths).mean() >= 0.9
    assert np.median(np.array(widths) / best) <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spacings", "power", "least", "most"), [(6, 1.0, 0.9, 1.0), (0, 3.0, 0.0, 0.05), (0, None, 0.0, 0.05)]
)
def test_a_lag_of_six_spacings_is_an_order_and_equal_onsets_have_none(
    calibration: Any, spacings: int, power: float | None, least: float, most: float
) -> None:
    lag, ordered = spacings * math.log(6001 / 2) / 43, []
    for trial in range(20):
        runs = {
            ("g", str(seed)): calibration.pair_of(100 * trial + seed, lag, (0.02, 0.02), power) for seed in range(6)
        }
        ordered.append(any(order["relation"] == "before" for order in findings_of(runs).orders))
    assert least <= np.mean(ordered) <= most
