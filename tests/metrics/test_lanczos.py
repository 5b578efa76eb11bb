"""Tests of Lanczos quadratures and leading eigenpairs against the quadratic forms of known matrices."""

import math

import pytest
import torch
from torch import Tensor

from ckpt_probe.metrics.lanczos import Lanczos, Rules, leading_eigenpairs, spectral


def rotated(values: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a symmetric matrix with given eigenvalues, and its eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    vectors, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    return vectors * values @ vectors.T, vectors


def probes(size: int, count: int = 3) -> Tensor:
    return torch.randn(size, count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def integrals(rules: Rules, order: float) -> tuple[Tensor, Tensor]:
    """Return the integrals (b,) by both quadrature rules; nodes within rounding of zero count as zero eigenvalues."""
    nodes = torch.where(rules.nodes > 1e-13, rules.nodes, 0.0)
    gauss, radau = (rules.weights * spectral(nodes, order)).sum(dim=2)
    return gauss, radau


def quadratic_forms(values: Tensor, vectors: Tensor, x: Tensor, order: float) -> Tensor:
    shares = (vectors.T @ (x / x.norm(dim=0))).square()
    return (shares * spectral(values, order)[:, None]).sum(dim=0)


@pytest.mark.parametrize("order", [1.0, 0.5, 2.0])
def test_a_complete_recurrence_gives_the_quadratic_form(order: float) -> None:
    values = torch.linspace(0.01, 0.2, 20, dtype=torch.float64)
    matrix, vectors = rotated(values)
    rules = Lanczos(matrix.matmul, probes(20)).run(20)
    expected = quadratic_forms(values, vectors, probes(20), order)
    for integral in integrals(rules, order):
        assert torch.allclose(integral, expected, rtol=1e-9)
    assert torch.allclose(rules.weights.sum(dim=2), torch.ones(2, 3, dtype=torch.float64), rtol=1e-12)


@pytest.mark.parametrize("order", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("zeros", [0, 150])
def test_the_two_rules_enclose_the_quadratic_form_ever_more_tightly(order: float, zeros: int) -> None:
    values = torch.cat([torch.zeros(zeros), torch.logspace(-2, 0, 250)]).double()
    values /= values.sum()
    matrix, vectors = rotated(values)
    expected = quadratic_forms(values, vectors, probes(len(values)), order)
    growing, before = Lanczos(matrix.matmul, probes(len(values))), math.inf
    for steps in (1, 4, 12, 40, 150):
        gauss, radau = integrals(growing.run(steps), order)
        assert bool((radau <= expected * (1 + 1e-12)).all())
        assert bool((gauss >= expected * (1 - 1e-12)).all())
        gap = float((gauss - radau).max() / expected.max())
        assert gap < before
        before = gap
    assert before < 1e-3


def test_a_recurrence_far_beyond_convergence_stays_exact() -> None:
    # Without reorthogonalisation nodes would repeat; zero becomes a node long before the last step.
    values = torch.cat([torch.zeros(150), torch.linspace(0.01, 0.2, 50)]).double()
    matrix, vectors = rotated(values)
    rules = Lanczos(matrix.matmul, probes(200)).run(160)
    expected = quadratic_forms(values, vectors, probes(200), 0.1)
    for integral in integrals(rules, 0.1):
        assert torch.allclose(integral, expected, rtol=1e-8)


def test_a_recurrence_that_ends_early_is_padded() -> None:
    matrix = torch.diag(torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64))
    rules = Lanczos(matrix.matmul, torch.ones(4, 1, dtype=torch.float64)).run(4)
    assert [float(integral) for integral in integrals(rules, 1.0)] == pytest.approx([math.log(2) / 4] * 2, rel=1e-12)
    nothing = Lanczos(matrix.matmul, torch.zeros(4, 1, dtype=torch.float64)).run(3)
    assert [float(integral) for integral in integrals(nothing, 1.0)] == [0.0, 0.0]


def test_a_continued_recurrence_equals_an_uninterrupted_one() -> None:
    matrix, _ = rotated(torch.logspace(-3, 0, 60, dtype=torch.float64))
    products = []
    growing = Lanczos(lambda x: products.append(1) or matrix @ x, probes(60))
    assert torch.equal(growing.run(4).nodes, Lanczos(matrix.matmul, probes(60)).run(4).nodes)
    assert torch.equal(growing.run(9).nodes, Lanczos(matrix.matmul, probes(60)).run(9).nodes)
    assert len(products) == 9


def test_leading_eigenpairs_are_found_with_any_multiplicity() -> None:
    values = torch.tensor([0.1] * 6 + [0.15] + [0.25 / 193] * 193, dtype=torch.float64)
    matrix, vectors = rotated(values)
    pairs = leading_eigenpairs(matrix.matmul, probes(200, 8), 6, 1e-12)
    leading = pairs.values > 0.05
    assert sorted(pairs.values[leading].tolist()) == pytest.approx([0.1] * 6 + [0.15], rel=1e-9)
    span = pairs.vectors[:, leading]
    assert torch.allclose(span @ span.T, vectors[:, :7] @ vectors[:, :7].T, atol=1e-7)
    remainder = pairs.remove(probes(200))
    assert float((pairs.vectors.T @ remainder).abs().max()) < 1e-14


@pytest.mark.parametrize("order", [1.0, 0.5])
def test_the_spread_of_an_approximate_eigenvector_encloses_its_quadratic_form(order: float) -> None:
    values = torch.logspace(-2, 0, 100, dtype=torch.float64)
    values /= values.sum()
    matrix, vectors = rotated(values)
    pairs = leading_eigenpairs(matrix.matmul, probes(100, 4), 3, 0.1)
    assert 0 < len(pairs.values) < 12
    assert float(pairs.spreads.max()) > 1e-6
    exact = quadratic_forms(values, vectors, pairs.vectors, order)
    assert bool((exact <= spectral(pairs.values, order) * (1 + 1e-12)).all())
    lower = spectral(pairs.values * (1 + pairs.spreads), order) / (1 + pairs.spreads)
    assert bool((exact >= lower * (1 - 1e-12)).all())


def test_a_space_as_large_as_the_matrix_gives_all_its_eigenvalues() -> None:
    matrix, _ = rotated(torch.linspace(0.1, 1, 10, dtype=torch.float64))
    pairs = leading_eigenpairs(matrix.matmul, probes(10, 5), 8, 1e-9)
    assert sorted(pairs.values.tolist()) == pytest.approx(torch.linspace(0.1, 1, 10).tolist(), rel=1e-6)
