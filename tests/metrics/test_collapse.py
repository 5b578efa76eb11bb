"""Neural collapse: nearest class means, many classes, NC5, and the shapes that NC1-NC3 cannot be read from."""

import math

import numpy as np
import pytest
import torch

from ckpt_probe.errors import DataError
from ckpt_probe.metrics import collapse, erank_difference, nc5, nearest_means, simplex_etf
from ckpt_probe.metrics.collapse import (
    cdnv,
    duality,
    duality_uniformity,
    equiangular,
    equinorm,
    etf_distance,
    nc1_pinv,
    separation,
)


def test_nearest_means_against_a_loop_over_distances() -> None:
    generator = np.random.default_rng(0)
    features, means = generator.normal(size=(200, 5)) + 100, generator.normal(size=(4, 5)) + 100
    nearest = [((z - means) ** 2).sum(axis=1).argmin() for z in features]
    assert nearest_means(torch.tensor(features), torch.tensor(means)).tolist() == nearest


def test_classes_without_a_mean_are_nobodys_nearest() -> None:
    means = torch.tensor([[0.0, 0.0], [torch.nan, torch.nan], [10.0, 0.0]])
    features = torch.tensor([[1.0, 0.0], [9.0, 0.0], [9.0, 1.0]])
    assert nearest_means(features, means).tolist() == [0, 2, 2]


def test_coinciding_means_have_no_ratio() -> None:
    zero, within = torch.zeros(3, 4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    assert nc1_pinv(within, zero) is None
    assert cdnv(torch.ones(3, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)) is None
    assert equinorm(zero) is None
    assert equiangular(zero) is None
    assert etf_distance(zero) is None
    assert duality(zero, torch.ones(3, 4, dtype=torch.float64)) is None


def rows(classes: int, features: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(classes, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("classes", "features"), [(30, 40), (40, 12), (13, 12)])
def test_many_classes_by_another_way_give_the_same(
    classes: int, features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    M, weights = rows(classes, features), rows(classes, features, seed=1)
    M = M - M.mean(dim=0)
    half = rows(features, features, seed=2)
    within = half @ half.T
    before = (nc1_pinv(within, M), etf_distance(M), duality(weights, M), duality_uniformity(weights, M))
    monkeypatch.setattr(collapse, "MANY_ENTRIES", 50)
    after = (nc1_pinv(within, M), etf_distance(M), duality(weights, M), duality_uniformity(weights, M))
    assert after == pytest.approx(before, rel=1e-11)


@pytest.mark.parametrize("classes", [3, 12])
def test_the_distance_from_the_simplex_keeps_its_digits_where_it_is_reached(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collapse, "MANY_ENTRIES", 1)
    assert etf_distance(5 * simplex_etf(classes, classes + 3)) == pytest.approx(0, abs=1e-13)
    assert etf_distance(5 * simplex_etf(classes, classes - 1)) == pytest.approx(0, abs=1e-13)


def test_separation_is_the_logarithm_of_the_trace() -> None:
    M = rows(5, 7)
    M = M - M.mean(dim=0)
    half = rows(7, 7, seed=1)
    pinv = np.linalg.pinv((M.T @ M / 5).numpy(), rcond=1e-12, hermitian=True)
    expected = math.log(np.trace((half @ half.T).numpy() @ pinv))
    assert separation(nc1_pinv(half @ half.T, M), 5) == pytest.approx(expected, rel=1e-10)
    assert separation(0.0, 5) is None
    assert separation(None, 5) is None


def test_uniformity_of_duality_is_the_spread_of_cosines() -> None:
    M, weights = rows(6, 4), rows(6, 4, seed=1)
    cosines = [float(w @ m / (w.norm() * m.norm())) for w, m in zip(weights, M, strict=True)]
    assert duality_uniformity(weights, M) == pytest.approx(np.std(cosines), rel=1e-12)
    assert duality_uniformity(3 * M, M) == pytest.approx(0, abs=1e-15)
    weights[2] = 0
    assert duality_uniformity(weights, M) is None


def test_nc5_against_its_definition_and_what_has_none() -> None:
    means, outside = rows(5, 4).numpy(), rows(1, 4, seed=1).numpy()[0]
    centre = means.mean(axis=0)
    away = outside - centre
    cosines = [abs((m - centre) @ away) / np.linalg.norm(m - centre) / np.linalg.norm(away) for m in means]
    assert nc5(means, outside) == pytest.approx(np.mean(cosines), rel=1e-12)
    for wrong, told in (
        ((means, outside[:3]), "class means have 4 features and the outside mean 3"),
        ((means, centre), "undefined"),
        ((means, outside * np.nan), "outside mean: 1 row"),
    ):
        with pytest.raises(DataError, match=told):
            nc5(*wrong)


def test_the_difference_of_effective_ranks() -> None:
    generator = np.random.default_rng(0)
    first, rows_now = generator.normal(size=(40, 6)) + 3, generator.normal(size=(40, 2)) @ generator.normal(size=(2, 6))

    def rank(X: np.ndarray) -> float:
        centred = X - X.mean(axis=0)
        unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        values = np.linalg.eigvalsh(unit @ unit.T / len(unit))
        values = values[values > 1e-12]
        return float(np.exp(-(values * np.log(values)).sum()))

    assert erank_difference(first, rows_now) == pytest.approx(rank(first) - rank(rows_now), rel=1e-10)
    assert erank_difference(first, rows_now) > 3
