"""Tests of spectra against numpy's singular values, draws from known laws, and planted eigenvalues."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ckpt_probe.trajectories import eigenvalues, spectra
from ckpt_probe.trajectories.eigenvalues import edge_of, fit_tail, goodness, median_of_bulk
from ckpt_probe.trajectories.spectra import group_numbers, spectrum_of


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (24, 4, 3, 3)])
def test_numbers_of_a_matrix_equal_those_of_its_singular_values(shape: tuple[int, ...]) -> None:
    weights = np.random.default_rng(0).normal(size=shape)
    matrix = weights.reshape(shape[0], -1)
    singular = np.linalg.svd(matrix, compute_uv=False)
    values = singular**2 / max(matrix.shape)
    spectrum = spectrum_of(weights).numbers
    assert spectrum["norm"] == pytest.approx(singular[0], rel=1e-12)
    assert spectrum["stable_rank"] == pytest.approx((singular**2).sum() / singular[0] ** 2, rel=1e-12)
    assert spectrum["effective_rank"] == pytest.approx(math.exp(stats.entropy(values)), rel=1e-10)
    assert spectrum["mean_log"] == pytest.approx(np.log(values).mean(), rel=1e-10)


def test_the_mean_logarithm_keeps_the_digits_of_small_singular_values() -> None:
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.normal(size=(40, 40)))[0] for _ in range(2))
    singular = np.geomspace(1, 1e-11, 40)
    spectrum = spectrum_of(left * singular @ right)
    assert spectrum.numbers["mean_log"] == pytest.approx((2 * np.log(singular) - math.log(40)).mean(), rel=1e-4)
    singular[-1] = 0
    deficient = spectrum_of(left * singular @ right)
    assert deficient.numbers["mean_log"] is None
    assert "a singular value is zero within rounding" in " ".join(deficient.missing)


def test_a_diagonal_matrix_has_its_own_eigenvalues() -> None:
    diagonal = np.arange(1.0, 31)
    spectrum = spectrum_of(np.diag(diagonal))
    np.testing.assert_allclose(spectrum.values, np.sort(diagonal**2 / 30)[::-1], rtol=1e-12)
    assert spectrum.numbers["stable_rank"] == pytest.approx((diagonal**2).sum() / 900, rel=1e-12)


def test_the_tail_starts_where_the_kolmogorov_distance_is_smallest() -> None:
    values = np.random.default_rng(1).pareto(2.0, size=80) + 1
    tail = fit_tail(values)
    assert tail is not None
    fits = []
    for start in np.sort(values)[: 80 - 19]:
        inside = values[values >= start]
        exponent = 1 + len(inside) / np.log(inside / start).sum()
        distance = stats.kstest(inside, stats.pareto(exponent - 1, scale=start).cdf).statistic
        fits.append((distance, exponent, len(inside)))
    best = min(fits)
    assert (tail.distance, tail.alpha, tail.count) == pytest.approx(best, rel=1e-9)
    plausible = [exponent for distance, exponent, _ in fits if distance <= 2 * best[0]]
    choice = np.square(np.array(plausible) - tail.alpha).mean()
    assert tail.stderr == pytest.approx(math.sqrt((tail.alpha - 1) ** 2 / tail.count + choice), rel=1e-9)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 5.0])
def test_exponents_of_pareto_draws_are_within_two_standard_errors(exponent: float) -> None:
    random = np.random.default_rng(0)
    inside = []
    for _ in range(100):
        tail = fit_tail(random.uniform(size=200) ** (-1 / (exponent - 1)))
        assert tail is not None
        inside.append(abs(tail.alpha - exponent) <= 2 * tail.stderr)
    assert np.mean(inside) >= 0.92  # In the long run it is 0.95 to 0.97, with a standard error of 0.02 here.


def test_few_eigenvalues_and_no_power_law_are_missing_with_the_reason() -> None:
    few = spectrum_of(np.random.default_rng(0).normal(size=(12, 40)))
    assert few.numbers["alpha"] is None
    assert "spectrum.alpha: 12 different eigenvalues above zero, fewer than 20 in the tail" in few.missing
    assert "spectrum.spikes: 12 eigenvalues, fewer than 20" in few.missing
    values = np.random.default_rng(0).uniform(1, 2, size=400)
    tail = fit_tail(values)
    assert tail is not None
    matrix = np.diag(np.sqrt(np.concatenate([values, np.full(5, 40.0)])))
    refused = spectrum_of(matrix, bootstrap=20)
    assert (refused.numbers["alpha"], refused.numbers["alpha_p"]) == (None, 0)
    assert "spectrum.alpha: no power law: p = 0, less than 0.1" in refused.missing


def test_the_goodness_of_fit_of_power_laws_is_uniform() -> None:
    random, shares = np.random.default_rng(0), []
    for _ in range(16):
        pareto = random.pareto(1.0, size=60) + 1
        law = fit_tail(pareto)
        assert law is not None
        shares.append(goodness(pareto, law, 20))
    # The mean of 16 uniform numbers has the standard error 0.07.
    assert np.mean(shares) == pytest.approx(0.5, abs=0.2)
    assert np.std(shares) > 0.2


def test_the_bulk_of_random_matrices_has_no_spikes_and_a_planted_one_is_found() -> None:
    random = np.random.default_rng(0)
    false = 0
    for _ in range(60):
        weights = random.normal(size=(60, 120))
        false += spectrum_of(weights).numbers["spikes"] > 0
    assert false <= 1
    u, v = random.normal(size=60), random.normal(size=120)
    strength = 1.6 * (60 * 120) ** 0.25  # The threshold of Baik, Ben Arous and Péché is (m n)^(1/4).
    planted = weights + strength * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
    numbers = spectrum_of(planted).numbers
    assert numbers["spikes"] == 1
    singular = np.linalg.svd(planted, compute_uv=False)
    assert numbers["spike_share"] == pytest.approx(singular[0] ** 2 / (singular**2).sum(), rel=1e-10)
    change = spectrum_of(planted, weights).numbers
    assert change["change_spikes"] is None  # A change of rank one has no bulk.


def test_the_median_of_the_bulk_is_that_of_a_large_random_matrix() -> None:
    weights = np.random.default_rng(0).normal(size=(600, 1200))
    values = np.linalg.svd(weights, compute_uv=False) ** 2 / 1200
    assert median_of_bulk(0.5) == pytest.approx(np.median(values), rel=1e-2)
    edge = edge_of(values, 600, 1200, values.sum())
    assert edge is not None
    assert edge.value == pytest.approx((1 + math.sqrt(0.5)) ** 2, rel=1e-2)


def test_large_matrices_by_lanczos_agree_with_all_eigenvalues(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    weights = random.normal(size=(300, 500)) + 3 * np.outer(random.normal(size=300), random.normal(size=500))
    exact = spectrum_of(weights)
    monkeypatch.setattr(eigenvalues, "EXACT_SIDE", 200)
    spectrum = spectrum_of(weights)
    assert exact.exact
    assert not spectrum.exact
    for name, error in {"norm": 1e-6, "stable_rank": 1e-6, "effective_rank": 0.02, "mean_log": 0.05}.items():
        assert spectrum.numbers[name] == pytest.approx(exact.numbers[name], rel=error), name
    assert spectrum.numbers["spikes"] == exact.numbers["spikes"] == 1


def test_large_matrices_of_low_rank_have_the_reasons_of_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    low_rank = random.normal(size=(300, 10)) @ random.normal(size=(10, 500))
    half_zero = random.normal(size=(300, 500)) * (np.arange(300) < 150)[:, None]
    exact = [spectrum_of(matrix) for matrix in (low_rank, half_zero)]
    monkeypatch.setattr(eigenvalues, "EXACT_SIDE", 200)
    for matrix, expected in zip((low_rank, half_zero), exact, strict=True):
        spectrum = spectrum_of(matrix)
        assert not spectrum.exact
        assert spectrum.numbers["effective_rank"] == pytest.approx(expected.numbers["effective_rank"], rel=0.02)
        assert spectrum.missing == expected.missing
        assert spectrum.missing[0] == "spectrum.mean_log: a singular value is zero within rounding"
        assert spectrum.missing[-1] == "spectrum.spikes: half of the eigenvalues are zero"


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_an_orthogonal_matrix_has_no_power_law(dtype: type) -> None:
    matrix = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))[0].astype(dtype)
    spectrum = spectrum_of(matrix)
    assert spectrum.numbers["alpha"] is None
    assert spectrum.missing == ("spectrum.alpha: the eigenvalues are equal up to rounding",)


def test_zero_and_nan_matrices_have_a_reason_and_groups_have_means() -> None:
    assert spectrum_of(np.zeros((30, 30))).missing == ("spectrum.*: all entries are zero",)
    assert spectrum_of(np.full((30, 30), np.nan)).missing == ("spectrum.*: NaN or infinite weights",)
    parts = [spectrum_of(np.random.default_rng(seed).normal(size=(40, 60))) for seed in (0, 1)]
    joined = group_numbers(parts)
    assert joined["alpha"] == pytest.approx(np.mean([part.numbers["alpha"] for part in parts]))
    errors = [part.numbers["alpha_stderr"] for part in parts]
    assert joined["alpha_stderr"] == pytest.approx(np.linalg.norm(errors) / 2)
    assert joined["norm"] == max(part.numbers["norm"] for part in parts)


def test_a_matrix_in_parts_has_the_spectrum_of_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    first, change = random.normal(size=(60, 30)), random.normal(size=(60, 30))
    first[:, -1] = first[:, 0] + 1e-7 * change[:, 0]  # a small singular value
    expected = spectrum_of(first), spectrum_of(change, first)
    monkeypatch.setattr(eigenvalues, "PANEL", 210)
    for found, other in zip((spectrum_of(first), spectrum_of(change, first)), expected, strict=True):
        for name, value in other.numbers.items():
            near = None if value is None else pytest.approx(value, rel=1e-6 if name == "mean_log" else 1e-10)
            assert found.numbers[name] == near, name
    singular = np.linalg.svd(first, compute_uv=False)
    assert expected[0].numbers["mean_log"] == pytest.approx((2 * np.log(singular) - math.log(60)).mean(), rel=1e-4)


def test_equal_tensors_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    before, after = (torch.randn(30, 40, generator=draw).bfloat16() for _ in range(2))
    found = spectra._latest(after, before, 0, "")
    assert spectra._latest(after.clone(), before.clone(), 0, "") is found
    unchanged = spectra._latest(after, after.clone(), 0, "")
    assert unchanged.values is spectra._latest(after, None, 0, "").values
    assert unchanged.missing[-1] == "spectrum.change_spikes: no change since the first checkpoint"
    assert spectra._latest(after, None, 0, "alone").missing[-1] == "spectrum.change_spikes: alone"
    assert spectra._latest(after.T, None, 0, "") is not spectra._latest(after, None, 0, "")
    assert found.numbers["norm"] == pytest.approx(torch.linalg.norm(after.double(), 2).item(), rel=1e-12)
    monkeypatch.setattr(spectra, "MOST_VALUES", 40)  # one spectrum
    spectra._latest(before, None, 0, "")
    assert spectra._latest(after, before, 0, "") is not found
