"""Tests of features near collapse, of any scale, offset and precision, against definitions in extended precision."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from mpmath import mp, mpf

from ckpt_probe import Moments, analyze_features
from ckpt_probe.errors import DataError

CLASSES, FEATURES, SAMPLES = 5, 12, 3000
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, CLASSES, SAMPLES)
MEANS = RNG.normal(size=(CLASSES, FEATURES))
ROWS = MEANS[LABELS] + RNG.normal(size=(SAMPLES, FEATURES))
OF_MEANS = ("nc1.pinv", "nc1.cdnv", "separation", "nc2.equinorm_means", "nc2.equiangular_means", "nc2.etf")


def expected(rows: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return numbers of collapse by their definitions, in numpy's longest floating-point type; scale changes none."""
    Z = rows.astype(np.longdouble)
    Z = Z / np.abs(Z).max()
    means = np.stack([Z[labels == label].mean(axis=0) for label in range(CLASSES)])
    M, away = means - means.mean(axis=0), Z - means[labels]
    variances = [(away[labels == label] ** 2).sum(axis=1).mean() for label in range(CLASSES)]
    pairs = [(a, b) for a in range(CLASSES) for b in range(CLASSES) if a != b]
    basis: list[np.ndarray] = []
    for row in (*M[:-1], *M[:-1]):
        remainder = row - sum(((row @ axis) * axis for axis in basis), np.zeros_like(row))
        if len(basis) < CLASSES - 1:
            remainder = remainder - sum(((remainder @ axis) * axis for axis in basis), np.zeros_like(row))
            basis.append(remainder / np.sqrt((remainder**2).sum()))
    between, within = M @ np.array(basis).T, away @ np.array(basis).T
    nc1 = np.trace(solved(between.T @ between / CLASSES, within.T @ within / len(Z))) / CLASSES
    lengths, gram = np.sqrt((M**2).sum(axis=1)), M @ M.T
    simplex = np.eye(CLASSES) - np.longdouble(1) / CLASSES
    values = {
        "nc1.pinv": nc1,
        "nc1.cdnv": np.mean(
            [(variances[a] + variances[b]) / (2 * ((means[a] - means[b]) ** 2).sum()) for a, b in pairs]
        ),
        "separation": np.log(CLASSES * nc1),
        "nc2.equinorm_means": lengths.std() / lengths.mean(),
        "nc2.equiangular_means": np.mean(
            [abs(gram[a, b] / lengths[a] / lengths[b] + 1 / (CLASSES - 1)) for a, b in pairs]
        ),
        "nc2.etf": np.sqrt(((gram / np.sqrt((gram**2).sum()) - simplex / np.sqrt((simplex**2).sum())) ** 2).sum()),
    }
    return {name: float(value) for name, value in values.items()}


def solved(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Return A⁻¹ B by elimination, since numpy's solver is limited to double precision."""
    table = np.concatenate([A, B], axis=1)
    for i in range(len(A)):
        pivot = i + np.abs(table[i:, i]).argmax()
        table[[i, pivot]] = table[[pivot, i]]
        table[i] /= table[i, i]
        for j in range(len(A)):
            if j != i:
                table[j] -= table[j, i] * table[i]
    return table[:, len(A) :]


def assert_close_to_expected(rows: np.ndarray, precision: str, relative: float) -> None:
    record = analyze_features(rows, LABELS, only=("nc1", "nc2"), precision=precision)
    for name, value in expected(rows, LABELS).items():
        assert record[name] == pytest.approx(value, rel=relative, abs=relative), name


@pytest.mark.parametrize(("precision", "relative"), [("float64", 1e-12), ("float32", 2e-6)])
@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e-25, 1.0, 1e25, 1e78, 1e160, 1e300])
def test_scale_does_not_change_a_number_of_collapse(scale: float, precision: str, relative: float) -> None:
    assert_close_to_expected(scale * ROWS, precision, relative)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("stored", ["float16", "float32"])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_stored_rows_of_lower_precision_have_the_expected_numbers(stored: str, scale: float, precision: str) -> None:
    assert_close_to_expected(
        (scale * ROWS).clip(-6e4, 6e4).astype(stored), precision, 2e-6 if precision == "float32" else 1e-12
    )


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize(("offset", "relative"), [(1e3, 2e-6), (1e6, 2e-6), (1e8, 1e-5)])
def test_an_offset_costs_only_the_digits_that_the_rows_lose(offset: float, relative: float, precision: str) -> None:
    assert_close_to_expected(ROWS + offset, precision, relative)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("longer", [1e3, 1e6, 1e9, 1e12])
def test_one_row_far_longer_than_all_others_does_not_cost_digits(longer: float, precision: str) -> None:
    rows = ROWS.copy()
    rows[7] *= longer
    assert_close_to_expected(rows, precision, 2e-6)


def test_nc1_of_moments_is_missing_if_a_long_row_hides_the_spread() -> None:
    rows = ROWS.copy()
    rows[7] *= 1e9
    moments = Moments(only=("nc1",))
    moments.update(rows, LABELS)
    record = moments.compute()
    assert record["nc1.pinv"] is None
    assert record["separation"] is None
    assert "below the rounding of Σ_W" in str(record["missing"])
    assert record["nc1.cdnv"] == pytest.approx(expected(rows, LABELS)["nc1.cdnv"], rel=1e-12)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("stored", ["float16", "float32", "float64"])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_metrics_of_equal_rows_are_missing_with_a_reason(stored: str, precision: str, offset: float) -> None:
    rows = np.tile(RNG.normal(size=8) + offset, (3000, 1)).astype(stored)
    labels = np.repeat(np.arange(3), [30, 970, 2000])[RNG.permutation(3000)]
    record = analyze_features(
        rows, labels, RNG.normal(size=(3, 8)), only=("nc", "sample", "within", "centred"), precision=precision
    )
    for name in (*OF_MEANS, "gnc2.uniformity", "nc3.duality", "nc4.disagreement", "nearest_mean_accuracy"):
        assert record[name] is None, name
        assert name in record["missing"]
    assert "class means coincide" in record["missing"]
    for name in ("sample.entropy_features", "sample.mutual_information", "within.entropy_mean", "within.entropy_max"):
        assert str(record[name]) == "0.0", name
    for name in ("sample.mir", "centred.mir", "centred.effective_rank"):
        assert record[name] is None, name


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("size", [7, 100, 3000])
def test_collapsed_features_have_no_separation_for_any_blocks(size: int, precision: str) -> None:
    rows, parts = MEANS[LABELS], [Moments(precision=precision) for _ in range(3)]
    for number, (start, stop) in enumerate(pairwise([*range(0, SAMPLES, size), SAMPLES])):
        parts[number % 3].update(rows[start:stop], LABELS[start:stop])
    for part in parts[1:]:
        parts[0].merge(part)
    record = parts[0].compute()
    assert (record["nc1.pinv"], record["nc1.cdnv"], record["separation"]) == (0, 0, None)
    assert (record["within.entropy_mean"], record["within.entropy_max"]) == (0, 0)
    with np.errstate(divide="ignore"):
        assert record["nc2.etf"] == pytest.approx(expected(rows, LABELS)["nc2.etf"], rel=1e-12)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_two_classes_of_the_same_samples_have_coinciding_means(precision: str) -> None:
    base = RNG.normal(size=(700, 8)).astype("float32")
    rows, labels = np.concatenate([base + 5, *[base] * 27]), np.repeat([0, 1, 2], [700, 14000, 4900])
    order = RNG.permutation(len(labels))
    record = analyze_features(rows[order], labels[order], only=("nc1", "nc2"), precision=precision)
    assert record["nc1.cdnv"] is None
    assert record["gnc2.uniformity"] is None
    assert record["nc1.pinv"] is not None


def test_a_class_mean_at_the_centre_has_no_direction() -> None:
    middle, step = RNG.normal(size=(2, 8))
    labels = np.repeat(np.arange(3), 50)
    rows = np.stack([middle - step, middle, middle + step])[labels]
    record = analyze_features(rows, labels, RNG.normal(size=(3, 8)), only=("sample",), centred=True)
    assert record["centred.effective_rank"] == pytest.approx(1, abs=1e-12)
    assert record["centred.mir"] is None
    assert "centred.mir: the entropy in its denominator is zero" in record["missing"]


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-3])
def test_single_precision_keeps_six_digits_of_entropies_of_close_rows(spread: float) -> None:
    labels, features = np.repeat(np.arange(3), 200), 4
    rows = RNG.normal(size=(3, features))[labels] + spread * RNG.normal(size=(600, features))
    record = analyze_features(rows, labels, only=("within",), precision="float32")
    entropies = [entropy(rows[labels == label]) for label in range(3)]
    assert record["within.entropy_mean"] == pytest.approx(np.mean(entropies), rel=1e-6)
    assert record["within.entropy_max"] == pytest.approx(np.max(entropies), rel=1e-6)


def entropy(rows: np.ndarray) -> float:
    mp.dps = 40
    unit = [[mpf(float(value)) for value in row] for row in rows]
    unit = [[value / mp.sqrt(sum(v * v for v in row)) for value in row] for row in unit]
    values = mp.eigsy(mp.matrix(unit).T * mp.matrix(unit) / len(unit), eigvals_only=True)
    return float(-sum(value * mp.log(value) for value in values))


@pytest.mark.parametrize("case", ["two nearly equal rows", "a common bias", "a common row"])
def test_single_precision_gives_the_predictions_of_double_precision(case: str) -> None:
    weights, bias = MEANS.copy(), RNG.normal(size=CLASSES)
    if case == "two nearly equal rows":
        weights[4] = weights[3] + 1e-9 * RNG.normal(size=FEATURES)
        bias[4] = bias[3]
    elif case == "a common bias":
        bias += 1e7
    else:
        weights += 1e6 * RNG.normal(size=FEATURES)
    rows = ROWS.astype("float32").astype("float64")
    logits = (rows @ weights.T + bias).astype(np.longdouble)
    shifted = logits - logits.max(axis=1, keepdims=True)
    loss = float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(SAMPLES), LABELS]).mean())
    record = analyze_features(rows, LABELS, weights, bias, only=("quality",), precision="float32")
    assert record["accuracy"] == (logits.argmax(axis=1) == LABELS).mean()
    assert record["loss"] == pytest.approx(loss, rel=1e-6)


def test_orders_that_agree_to_six_digits_have_different_names() -> None:
    orders = (0.1234561, 0.1234564, 1.0000001, 2)
    record = analyze_features(ROWS, LABELS, MEANS, only=("sample", "class", "within"), orders=orders)
    names = [name for name in record if name.endswith("sample.entropy_features")]
    assert len(names) == 5
    assert "renyi_2.class.mir" in record
    assert record["renyi_1.0000001.sample.entropy_features"] == pytest.approx(
        record["sample.entropy_features"], rel=1e-6
    )


@pytest.mark.parametrize("samples", [20, SAMPLES])
def test_moments_merged_with_themselves_count_each_row_twice(samples: int) -> None:
    twice, merged = Moments(CLASSES), Moments(CLASSES)
    for _ in range(2):
        twice.update(ROWS[:samples], LABELS[:samples])
    merged.update(ROWS[:samples], LABELS[:samples])
    merged.merge(merged)
    assert merged.samples == 2 * samples
    record, expected = merged.compute(MEANS), twice.compute(MEANS)
    for name in ("nc1.pinv", "nc1.cdnv", "sample.mir", "within.entropy_mean"):
        assert record[name] == pytest.approx(expected[name], rel=1e-9), name


@pytest.mark.parametrize("scale", [1e-300, 1e-25, 1e200])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_stored_moments_keep_their_scale(scale: float, precision: str) -> None:
    complete, first, second = (Moments(CLASSES, precision=precision) for _ in range(3))
    complete.update(scale * ROWS, LABELS)
    first.update(scale * ROWS[:1000], LABELS[:1000])
    second.load_state_dict(first.state_dict())
    second.update(scale * ROWS[1000:], LABELS[1000:])
    record, expected = second.compute(MEANS), complete.compute(MEANS)
    for name in ("nc1.pinv", "nc1.cdnv", "nc2.etf", "sample.mir"):
        assert record[name] == pytest.approx(expected[name], rel=2e-6), name
    assert torch.allclose(second.class_means, complete.class_means, rtol=1e-12, atol=0)
    assert ("unit" in first.state_dict()) == (scale != 1e-25)


def test_a_stored_unit_of_zero_is_an_error() -> None:
    moments = Moments(CLASSES)
    moments.update(1e200 * ROWS, LABELS)
    with pytest.raises(DataError, match="unit is 0, expected a positive number"):
        Moments(CLASSES).load_state_dict({**moments.state_dict(), "unit": torch.tensor(0.0, dtype=torch.float64)})


@pytest.mark.parametrize(("offset", "spread"), [(1e3, 0.5), (0.0, 1e-3)])
def test_single_precision_keeps_the_spectrum_of_rows_far_from_zero_and_near_collapse(
    offset: float, spread: float
) -> None:
    labels = np.arange(900) % 5
    rows = RNG.normal(size=(5, 60))[labels] + offset + spread * RNG.normal(size=(900, 60))
    double, single = (analyze_features(rows, labels, only=("spectrum",), precision=p) for p in ("float64", "float32"))
    for name in ("rankme", "alpha_req", "alpha_req_first", "alpha_req_last", "participation_ratio"):
        assert single[name] == pytest.approx(double[name], rel=1e-5)
