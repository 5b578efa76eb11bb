"""Tests of neural collapse: nearest class means, many classes, NC5, and shapes for which NC1 to NC3 are undefined."""

import math

import numpy as np
import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.errors import DataError
from ckpt_probe.metrics import collapse, erank_difference, nc5, nearest_means, simplex_etf
from ckpt_probe.metrics.collapse import (
    between_axes,
    cdnv,
    duality,
    duality_uniformity,
    equiangular,
    equinorm,
    etf_distance,
    separation,
    trace_along,
)


def test_nearest_means_equal_those_of_a_loop_over_distances() -> None:
    generator = np.random.default_rng(0)
    features, means = generator.normal(size=(200, 5)) + 100, generator.normal(size=(4, 5)) + 100
    nearest = [((z - means) ** 2).sum(axis=1).argmin() for z in features]
    assert nearest_means(torch.tensor(features), torch.tensor(means)).tolist() == nearest


def test_classes_without_a_mean_are_never_nearest() -> None:
    means = torch.tensor([[0.0, 0.0], [torch.nan, torch.nan], [10.0, 0.0]])
    features = torch.tensor([[1.0, 0.0], [9.0, 0.0], [9.0, 1.0]])
    assert nearest_means(features, means).tolist() == [0, 2, 2]


def test_metrics_of_coinciding_means_are_undefined() -> None:
    zero = torch.zeros(3, 4, dtype=torch.float64)
    assert between_axes(zero) is None
    assert cdnv(torch.ones(3, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)) is None
    assert equinorm(zero) is None
    assert equiangular(zero) is None
    assert etf_distance(zero) is None
    assert duality(zero, torch.ones(3, 4, dtype=torch.float64)) is None


def nc1_of(within: torch.Tensor, M: torch.Tensor) -> float:
    axes = between_axes(M)
    assert axes is not None
    return float(trace_along(axes, within, M))


def rows(classes: int, features: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(classes, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("classes", "features"), [(30, 40), (40, 12), (13, 12)])
def test_the_algorithm_for_many_classes_gives_the_same_values(
    classes: int, features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    M, weights = rows(classes, features), rows(classes, features, seed=1)
    M = M - M.mean(dim=0)
    half = rows(features, features, seed=2)
    within = half @ half.T
    before = (nc1_of(within, M), etf_distance(M), duality(weights, M), duality_uniformity(weights, M))
    monkeypatch.setattr(collapse, "MANY_ENTRIES", 50)
    after = (nc1_of(within, M), etf_distance(M), duality(weights, M), duality_uniformity(weights, M))
    assert after == pytest.approx(before, rel=1e-11)


@pytest.mark.parametrize("classes", [3, 12])
def test_the_distance_from_the_simplex_is_accurate_near_zero(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collapse, "MANY_ENTRIES", 1)
    assert etf_distance(5 * simplex_etf(classes, classes + 3)) == pytest.approx(0, abs=1e-13)
    assert etf_distance(5 * simplex_etf(classes, classes - 1)) == pytest.approx(0, abs=1e-13)


def test_separation_is_the_logarithm_of_the_trace() -> None:
    M = rows(5, 7)
    M = M - M.mean(dim=0)
    half = rows(7, 7, seed=1)
    pinv = np.linalg.pinv((M.T @ M / 5).numpy(), rcond=1e-12, hermitian=True)
    expected = math.log(np.trace((half @ half.T).numpy() @ pinv))
    assert separation(nc1_of(half @ half.T, M), M) == pytest.approx(expected, rel=1e-10)
    assert separation(0.0, M) is None
    assert separation(None, M) is None


def test_uniformity_of_duality_is_the_spread_of_cosines() -> None:
    M, weights = rows(6, 4), rows(6, 4, seed=1)
    cosines = [float(w @ m / (w.norm() * m.norm())) for w, m in zip(weights, M, strict=True)]
    assert duality_uniformity(weights, M) == pytest.approx(np.std(cosines), rel=1e-12)
    assert duality_uniformity(3 * M, M) == pytest.approx(0, abs=1e-15)
    weights[2] = 0
    assert duality_uniformity(weights, M) is None


def test_nc5_equals_its_definition_and_zero_vectors_are_an_error() -> None:
    means, outside = rows(5, 4).numpy(), rows(1, 4, seed=1).numpy()[0]
    centre = means.mean(axis=0)
    for centred, origin in ((False, np.zeros(4)), (True, centre)):
        away = outside - origin
        cosines = [abs((m - origin) @ away) / np.linalg.norm(m - origin) / np.linalg.norm(away) for m in means]
        assert nc5(means, outside, centred=centred) == pytest.approx(np.mean(cosines), rel=1e-12)
    # The package neural-collapse applies cosine_similarity to the uncentred means and the outside mean.
    peer = torch.nn.functional.cosine_similarity(torch.tensor(means), torch.tensor(outside)[None]).abs().mean()
    assert nc5(means, outside) == pytest.approx(peer.item(), rel=1e-12)
    for wrong, centred, reason in (
        ((means, outside[:3]), False, "class means have 4 features and the outside mean 3"),
        ((means, centre), True, "undefined, because a class mean or the outside mean equals the mean"),
        ((means, 0 * outside), False, "undefined, because a class mean or the outside mean is zero"),
        ((means, outside * np.nan), False, "outside mean: 1 row"),
    ):
        with pytest.raises(DataError, match=reason):
            nc5(*wrong, centred=centred)


def test_erank_difference_is_the_difference_of_effective_ranks() -> None:
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


def peer_structure_error(A: np.ndarray, B: np.ndarray) -> float:
    """Compute the structure error of the package neural-collapse: B Aᵀ against the simplex."""
    struct = B @ A.T
    struct = struct / np.linalg.norm(struct)
    return float(np.linalg.norm(struct - (np.eye(len(A)) - 1 / len(A)) / math.sqrt(len(A) - 1)))


@pytest.mark.parametrize("at_once", [collapse.MANY_ENTRIES, 10], ids=["complete", "from the cosine"])
def test_nc3_against_the_simplex_is_the_self_duality_error(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collapse, "MANY_ENTRIES", at_once)
    M, weights = rows(6, 9), rows(6, 9, seed=1)
    M = M - M.mean(dim=0)
    error = collapse.simplex_duality(weights, M)
    assert error is not None
    assert error.item() == pytest.approx(peer_structure_error(M.numpy(), weights.numpy()))
    etf = simplex_etf(6, 9)
    at_collapse = collapse.simplex_duality(3 * etf, 1e-180 * etf)
    assert at_collapse is not None
    assert at_collapse.item() == pytest.approx(0, abs=1e-7)
    apart = torch.nn.functional.pad(M, (9, 0))
    assert collapse.simplex_duality(torch.nn.functional.pad(weights, (0, 9)), apart) is None


def test_variance_of_log_norms_is_unbiased() -> None:
    M = rows(5, 7)
    M = M - M.mean(dim=0)
    variance = collapse.lognorm_variance(M)
    assert variance is not None
    assert variance.item() == pytest.approx(M.norm(dim=-1).log().var().item(), rel=1e-12)
    M[2] = 0
    assert collapse.lognorm_variance(M) is None


def test_ratio_and_power_of_distances_equal_sums_over_samples_and_pairs() -> None:
    generator = np.random.default_rng(3)
    labels = np.repeat(np.arange(4), [3, 9, 20, 28])
    features = generator.normal(size=(4, 6))[labels] + 0.4 * generator.normal(size=(60, 6))
    means = np.stack([features[labels == c].mean(axis=0) for c in range(4)])
    within = np.cov((features - means[labels]).T, bias=True)
    between = np.cov(means.T, bias=True)
    record = cp.analyze_features(features, labels, only=["nc1", "nc2"])
    assert record["nc1.quotient"] == pytest.approx(np.trace(within) / np.trace(between), rel=1e-12)
    lengths = np.linalg.norm(means - means.mean(axis=0), axis=1)
    assert record["nc2.lognorm_variance"] == pytest.approx(np.log(lengths).var(ddof=1), rel=1e-12)
    variances = [((features[labels == c] - means[c]) ** 2).sum(axis=1).mean() for c in range(4)]
    for dist_exp in (1, 2, 0.5):
        terms = [
            (variances[a] + variances[b]) / 2 / ((means[a] - means[b]) ** 2).sum() ** dist_exp
            for a in range(4)
            for b in range(a)
        ]
        assert cp.cdnv(features, labels, dist_exp=dist_exp) == pytest.approx(np.mean(terms), rel=1e-11)
    assert cp.cdnv(features, labels) == pytest.approx(record["nc1.cdnv"], rel=1e-12)
    scaled = cp.cdnv(features * 2.0**300, labels, dist_exp=1.5)
    assert scaled == pytest.approx(cp.cdnv(features, labels, dist_exp=1.5) / 2.0**300, rel=1e-11)
    for wrong in (np.ones((60, 6)), features):
        with pytest.raises(DataError, match=r"nc1.cdnv: (class means coincide|only one class has samples)"):
            cp.cdnv(wrong, labels if wrong is not features else 0 * labels)
