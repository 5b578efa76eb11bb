"""Tests of the class with the highest linear score: that of float64 arithmetic for all sizes, magnitudes and ties."""

import pytest
import torch
from torch import Tensor

from ckpt_probe.metrics import decisions
from ckpt_probe.metrics.decisions import LinearDecision, NearestMean


def data(rows: int, features: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64).to(dtype)
    weights = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    return x, weights, torch.randn(classes, generator=generator, dtype=torch.float64)


def expected(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    scores = x.double() @ weights.T
    return (scores if bias is None else scores + bias).argmax(dim=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 128, 129, 1000, 2500])
def test_the_decision_is_that_of_float64(classes: int, dtype: torch.dtype) -> None:
    x, weights, bias = data(1500, 8, classes, dtype)
    assert torch.equal(LinearDecision(weights, bias).of(x), expected(x, weights, bias))
    assert torch.equal(LinearDecision(weights).of(x), expected(x, weights, None))
    assert len(LinearDecision(weights).of(x[:0])) == 0


def test_near_ties_are_decided_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights, _ = data(400, 32, 300)
    # Each class has a neighbour that differs in the tenth digit, which float32 cannot represent.
    close = torch.cat([weights, weights * (1 + 1e-10)])
    assert torch.equal(LinearDecision(close).of(x), expected(x, close, None))
    counted = []
    exactly = LinearDecision._exactly
    monkeypatch.setattr(LinearDecision, "_exactly", lambda self, rows: counted.append(len(rows)) or exactly(self, rows))
    LinearDecision(close).of(x)
    assert sum(counted) == len(x)
    # If scores lie apart, almost no row is decided in float64.
    counted.clear()
    LinearDecision(weights).of(x)
    assert sum(counted) < len(x) // 4


def test_one_of_two_equal_classes_is_chosen() -> None:
    x, weights, bias = data(300, 5, 200)
    twice, doubled = torch.cat([weights, weights]), torch.cat([bias, bias])
    assert torch.equal(LinearDecision(twice, doubled).of(x) % 200, expected(x, weights, bias))


@pytest.mark.parametrize("scale", [1e-160, 1e-30, 1e-10, 1e10, 1e30, 1e150])
def test_the_decision_does_not_depend_on_the_magnitude_of_rows_weights_and_biases(scale: float) -> None:
    x, weights, bias = data(200, 6, 300, torch.float64)
    for rows, heads, offsets in ((x * scale, weights, bias), (x, weights * scale, bias), (x, weights, bias * scale)):
        assert torch.equal(LinearDecision(heads, offsets).of(rows), expected(rows, heads, offsets))


def test_zero_rows_take_the_class_of_the_highest_bias() -> None:
    x, weights, bias = data(50, 6, 300)
    x[::7] = 0
    assert torch.equal(LinearDecision(weights, bias).of(x), expected(x, weights, bias))
    assert int(LinearDecision(weights, bias).of(x)[0]) == int(bias.argmax())
    assert int(LinearDecision(weights).of(x)[0]) == 0


def test_computing_in_parts_of_classes_and_rows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights, bias = data(300, 7, 1000)
    complete = LinearDecision(weights, bias).of(x)
    monkeypatch.setattr(decisions, "ROWS", 77)
    monkeypatch.setattr(decisions, "COLUMNS", 192)
    assert torch.equal(LinearDecision(weights, bias).of(x), complete)


@pytest.mark.parametrize("classes", [5, 400])
def test_nearest_means_far_from_the_origin_are_exact(classes: int) -> None:
    x, means, _ = data(500, 6, classes, torch.float64)
    x, means = x + 1e4, means + 1e4
    means[classes // 2] = torch.nan
    distances = torch.cdist(x, means, compute_mode="donot_use_mm_for_euclid_dist").nan_to_num(torch.inf)
    assert torch.equal(NearestMean(means).of(x), distances.argmin(dim=1))
