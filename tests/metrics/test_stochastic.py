"""Tests of sampled entropies against exact ones: error bars for spectra that are hard to sample, and stopping rules."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.metrics import stochastic
from ckpt_probe.metrics.lanczos import Operator
from ckpt_probe.metrics.stochastic import Sampling, estimate_entropies

ZIPF = 1 / np.arange(2, 52)
SPECTRA = {
    "exact collapse, 10 classes": [10 / 9] + [80 / 81] * 9,
    "exact collapse, 50 classes": [50 / 49] + [0.9996] * 49,
    "exact collapse, two classes of opposite heads": [1.0, 1.0],
    "near collapse, 10 classes": [10 / 9] + [80 / 81] * 9 + list(0.1 * np.geomspace(1e-4, 1, 490) / 50),
    "near collapse, Zipf class sizes": list(ZIPF) + list(0.1 * np.geomspace(1e-4, 1, 450) / 50),
    "exact collapse, Zipf class sizes": list(ZIPF),
    "few large and many small classes": [0.16, 0.159, 0.158, 0.157, 0.15] + [0.004] * 45 + [1e-5] * 200,
    "one direction in all features": [100.0, *np.geomspace(1e-3, 1, 499)],
    "heavy tail": list(np.geomspace(1e-12, 1, 500)),
    "flat": list(np.linspace(0.5, 1.5, 500)),
}


def spectrum(values: list[float]) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor / tensor.sum()


def diagonal(values: Tensor, size: int) -> Operator:
    """Return a matrix with given eigenvalues, padded by zeros; random probes make the basis irrelevant."""
    padded = torch.cat([values, values.new_zeros(size - len(values))])
    return lambda x: padded[:, None] * x


def entropy(values: Tensor, order: float = 1.0) -> float:
    if order == 1:
        return float(-(values * values.log()).sum())
    return float(values.pow(order).sum().log() / (1 - order))


@pytest.mark.parametrize(
    ("name", "tolerance"), [*((name, 1e-2) for name in SPECTRA), ("exact collapse, 10 classes", 1e-3)]
)
def test_two_error_bars_contain_the_exact_entropy_of_every_spectrum(name: str, tolerance: float) -> None:
    values = spectrum(SPECTRA[name])
    exact, operator = entropy(values), diagonal(values, 500)
    estimates = [
        estimate_entropies(operator, 500, known=exact + 1, sampling=Sampling(tolerance, seed=seed, probes=64))
        for seed in range(30)
    ]
    errors = np.array([estimate.entropies[1.0] - exact for estimate in estimates])
    bars = np.array([estimate.stderrs[1.0] for estimate in estimates])
    assert (abs(errors) <= 2 * bars).mean() >= 0.93
    assert (abs(errors) <= 4 * bars).all()
    assert all(estimate.probes >= 16 for estimate in estimates)
    assert all(
        estimate.stderrs[1.0] <= tolerance * abs(exact + 1 - estimate.entropies[1.0])
        for estimate in estimates
        if estimate.reached
    )


@pytest.mark.parametrize("order", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("name", ["few large and many small classes", "one direction in all features", "flat"])
def test_every_order_has_its_own_error_bar(name: str, order: float) -> None:
    values = spectrum(SPECTRA[name])
    exact, operator = entropy(values), diagonal(values, 500)
    estimates = [
        estimate_entropies(operator, 500, known=exact + 1, orders=(order,), sampling=Sampling(2e-2, seed=seed))
        for seed in range(20)
    ]
    errors = np.array([estimate.entropies[order] - entropy(values, order) for estimate in estimates])
    bars = np.array([estimate.stderrs[order] for estimate in estimates])
    assert (abs(errors) <= 2 * bars).mean() >= 0.93
    assert (abs(errors) <= 3 * bars).all()


def test_an_order_dominated_by_small_eigenvalues_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stochastic, "STEPS", (8, 16))
    values = spectrum(SPECTRA["heavy tail"])
    estimate = estimate_entropies(diagonal(values, 1000), 1000, known=entropy(values) + 1, orders=(0.1, 2.0))
    assert set(estimate.entropies) == set(estimate.stderrs) == {1.0, 2.0}


def test_a_high_order_does_not_underflow() -> None:
    values = spectrum(SPECTRA["flat"])
    exact = entropy(values)
    estimate = estimate_entropies(diagonal(values, 500), 500, known=exact + 1, orders=(1.5, 200.0))
    assert float(values.max()) ** 200 == 0
    assert estimate.entropies[1.5] == pytest.approx(entropy(values, 1.5), abs=4 * estimate.stderrs[1.5])
    # An order that is not resolved is missing; with few eigenvalues, all of which are resolved, it has a value.
    few = spectrum(SPECTRA["exact collapse, 10 classes"])
    estimate = estimate_entropies(diagonal(few, 500), 500, known=4, orders=(400.0,), sampling=Sampling(1e-4))
    top = float(few.max())
    expected = (400 * math.log(top) + float((few / top).pow(400).sum().log())) / (1 - 400)
    assert estimate.entropies[400.0] == pytest.approx(expected, abs=2 * estimate.stderrs[400.0])


def test_error_bars_cover_rounding_if_all_eigenvalues_are_computed() -> None:
    values = spectrum(SPECTRA["exact collapse, Zipf class sizes"])
    for size in (50, 500):
        estimate = estimate_entropies(diagonal(values, size), size, known=4, sampling=Sampling(1e-9, probes=40))
        assert (estimate.leading, estimate.reached) == (50, True)
        assert abs(estimate.entropies[1.0] - entropy(values)) <= 1e-13
        assert 1e-15 < estimate.stderrs[1.0] < 1e-8


def test_leading_eigenvectors_replace_many_probes_if_memory_allows() -> None:
    values = spectrum(SPECTRA["few large and many small classes"])
    exact, operator = entropy(values), diagonal(values, 500)
    sampling = Sampling(2e-3, probes=160)
    with_them = estimate_entropies(operator, 500, known=exact + 1, sampling=sampling)
    without = estimate_entropies(operator, 500, known=exact + 1, sampling=sampling, memory=1000)
    assert (with_them.reached, with_them.leading > 8, with_them.probes) == (True, True, 16)
    assert (without.reached, without.leading, without.probes) == (False, 0, 160)


def test_a_smaller_tolerance_takes_more_probes_and_a_seed_is_reproducible() -> None:
    values = spectrum(SPECTRA["heavy tail"])
    exact, operator = entropy(values), diagonal(values, 500)

    def run(tolerance: float, seed: int = 0):
        return estimate_entropies(operator, 500, known=exact + 1, sampling=Sampling(tolerance, seed=seed))

    coarse, fine = run(2e-2), run(2e-3)
    assert fine.stderrs[1.0] <= 2e-3 * abs(exact + 1 - fine.entropies[1.0])
    assert fine.probes > coarse.probes
    assert fine.steps > coarse.steps
    assert run(2e-2).entropies == coarse.entropies
    assert run(2e-2, seed=1).entropies != coarse.entropies


def test_sampling_stops_if_longer_recurrences_would_be_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stochastic, "STEPS", (4, 6))
    values = spectrum(SPECTRA["heavy tail"])
    exact = entropy(values)
    estimate = estimate_entropies(diagonal(values, 1000), 1000, known=exact + 1, sampling=Sampling(1e-4))
    assert (estimate.reached, estimate.steps, estimate.probes) == (False, 6, 16)
    assert abs(estimate.entropies[1.0] - exact) <= 2 * estimate.stderrs[1.0]


def test_sampling_stops_at_the_largest_number_of_probes() -> None:
    values = spectrum(SPECTRA["flat"])
    estimate = estimate_entropies(diagonal(values, 500), 500, known=7.2, sampling=Sampling(1e-9, probes=20))
    assert (estimate.reached, estimate.probes) == (False, 20)


def test_a_budget_of_seconds_ends_sampling_with_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    values = spectrum(SPECTRA["flat"])
    operator = diagonal(values, 500)
    # The clock advances by a second per reading; it is read at the start and after every eight probes.
    clock = itertools.count()
    monkeypatch.setattr(stochastic, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    estimate = estimate_entropies(operator, 500, known=entropy(values) + 1, sampling=Sampling(1e-9, budget=1.5))
    assert (estimate.reached, estimate.probes) == (False, 16)
    assert abs(estimate.entropies[1.0] - entropy(values)) <= 4 * estimate.stderrs[1.0]
    with pytest.raises(
        DataError,
        match=r"the time budget of 0.5 s ran out after 8 probes .* a standard error needs 16: raise the budget",
    ):
        estimate_entropies(operator, 500, known=5.0, sampling=Sampling(1e-9, budget=0.5))


def test_invalid_sampling_settings_are_refused() -> None:
    for tolerance in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="tolerance: expected a positive number"):
            Sampling(tolerance)
    with pytest.raises(UsageError, match="budget: expected a positive number of seconds"):
        Sampling(budget=0)
    with pytest.raises(UsageError, match="probes: expected at least 16"):
        Sampling(probes=15)
