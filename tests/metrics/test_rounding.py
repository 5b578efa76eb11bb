"""Tests of the threshold for zero against higher precision, and of functions of matrices that depend on it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from mpmath import mp, mpf

from ckpt_probe.errors import DataError
from ckpt_probe.metrics import effective_rank, erank_difference, matrix_entropy, mir, nc5, nearest_means, similarity
from ckpt_probe.metrics.collapse import cdnv, equinorm, etf_distance
from ckpt_probe.metrics.covariance import line_through
from ckpt_probe.metrics.entropy import renyi_name
from ckpt_probe.metrics.rows import EPSILON, centred, near_one, power_of_two, row_lengths, without_rounding
from tests.metrics.test_pairs import uniformity

RNG = np.random.default_rng(0)


def renyi(rows: np.ndarray, alpha: float) -> float:
    """Return the entropy of order alpha from eigenvalues computed with 40 digits."""
    mp.dps = 40
    unit = [[mpf(float(value)) for value in row] for row in rows]
    unit = [[value / mp.sqrt(sum(v * v for v in row)) for value in row] for row in unit]
    values = mp.eigsy(mp.matrix(unit).T * mp.matrix(unit) / len(unit), eigvals_only=True)
    return float(mp.log(sum(value ** mpf(alpha) for value in values)) / (1 - mpf(alpha)))


def test_the_bound_holds_for_sums_in_any_order() -> None:
    values = np.full(100_000, 0.1)
    error = abs(np.add.accumulate(values)[-1] / len(values) - 0.1)
    assert 0 < error < len(values) * EPSILON * 0.1


def test_lengths_of_rows_do_not_overflow_or_underflow() -> None:
    rows = torch.tensor([[3.0, 4.0], [3e-200, 4e-200], [3e200, 4e200], [0.0, 0.0]], dtype=torch.float64)
    assert row_lengths(rows).tolist() == pytest.approx([5, 5e-200, 5e200, 0], rel=1e-15, abs=0)
    assert without_rounding(rows, 5e-200).any(dim=1).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("size", "unit"), [(0.0, 1), (3.0, 1), (1e70, 2.0**233), (5e-324, 2.0**-1000), (1e308, 2.0**1000)]
)
def test_units_are_powers_of_two_outside_the_usual_range(size: float, unit: float) -> None:
    assert power_of_two(size) == unit
    assert (near_one(torch.tensor([[size]], dtype=torch.float64)) * unit).item() == size


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9999999, 1.0000001, 1.005, 2, 100, 1000])
def test_renyi_entropies_of_extreme_orders_are_accurate(alpha: float) -> None:
    rows = RNG.normal(size=(20, 5))
    assert matrix_entropy(rows, alpha=alpha) == pytest.approx(renyi(rows, alpha), rel=1e-9)


@pytest.mark.parametrize("alpha", [0.5, 1, 1.0000001, 2, 100])
@pytest.mark.parametrize("count", [2, 50, 700])
def test_the_entropy_of_equal_rows_is_exactly_zero(alpha: float, count: int) -> None:
    rows = np.tile(RNG.normal(size=8), (count, 1))
    assert str(matrix_entropy(rows, alpha=alpha)) == "0.0"
    assert effective_rank(rows) == 1


def test_ratios_over_entropies_near_rounding_are_undefined() -> None:
    Y = RNG.normal(size=(60, 3))
    X = RNG.normal(size=(60, 4))
    for offset in (1e7, 1e8):
        with pytest.raises(DataError, match="undefined"):
            mir(X + offset, Y)
    assert 0 < mir(X + 100, Y) < 2


def test_different_orders_have_different_names() -> None:
    assert [renyi_name(order) for order in (2, 2.0, 0.5)] == ["renyi_2", "renyi_2", "renyi_0.5"]
    assert len({renyi_name(order) for order in (0.1234561, 0.1234564, 1.0000001, 1.0000002)}) == 4


@pytest.mark.parametrize("count", [10, 100, 5000])
def test_a_centred_constant_representation_has_no_direction(count: int) -> None:
    constant = np.tile(RNG.normal(size=8), (count, 1))
    assert not centred(torch.tensor(constant)).any()
    with pytest.raises(DataError, match="zero length"):
        erank_difference(RNG.normal(size=(count, 8)), constant)
    moved = RNG.normal(size=(count, 8)) + 1e6
    assert torch.allclose(centred(torch.tensor(moved)), torch.tensor(moved - moved.mean(axis=0)), rtol=0, atol=1e-8)


@pytest.mark.parametrize("edges", [(0, 37, 100, 263, 500), (0, 1, 2, 500), (0, 250, 500)])
def test_streamed_cka_of_a_constant_layer_is_undefined_for_any_blocks(edges: tuple[int, ...]) -> None:
    X, Y = np.tile(RNG.normal(size=8), (500, 1)), RNG.normal(size=(500, 5))
    parts = [similarity.CKA() for _ in range(2)]
    for number, (start, stop) in enumerate(pairwise(edges)):
        parts[number % 2].update(X[start:stop], Y[start:stop])
    parts[0].merge(parts[1])
    with pytest.raises(DataError, match="does not vary"):
        parts[0].compute()


@pytest.mark.parametrize("scale", [1e-200, 1e-100, 1e78, 1e200])
def test_cka_does_not_depend_on_scale(scale: float) -> None:
    X, Y = RNG.normal(size=(2, 50, 4))
    expected = similarity.cka(X, Y)
    assert similarity.cka(scale * X, Y) == pytest.approx(expected, rel=1e-12)
    assert similarity.cka_between([scale * X], [Y]).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-100, 1e78, 1e160, 1e300])
def test_collapse_metrics_do_not_depend_on_scale(scale: float) -> None:
    M = torch.tensor(RNG.normal(size=(5, 7)))
    M = M - M.mean(dim=0)
    for function in (equinorm, etf_distance, lambda rows: uniformity(rows)[0]):
        assert function(M * scale) == pytest.approx(function(M), rel=1e-12)
    outside = torch.tensor(RNG.normal(size=7))
    for less_mean in (False, True):
        expected = nc5(M + 1, outside, centred=less_mean)
        assert nc5(M * scale + scale, outside * scale, centred=less_mean) == pytest.approx(expected, rel=1e-9)


def test_class_means_that_differ_by_rounding_coincide() -> None:
    means = torch.tensor(RNG.normal(size=(4, 6)))
    means[2] = means[1] * (1 + 2e-16)
    assert cdnv(torch.ones(4).double(), means) is None
    assert uniformity(means) == (None, None)
    means[2] = means[1] * (1 + 1e-9)
    assert cdnv(torch.ones(4).double(), means) == pytest.approx(1e18 / 6 / float(means[1] @ means[1]), rel=1e-5)


@pytest.mark.parametrize("classes", [6, 200])
@pytest.mark.parametrize("spread", [3, 8])
@pytest.mark.parametrize("scale", [1.0, 1e-290, 1e150])
def test_nearest_means_are_exact_at_every_scale(classes: int, spread: int, scale: float) -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(600) % classes
    means = rng.normal(size=(classes, 12)) * 10.0 ** np.linspace(-spread, spread, classes)[:, None]
    rows = means[labels] * (1 + 0.1 * rng.normal(size=(600, 12)))
    expected = ((rows[:, None] - means).astype(np.longdouble) ** 2).sum(axis=2).argmin(axis=1)
    nearest = nearest_means(torch.tensor(rows * scale), torch.tensor(means * scale))
    assert nearest.tolist() == expected.tolist()


def test_values_equal_up_to_rounding_have_no_line() -> None:
    assert line_through([(0.1, 0.3), (0.2, 0.1 + 0.2), (0.3, 0.3)]) is None
    assert line_through([(0.1, 0.3), (0.2, 0.3001), (0.3, 0.3)]) is not None
