"""Tests of properties of every number of a record: invariance to rotation, order and scale, and bounds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckpt_probe as cp

CAREFULLY = settings(max_examples=12, deadline=None)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.random.Generator]:
    """Return features (N, D), labels (N,) that include every class, and classifier rows (C, D), in general position."""
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    classes, dimension, samples_per_class = draw(st.integers(3, 6)), draw(st.integers(3, 7)), draw(st.integers(3, 8))
    labels = np.concatenate([np.arange(classes), generator.integers(classes, size=classes * samples_per_class)])
    weights = generator.normal(size=(classes, dimension))
    features = draw(st.floats(0, 3)) * weights[labels] + generator.normal(size=(len(labels), dimension))
    return features, labels, weights, generator


def numbers(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    record = cp.analyze_features(features, labels, weights)
    return {name: value for name, value in record.items() if isinstance(value, float) and not name.endswith("_stderr")}


@CAREFULLY
@given(problem=problems())
def test_rotation_and_the_order_of_samples_and_classes_do_not_change_the_record(problem) -> None:
    features, labels, weights, generator = problem
    right = numbers(features, labels, weights)
    assert len(right) > 20
    turn, _ = np.linalg.qr(generator.normal(size=(features.shape[1],) * 2))
    order, names = generator.permutation(len(labels)), generator.permutation(len(weights))
    renamed = np.empty_like(weights)
    renamed[names] = weights
    changes = {
        "rotation": (features @ turn, labels, weights @ turn),
        "order": (features[order], labels[order], weights),
        "names": (features, names[labels], renamed),
    }
    for change, changed in changes.items():
        values = numbers(*changed)
        assert values.keys() == right.keys()
        for name, value in right.items():
            assert values[name] == pytest.approx(value, rel=1e-6, abs=1e-8), (change, name)


@CAREFULLY
@given(problem=problems())
def test_the_lengths_of_rows_do_not_change_entropies_of_directions(problem) -> None:
    features, labels, weights, generator = problem
    right = numbers(features, labels, weights)
    rows, heads = (generator.uniform(0.01, 100, size=(len(part), 1)) for part in (features, weights))
    of_samples = ("sample.entropy", "sample.mutual_information", "sample.mir", "sample.hdr", "sample.effective_rank")
    longer = numbers(rows * features, labels, heads * weights)
    for name in (name for name in right if name.startswith((*of_samples, "within.entropy"))):
        assert longer[name] == pytest.approx(right[name], rel=1e-6, abs=1e-8), name
    scaled = numbers(3 * features, labels, 5 * weights)
    for name in (
        name for name in right if name not in {"loss", "sample.loss"} and name.startswith(("class.", "nc", "within."))
    ):
        if name != "nc4.disagreement":
            assert scaled[name] == pytest.approx(right[name], rel=1e-6, abs=1e-8), name


@CAREFULLY
@given(problem=problems())
def test_every_number_is_within_its_bounds(problem) -> None:
    features, labels, weights, _ = problem
    values = numbers(features, labels, weights)
    samples, classes = len(labels), len(weights)
    most = {"class": math.log(classes), "sample": math.log(samples), "within": math.log(samples)}
    for name, value in values.items():
        level, _, quantity = name.partition(".")
        if level in most and quantity.startswith("entropy"):
            assert -1e-9 <= value <= most[level] + 1e-9, name
        if quantity == "hdr" and level in most:
            assert 0 <= value <= 1, name
        if quantity == "mutual_information":
            assert -1e-9 <= value <= min(values[f"{level}.entropy_{part}"] for part in _parts(level)) + 1e-9, name
        if name == "nc4.disagreement" or name == "accuracy":
            assert 0 <= value <= 1
        if name.startswith("nc1"):
            assert value >= 0
    assert values["within.entropy_mean"] <= values["within.entropy_max"] + 1e-12


def _parts(level: str) -> tuple[str, str]:
    return ("means", "weights") if level == "class" else ("features", "weights")
