"""Tests of sums over all pairs of classes: tiles of every size give the same values and count each pair once."""

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from ckpt_probe.metrics import pairs
from ckpt_probe.metrics.collapse import cdnv, equiangular, simplex_etf, uniformity_reference
from ckpt_probe.metrics.rows import unit_or_zero


def rows(classes: int, features: int, seed: int = 0) -> Tensor:
    return torch.randn(classes, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniformity(directions: Tensor) -> tuple[float | Tensor | None, float | Tensor | None]:
    """Return mean and standard deviation of log(1/distance) of the unit rows."""
    unit = unit_or_zero(directions)
    quantity = pairs.Uniformity(unit, torch.zeros(len(unit), dtype=unit.dtype))
    pairs.visit(unit, [quantity])
    return quantity.mean, quantity.spread


def values_by_loops(means: Tensor, variances: Tensor) -> dict[str, float]:
    M = means - means.mean(dim=0)
    unit = torch.nn.functional.normalize(M)
    couples = list(combinations(range(len(means)), 2))
    distances = [float((means[a] - means[b]).square().sum()) for a, b in couples]
    logs = [-math.log(float(torch.linalg.vector_norm(unit[a] - unit[b]))) for a, b in couples]
    mean = sum(logs) / len(logs)
    return {
        "cdnv": sum(float(variances[a] + variances[b]) / (2 * d) for (a, b), d in zip(couples, distances, strict=True))
        / len(couples),
        "equiangular": sum(abs(float(unit[a] @ unit[b]) + 1 / (len(means) - 1)) for a, b in couples) / len(couples),
        "uniformity": mean,
        "spread": math.sqrt(sum((value - mean) ** 2 for value in logs) / len(logs)),
    }


@pytest.mark.parametrize("tile", [7, 20, 64, 512])
@pytest.mark.parametrize("few", [0, 2**26])
def test_tiles_of_any_size_give_the_values_of_a_loop_over_pairs(
    tile: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "TILE", tile)
    monkeypatch.setattr(pairs, "FEW_PAIRS", few)
    means, variances = rows(41, 9) + 3, rows(41, 1, seed=1).abs().squeeze(1)
    M, expected = means - means.mean(dim=0), values_by_loops(means, variances)
    assert cdnv(variances, means) == pytest.approx(expected["cdnv"], rel=1e-12)
    assert equiangular(M) == pytest.approx(expected["equiangular"], rel=1e-12)
    assert uniformity(M) == pytest.approx((expected["uniformity"], expected["spread"]), rel=1e-10)


def test_each_pair_is_visited_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "TILE", 8)
    visits = torch.zeros(30, 30)

    class Visits:
        def add(self, tile: pairs.Tile) -> None:
            ones = torch.ones_like(tile.cosines)
            assert tile.sum(ones) == len(tile.pairs(ones).flatten()) * (2 if tile.off_diagonal is None else 1)
            marked = ones.bool() if tile.off_diagonal is None else tile.off_diagonal
            visits[tile.rows, tile.columns] += marked

    pairs.visit(rows(30, 4), [Visits()])
    assert torch.equal(visits + visits.T, (1 - torch.eye(30)) * torch.where(_same_tile(30, 8), 2.0, 1.0))


def _same_tile(classes: int, tile: int) -> Tensor:
    number = torch.arange(classes) // tile
    return number[:, None] == number


def test_close_means_give_accurate_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "FEW_PAIRS", 0)
    monkeypatch.setattr(pairs, "TILE", 16)
    means = rows(40, 6) * 100
    means[20:] = means[:20] + 1e-5 * rows(20, 6, seed=2)
    variances = torch.ones(40, dtype=torch.float64)
    expected = values_by_loops(means, variances)
    assert cdnv(variances, means) == pytest.approx(expected["cdnv"], rel=1e-9)
    M = means - means.mean(dim=0)
    assert uniformity(M) == pytest.approx((expected["uniformity"], expected["spread"]), rel=1e-7)


def test_coinciding_directions_and_zero_rows_have_no_uniformity() -> None:
    M = rows(6, 3)
    M[2] = 2 * M[4]
    assert uniformity(M) == (None, None)
    assert equiangular(M) is not None
    M[2] = 0
    assert uniformity(M) == (None, None)
    assert equiangular(M) is None
    assert cdnv(torch.ones(6, dtype=torch.float64), M) is not None


@pytest.mark.parametrize("classes", [2, 3, 10, 700])
def test_a_simplex_reaches_the_reference_of_uniformity(classes: int) -> None:
    etf = simplex_etf(classes, classes + 2)
    mean, spread = uniformity(3 * etf)
    assert mean == pytest.approx(uniformity_reference(classes, classes + 2), rel=1e-12)
    assert spread == pytest.approx(0, abs=1e-12)
    assert equiangular(etf) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("features", [2, 3, 16, 64])
def test_random_directions_approach_the_value_of_the_uniform_distribution(features: int) -> None:
    unit = torch.nn.functional.normalize(rows(3000, features))
    mean, spread = uniformity(unit)
    assert mean == pytest.approx(uniformity_reference(3000, features), abs=4e-3)
    assert spread is not None
    assert spread > 0
    assert uniformity_reference(3, 1) is None
    # On the circle the mean logarithm of the distance is 0.
    assert uniformity_reference(9, 2) == pytest.approx(0, abs=1e-15)
