"""Sampled entropies against exact ones: error bars in the regimes that are hard to sample, and when sampling stops."""

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
    found = torch.tensor(values, dtype=torch.float64)
    return found / found.sum()


def diagonal(values: Tensor, size: int) -> Operator:
    """Return a matrix of these eigenvalues, the others being zero; random directions make the basis irrelevant."""
    padded = torch.cat([values, values.new_zeros(size - len(values))])
    return lambda x: padded[:, None] * x


def entropy(values: Tensor, order: float = 1.0) -> float:
    if order == 1:
        return float(-(values * values.log()).sum())
    return float(values.pow(order).sum().log() / (1 - order))


@pytest.mark.parametrize(
    ("name", "tolerance"), [*((name, 1e-2) for name in SPECTRA), ("exact collapse, 10 classes", 1e-3)]
)
def test_two_error_bars_hold_the_truth_in_every_regime(name: str, tolerance: float) -> None:
    values = spectrum(SPECTRA[name])
    exact, operator = entropy(values), diagonal(values, 500)
    found = [
        estimate_entropies(operator, 500, known=exact + 1, sampling=Sampling(tolerance, seed=seed, probes=64))
        for seed in range(50)
    ]
    errors = np.array([one.entropies[1.0] - exact for one in found])
    bars = np.array([one.stderrs[1.0] for one in found])
    assert (abs(errors) <= 2 * bars).mean() >= 0.93
    assert (abs(errors) <= 4 * bars).all()
    assert all(one.probes >= 16 for one in found)
    assert all(one.stderrs[1.0] <= tolerance * abs(exact + 1 - one.entropies[1.0]) for one in found if one.reached)


@pytest.mark.parametrize("order", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("name", ["few large and many small classes", "one direction in all features", "flat"])
def test_orders_have_error_bars_of_their_own(name: str, order: float) -> None:
    values = spectrum(SPECTRA[name])
    exact, operator = entropy(values), diagonal(values, 500)
    found = [
        estimate_entropies(operator, 500, known=exact + 1, orders=(order,), sampling=Sampling(2e-2, seed=seed))
        for seed in range(20)
    ]
    errors = np.array([one.entropies[order] - entropy(values, order) for one in found])
    bars = np.array([one.stderrs[order] for one in found])
    assert (abs(errors) <= 2 * bars).mean() >= 0.93
    assert (abs(errors) <= 3 * bars).all()


def test_an_order_that_small_eigenvalues_decide_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stochastic, "STEPS", (8, 16))
    values = spectrum(SPECTRA["heavy tail"])
    found = estimate_entropies(diagonal(values, 1000), 1000, known=entropy(values) + 1, orders=(0.1, 2.0))
    assert set(found.entropies) == set(found.stderrs) == {1.0, 2.0}


def test_a_high_order_does_not_underflow() -> None:
    values = spectrum(SPECTRA["flat"])
    exact = entropy(values)
    found = estimate_entropies(diagonal(values, 500), 500, known=exact + 1, orders=(1.5, 200.0))
    assert float(values.max()) ** 200 == 0
    assert found.entropies[1.5] == pytest.approx(entropy(values, 1.5), abs=4 * found.stderrs[1.5])
    # The order that is not resolved is missing; a spectrum that is has the value.
    few = spectrum(SPECTRA["exact collapse, 10 classes"])
    found = estimate_entropies(diagonal(few, 500), 500, known=4, orders=(400.0,), sampling=Sampling(1e-4))
    top = float(few.max())
    expected = (400 * math.log(top) + float((few / top).pow(400).sum().log())) / (1 - 400)
    assert found.entropies[400.0] == pytest.approx(expected, abs=2 * found.stderrs[400.0])


def test_an_error_bar_contains_rounding_where_all_eigenvalues_are_computed() -> None:
    values = spectrum(SPECTRA["exact collapse, Zipf class sizes"])
    for size in (50, 500):
        found = estimate_entropies(diagonal(values, size), size, known=4, sampling=Sampling(1e-9, probes=40))
        assert (found.leading, found.reached) == (50, True)
        assert abs(found.entropies[1.0] - entropy(values)) <= 1e-13
        assert 1e-15 < found.stderrs[1.0] < 1e-8


def test_leading_eigenvectors_take_the_place_of_many_probes_where_memory_allows() -> None:
    values = spectrum(SPECTRA["few large and many small classes"])
    exact, operator = entropy(values), diagonal(values, 500)
    sampling = Sampling(2e-3, probes=160)
    with_them = estimate_entropies(operator, 500, known=exact + 1, sampling=sampling)
    without = estimate_entropies(operator, 500, known=exact + 1, sampling=sampling, memory=1000)
    assert (with_them.reached, with_them.leading > 8, with_them.probes) == (True, True, 16)
    assert (without.reached, without.leading, without.probes) == (False, 0, 160)


def test_a_smaller_tolerance_is_met_by_more_probes_and_the_seed_decides() -> None:
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


def test_sampling_stops_where_longer_recurrences_would_be_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stochastic, "STEPS", (4, 6))
    values = spectrum(SPECTRA["heavy tail"])
    exact = entropy(values)
    found = estimate_entropies(diagonal(values, 1000), 1000, known=exact + 1, sampling=Sampling(1e-4))
    assert (found.reached, found.steps, found.probes) == (False, 6, 16)
    assert abs(found.entropies[1.0] - exact) <= 2 * found.stderrs[1.0]


def test_sampling_stops_at_the_most_probes() -> None:
    values = spectrum(SPECTRA["flat"])
    found = estimate_entropies(diagonal(values, 500), 500, known=7.2, sampling=Sampling(1e-9, probes=20))
    assert (found.reached, found.probes) == (False, 20)


def test_a_budget_ends_sampling_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    values = spectrum(SPECTRA["flat"])
    operator = diagonal(values, 500)
    # A clock that goes on by a second each time it is read: at the start, and after every eight probes.
    clock = itertools.count()
    monkeypatch.setattr(stochastic, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    found = estimate_entropies(operator, 500, known=entropy(values) + 1, sampling=Sampling(1e-9, budget=1.5))
    assert (found.reached, found.probes) == (False, 16)
    assert abs(found.entropies[1.0] - entropy(values)) <= 4 * found.stderrs[1.0]
    with pytest.raises(
        DataError,
        match=r"the time budget of 0.5 s ran out after 8 probes .* a standard error needs 16: raise the budget",
    ):
        estimate_entropies(operator, 500, known=5.0, sampling=Sampling(1e-9, budget=0.5))


def test_sampling_that_makes_no_sense_is_refused() -> None:
    for tolerance in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="tolerance: expected a positive number"):
            Sampling(tolerance)
    with pytest.raises(UsageError, match="budget: expected a positive number of seconds"):
        Sampling(budget=0)
    with pytest.raises(UsageError, match="probes: expected at least 16"):
        Sampling(probes=15)
