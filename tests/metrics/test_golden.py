"""Tests against golden values (40-digit arithmetic, inputs defined by a formula), for every way to compute them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ckpt_probe.metrics import hdr, mir, mutual_information
from ckpt_probe.metrics.entropy import joint_entropies
from ckpt_probe.metrics.stochastic import Sampling
from ckpt_probe.moments import Moments, unit_moments

CASES = json.loads((Path(__file__).parent / "golden.json").read_text())["cases"]
TOLERANCE = 1e-9


def inputs(case: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seed, N, D, C = (case[key] for key in ("seed", "N", "D", "C"))
    labels = np.array([i % C if seed % 2 == 0 else (i * i + seed) % C for i in range(N)])
    weights = np.array([[math.sin(seed + 1.7 * c + 0.9 * j * (c + 1)) for j in range(D)] for c in range(C)])
    features = np.array(
        [
            [2 * weights[labels[i]][j] + math.cos(0.3 * seed + 1.1 * i + 0.7 * j * (i + 1)) for j in range(D)]
            for i in range(N)
        ]
    )
    return features, labels, weights


def expected(case: dict, level: str) -> dict[str, float]:
    return {name: float(value) for name, value in case[level].items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"seed{case['seed']}")
@pytest.mark.parametrize("level", ["class_level", "sample_level", "sample_level_centred"])
def test_functions_of_matrices_give_the_golden_values(case: dict, level: str) -> None:
    features, labels, weights = inputs(case)
    means = np.stack([features[labels == c].mean(axis=0) for c in range(case["C"])])
    pairs = {
        "class_level": (means - means.mean(axis=0), weights),
        "sample_level": (features, weights[labels]),
        "sample_level_centred": (features - features.mean(axis=0), weights[labels]),
    }
    X, Y = pairs[level]
    golden = expected(case, level)
    entropies = joint_entropies(X, Y)
    assert float(entropies.first) == pytest.approx(golden["entropy_first"], rel=TOLERANCE)
    assert float(entropies.second) == pytest.approx(golden["entropy_second"], rel=TOLERANCE)
    assert float(entropies.joint) == pytest.approx(golden["entropy_joint"], rel=TOLERANCE)
    assert mutual_information(X, Y) == pytest.approx(golden["mutual_information"], rel=TOLERANCE)
    assert mir(X, Y) == pytest.approx(golden["mir"], rel=TOLERANCE)
    assert hdr(X, Y) == pytest.approx(golden["hdr"], rel=TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"seed{case['seed']}")
@pytest.mark.parametrize("route", ["dense-gram", "dense-moments"])
def test_moments_give_the_golden_values_by_every_algorithm(
    case: dict, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels, weights = inputs(case)
    if route == "dense-gram" and case["N"] > case["D"] * case["C"]:
        pytest.skip("N is the larger side: the Gram route is that of the plain functions above")
    if route == "dense-moments":
        monkeypatch.setattr(unit_moments, "dense_limit", lambda memory: 0)
    for level, rows in (("sample_level", features), ("sample_level_centred", features - features.mean(axis=0))):
        moments = Moments(case["C"])
        moments.update(rows[:7], labels[:7])
        moments.update(rows[7:], labels[7:])
        record = moments.compute(weights)
        golden = expected(case, level)
        assert record["route"] == route
        assert record["sample.entropy_features"] == pytest.approx(golden["entropy_first"], rel=TOLERANCE)
        assert record["sample.entropy_weights"] == pytest.approx(golden["entropy_second"], rel=TOLERANCE)
        assert record["sample.entropy_joint"] == pytest.approx(golden["entropy_joint"], rel=TOLERANCE)
        assert record["sample.mutual_information"] == pytest.approx(golden["mutual_information"], rel=TOLERANCE)
        assert record["sample.mir"] == pytest.approx(golden["mir"], rel=TOLERANCE)
        assert record["sample.hdr"] == pytest.approx(golden["hdr"], rel=TOLERANCE)
        golden = expected(case, "class_level")
        assert record["class.entropy_means"] == pytest.approx(golden["entropy_first"], rel=TOLERANCE)
        assert record["class.entropy_weights"] == pytest.approx(golden["entropy_second"], rel=TOLERANCE)
        assert record["class.mir"] == pytest.approx(golden["mir"], rel=TOLERANCE)
        assert record["class.hdr"] == pytest.approx(golden["hdr"], rel=TOLERANCE)
        assert record["nc1.pinv"] == pytest.approx(float(case["nc1_pinv"]), rel=TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"seed{case['seed']}")
def test_sampled_entropies_are_within_their_error_bars(case: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_moments, "DENSE_LIMIT", case["C"])
    features, labels, weights = inputs(case)
    golden = expected(case, "sample_level")
    outside = 0
    for seed in range(10):
        moments = Moments(case["C"])
        moments.update(features, labels)
        sampling = Sampling(tolerance=2e-2, seed=seed)
        record = moments.compute(weights, rows=lambda: [(features, labels)], sampling=sampling)
        assert record["route"] == "stochastic"
        assert record["sample.entropy_features"] == pytest.approx(golden["entropy_first"], rel=TOLERANCE)
        outside += abs(record["sample.mir"] - golden["mir"]) > 2 * record["sample.mir_computing_error"]
        assert abs(record["sample.mir"] - golden["mir"]) <= 5 * record["sample.mir_computing_error"]
    assert outside <= 3
