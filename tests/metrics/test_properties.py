"""Tests of properties that hold for all rows: invariance to rotation, permutation and scale, symmetry, and bounds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ckpt_probe.metrics import effective_rank, erank_difference, hdr, matrix_entropy, mir, mutual_information, nc5
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
from ckpt_probe.metrics.decisions import nearest_means
from ckpt_probe.metrics.similarity import cka
from tests.metrics.test_pairs import uniformity

NUMBERS = st.floats(-4, 4, allow_nan=False, width=32).map(lambda value: value if abs(value) > 1e-3 else 0.0)
SEEDS = st.integers(0, 2**16)
CAREFULLY = settings(max_examples=25, deadline=None)


@st.composite
def matrices(draw: st.DrawFn, rows: tuple[int, int] = (2, 9), columns: tuple[int, int] = (1, 7)) -> np.ndarray:
    shape = draw(st.integers(*rows)), draw(st.integers(*columns))
    matrix = draw(arrays.arrays(np.float64, shape, elements=NUMBERS))
    # Zero rows have no direction, and tiny rows would have one by rounding only.
    assume((np.linalg.norm(matrix, axis=1) > 1e-2).all())
    return matrix


@st.composite
def matrices_of_equal_length(draw: st.DrawFn, fewest: int = 2) -> tuple[np.ndarray, np.ndarray]:
    X = draw(matrices(rows=(fewest, 9)))
    Y = draw(matrices(rows=(len(X), len(X))))
    return X, Y


def rotation(width: int, seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))
    return q


def lengths(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.01, 100, size=(rows, 1))


@CAREFULLY
@given(X=matrices(), seed=SEEDS)
def test_entropy_is_bounded_and_depends_on_directions_only(X: np.ndarray, seed: int) -> None:
    entropy, order = matrix_entropy(X), np.random.default_rng(seed).permutation(len(X))
    assert -1e-12 <= entropy <= math.log(len(X)) + 1e-12
    assert entropy <= math.log(X.shape[1]) + 1e-9
    assert effective_rank(X) == pytest.approx(math.exp(entropy))
    for changed in (X @ rotation(X.shape[1], seed), X[order], X * lengths(len(X), seed), -X):
        assert matrix_entropy(changed) == pytest.approx(entropy, rel=1e-8, abs=1e-9)
    assert matrix_entropy(np.concatenate([X, X])) == pytest.approx(entropy, rel=1e-8, abs=1e-9)
    assert matrix_entropy(X, alpha=2) <= entropy + 1e-9


@CAREFULLY
@given(pair=matrices_of_equal_length(), seed=SEEDS)
def test_information_is_symmetric_bounded_and_depends_on_directions_only(pair, seed: int) -> None:
    X, Y = pair
    information, entropies = mutual_information(X, Y), (matrix_entropy(X), matrix_entropy(Y))
    # The joint entropy is at least each entropy and at most their sum.
    assert -1e-9 <= information <= min(entropies) + 1e-9
    assert mutual_information(Y, X) == pytest.approx(information, rel=1e-8, abs=1e-9)
    order = np.random.default_rng(seed).permutation(len(X))
    turned = X @ rotation(X.shape[1], seed) * lengths(len(X), seed)
    for changed in ((turned, Y), (X[order], Y[order])):
        assert mutual_information(*changed) == pytest.approx(information, rel=1e-8, abs=1e-9)
    if max(entropies) > 1e-3:
        assert 0 <= hdr(X, Y) <= 1 + 1e-12
        assert hdr(X, Y) == pytest.approx(hdr(Y, X), rel=1e-9, abs=1e-9)
        assert hdr(turned, Y) == pytest.approx(hdr(X, Y), rel=1e-7, abs=1e-8)
    if min(entropies) > 1e-3:
        assert hdr(X, X) == pytest.approx(0, abs=1e-9)
        assert -1e-6 <= mir(X, Y) <= 1 + 1e-6
        assert mir(X, Y) == pytest.approx(mir(Y, X), rel=1e-6, abs=1e-7)
        assert mir(turned, Y) == pytest.approx(mir(X, Y), rel=1e-6, abs=1e-7)


@CAREFULLY
@given(pair=matrices_of_equal_length(fewest=5), seed=SEEDS, scale=st.floats(0.01, 100))
def test_cka_is_symmetric_and_invariant_to_rotation_scale_and_offset(pair, seed: int, scale: float) -> None:
    X, Y = pair
    generator = np.random.default_rng(seed)
    X, Y = (rows + generator.normal(size=rows.shape) for rows in (X, Y))
    order = generator.permutation(len(X))
    value = cka(X, Y)
    turned = scale * X @ rotation(X.shape[1], seed) + generator.normal(size=X.shape[1])
    assert cka(Y, X) == pytest.approx(value, rel=1e-9)
    assert cka(X, X) == pytest.approx(1)
    for changed in ((turned, Y), (X[order], Y[order])):
        assert cka(*changed) == pytest.approx(value, rel=1e-6, abs=1e-8)


@CAREFULLY
@given(X=matrices(rows=(3, 9), columns=(2, 7)), Y=matrices(rows=(3, 9), columns=(2, 7)), seed=SEEDS)
def test_the_difference_of_effective_ranks_is_antisymmetric(X: np.ndarray, Y: np.ndarray, seed: int) -> None:
    generator = np.random.default_rng(seed)
    X, Y = (rows + generator.normal(size=rows.shape) for rows in (X, Y))
    difference = erank_difference(X, Y)
    assert difference == pytest.approx(-erank_difference(Y, X), rel=1e-8, abs=1e-8)
    assert abs(difference) <= max(*X.shape, *Y.shape) - 1
    moved = 3 * X @ rotation(X.shape[1], seed) + generator.normal(size=X.shape[1])
    assert erank_difference(moved, Y) == pytest.approx(difference, rel=1e-7, abs=1e-8)


@st.composite
def classes(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return class means (C, D), a within-class covariance (D, D) and classifier rows (C, D) in general position."""
    generator = np.random.default_rng(draw(SEEDS))
    count, features = draw(st.integers(2, 9)), draw(st.integers(2, 7))
    spread = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    half = generator.normal(size=(features, features)) * spread
    means, weights = generator.normal(size=(2, count, features)) + draw(st.floats(-50, 50))
    return torch.tensor(means), torch.tensor(half @ half.T), torch.tensor(weights)


def collapse_of(means: torch.Tensor, within: torch.Tensor, weights: torch.Tensor) -> dict[str, float | None]:
    M = means - means.mean(dim=0)
    variances = torch.full((len(means),), float(within.trace()), dtype=torch.float64)
    axes = between_axes(M, 1e-13 * float(means.abs().max()))
    nc1 = None if axes is None else trace_along(axes, within, M)
    even = uniformity(M)
    return {
        "nc1": nc1,
        "separation": separation(nc1, means),
        "cdnv": cdnv(variances, means),
        "equinorm": equinorm(M),
        "equiangular": equiangular(M),
        "etf": etf_distance(M),
        "uniformity": even[0],
        "spread": even[1],
        "duality": duality(weights, M),
        "duality_uniformity": duality_uniformity(weights, M),
    }


@CAREFULLY
@given(sample=classes(), seed=SEEDS, scale=st.floats(0.01, 100))
def test_collapse_metrics_are_invariant_to_rotation_scale_offset_and_order(sample, seed: int, scale: float) -> None:
    means, within, weights = sample
    expected, count = collapse_of(means, within, weights), len(means)
    turn = torch.tensor(rotation(means.shape[1], seed))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    transformed = {
        "rotation": (means @ turn, turn.T @ within @ turn, weights @ turn),
        "scale": (scale * means, scale**2 * within, 3 * scale * weights),
        "offset": (means + 10, within, weights),
        "order": (means[order], within, weights[order]),
    }
    for change, arguments in transformed.items():
        for name, value in collapse_of(*arguments).items():
            assert value == pytest.approx(expected[name], rel=1e-6, abs=1e-7), (change, name)
    for name in ("nc1", "cdnv", "equinorm", "equiangular", "etf", "spread", "duality", "duality_uniformity"):
        assert (expected[name] or 0) >= 0
    assert (expected["etf"] or 0) <= math.sqrt(2) + 1e-12
    assert (expected["duality"] or 0) <= 2 + 1e-12
    # The distance of two unit vectors is at most 2.
    assert (expected["uniformity"] or 0) >= -math.log(2) - 1e-12


@CAREFULLY
@given(sample=classes(), seed=SEEDS)
def test_nc5_is_an_invariant_mean_of_cosines_and_zero_for_an_orthogonal_outside_mean(sample, seed: int) -> None:
    means, _, weights = sample
    outside = weights[0]
    value = nc5(means, outside, centred=True)
    turn = torch.tensor(rotation(means.shape[1], seed))
    assert 0 <= value <= 1 + 1e-12
    assert nc5(means @ turn, outside @ turn, centred=True) == pytest.approx(value, rel=1e-6, abs=1e-8)
    assert nc5(3 * means + 1, 3 * outside + 1, centred=True) == pytest.approx(value, rel=1e-6, abs=1e-8)
    assert nc5(3 * means @ turn, outside @ turn) == pytest.approx(nc5(means, outside), rel=1e-6, abs=1e-8)
    wider = torch.nn.functional.pad(means, (0, 1))
    away = torch.nn.functional.pad(means.mean(dim=0), (0, 1), value=5.0)
    assert nc5(wider, away, centred=True) == pytest.approx(0, abs=1e-10)


@CAREFULLY
@given(sample=classes(), seed=SEEDS)
def test_every_mean_is_nearest_to_itself(sample, seed: int) -> None:
    means, _, _ = sample
    order = torch.randperm(len(means), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(nearest_means(means[order], means), order)
