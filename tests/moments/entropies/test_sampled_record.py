"""Tests of records with a sampled joint entropy: error bars for every order, and ranks that need no sampling."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ckpt_probe.metrics import stochastic
from ckpt_probe.metrics.stochastic import Sampling
from ckpt_probe.moments import Moments
from ckpt_probe.moments.entropies import levels as entropies

CLASSES = 12


def data(noise: float = 1.0, samples: int = 300, features: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(CLASSES, features, generator=generator, dtype=torch.float64)
    labels = torch.arange(samples) % CLASSES
    return weights[labels] + noise * torch.randn(samples, features, generator=generator).double(), labels, weights


def simplex(noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return features around the vertices of a simplex, which are also the classifier's rows."""
    _, labels, _ = data()
    weights = torch.eye(CLASSES, dtype=torch.float64) - 1 / CLASSES
    generator = torch.Generator().manual_seed(1)
    return weights[labels] + noise * torch.randn(300, CLASSES, generator=generator).double(), labels, weights


def joint_entropy(features: Tensor, labels: Tensor, weights: Tensor, order: float = 1.0) -> float:
    unit = torch.nn.functional.normalize(features.double())
    heads = torch.nn.functional.normalize(weights.double())[labels]
    values = torch.linalg.eigvalsh((unit @ unit.T) * (heads @ heads.T) / len(unit))
    values = values[values > 1e-13]
    return float(-(values * values.log()).sum() if order == 1 else values.pow(order).sum().log() / (1 - order))


def sampled(features: Tensor, labels: Tensor, weights: Tensor, orders: tuple[float, ...] = (), **sampling) -> dict:
    moments = Moments(CLASSES)
    moments.update(features, labels)
    blocks = [(features[:99], labels[:99]), (features[99:], labels[99:])]
    return moments.compute(
        weights,
        rows=lambda: blocks,
        orders=orders,
        exact_limit=40,
        sampling=Sampling(**{"tolerance": 1e-2, **sampling}),
    )


def test_a_sampled_record_has_error_bars_and_the_numbers_of_an_exact_one() -> None:
    features, labels, weights = data()
    exact = Moments(CLASSES)
    exact.update(features, labels)
    expected = exact.compute(weights)
    record = sampled(features, labels, weights, tolerance=2e-3, seed=5)
    assert record["route"] == "stochastic"
    assert "largest side for a dense eigensolver" in str(record["route_reason"])
    assert record["missing"] is None
    assert 0 < record["sample.mir_computing_error"] <= 2e-3 * record["sample.mir"]
    assert abs(record["sample.mir"] - expected["sample.mir"]) <= 4 * record["sample.mir_computing_error"]
    assert record["sample.probes"] >= 16
    assert record["sample.seed"] == 5
    for name in ("sample.entropy_features", "within.entropy_mean", "class.mir", "nc1.pinv"):
        assert record[name] == pytest.approx(expected[name], rel=1e-10)


def test_a_record_states_that_its_tolerance_was_not_reached() -> None:
    record = sampled(*data(), tolerance=1e-6, probes=24)
    assert record["sample.probes"] == 24
    assert "sampling stopped before the tolerance was reached" in record["route_reason"]
    assert record["sample.mir_computing_error"] > 1e-6 * record["sample.mir"]


def test_rows_without_direction_or_classifier_row_are_not_sampled() -> None:
    features, labels, weights = data()
    features[5], weights[3] = 0, 0
    sampled_rows = (labels != 3) & (features.abs().amax(dim=1) > 0)
    record = sampled(features, labels, weights)
    assert record["samples_left_out"] == 300 - int(sampled_rows.sum())
    exact = joint_entropy(features[sampled_rows], labels[sampled_rows], weights)
    assert abs(record["sample.entropy_joint"] - exact) <= 4 * record["sample.entropy_joint_computing_error"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_error_bars_contain_the_exact_value_at_and_near_collapse(noise: float, dtype: torch.dtype) -> None:
    features, labels, weights = simplex(noise)
    features = features.to(dtype)
    exact = joint_entropy(features, labels, weights)
    records = [sampled(features, labels, weights, seed=seed, tolerance=5e-3) for seed in range(30)]
    errors = np.array([record["sample.entropy_joint"] - exact for record in records])
    bars = np.array([record["sample.entropy_joint_computing_error"] for record in records])
    assert (abs(errors) <= 2 * bars).mean() >= 0.93
    assert (abs(errors) <= 4 * bars).all()


def test_every_order_has_its_error_bar() -> None:
    features, labels, weights = data()
    record = sampled(features, labels, weights, orders=(0.1, 0.5, 2.0), tolerance=5e-3)
    for order in (0.1, 0.5, 2.0):
        prefix = f"renyi_{order:g}.sample"
        error = abs(record[f"{prefix}.entropy_joint"] - joint_entropy(features, labels, weights, order))
        assert error <= 3 * record[f"{prefix}.entropy_joint_computing_error"]
        smaller = min(record[f"{prefix}.entropy_features"], record[f"{prefix}.entropy_weights"])
        assert record[f"{prefix}.mir_computing_error"] == pytest.approx(
            record[f"{prefix}.entropy_joint_computing_error"] / smaller
        )


def test_an_order_that_is_not_resolved_is_missing_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stochastic, "STEPS", (4,))
    record = sampled(*data(noise=0.3), orders=(0.1,), tolerance=0.2)
    assert record["renyi_0.1.sample.mir"] is None
    assert record["renyi_0.1.sample.mir_computing_error"] is None
    assert record["renyi_0.1.sample.entropy_joint"] is None
    assert record["renyi_0.1.sample.entropy_features"] > 0
    assert record["sample.mir"] > 0
    assert "renyi_0.1.sample.mir_computing_error" in record["missing"]
    assert "sampling does not resolve the eigenvalues that decide this order" in record["missing"]


def test_rows_of_one_direction_are_not_sampled() -> None:
    features, labels, weights = data()
    signs = torch.where(torch.arange(CLASSES) % 3 == 0, -2.0, 1.0).double()
    for rows, heads in ((features, signs[:, None] * weights[:1]), (signs[labels][:, None] * features[:1], weights)):
        record = sampled(rows, labels, heads)
        assert "rank one" in record["route_reason"]
        assert record["sample.mir_computing_error"] is None
        assert record["sample.entropy_joint"] == pytest.approx(joint_entropy(rows, labels, heads), rel=1e-10)
        assert record["sample.mutual_information"] == pytest.approx(0, abs=1e-10)


def test_standard_errors_of_sampled_entropies_match_exact_ones() -> None:
    features, labels, weights = data(noise=0.5, samples=600)
    moments = Moments(CLASSES, halves=True, subset=2048)
    moments.update(features, labels)
    exact = moments.compute(weights, errors=True, orders=(2,))
    record = moments.compute(weights, errors=True, orders=(2,), exact_limit=64, sampling=Sampling(tolerance=1e-3))
    assert (exact["route"], record["route"]) == ("dense-moments", "stochastic")
    for name in ("sample.entropy_joint", "sample.mir", "renyi_2.sample.mir"):
        assert record[f"{name}_stderr"] == pytest.approx(exact[f"{name}_stderr"], rel=0.15)
        assert record[f"{name}_bias"] == pytest.approx(exact[f"{name}_bias"], rel=0.15)
    assert record["sample.mir_stderr"] > record["sample.mir_computing_error"] > 0
    # The subset has 600 rows, for 256 of which a recurrence is computed.
    assert int(record.influences["sample.mir"].isfinite().sum()) == 256
    assert record.influences["sample.entropy_features"].isfinite().all()


@pytest.mark.parametrize("samples", [80, 600], ids=["Gram matrix", "moments"])
def test_errors_of_many_eigenvalues_match_those_of_all_eigenvectors(
    samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels, weights = data(noise=0.5, samples=samples)
    moments = Moments(CLASSES, halves=True, subset=2048)
    moments.update(features, labels)
    exact = moments.compute(weights, errors=True, orders=(2,))
    monkeypatch.setattr(entropies, "MANY_EIGENVECTORS", 16)
    record = moments.compute(weights, errors=True, orders=(2,))
    for name in ("sample.entropy_joint", "sample.mir", "renyi_2.sample.mir"):
        assert record[name] == pytest.approx(exact[name], rel=1e-9)
        known = record.influences[name].isfinite()
        assert int(known.sum()) == min(samples, 512)
        difference = (record.influences[name] - exact.influences[name])[known]
        assert difference.std() < 0.02 * exact.influences[name].std()
