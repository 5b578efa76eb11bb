"""Tests of moments: independence of blocks and their order, edge cases, and every algorithm against brute force."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ckpt_probe as cp
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.metrics.collapse import reference_values
from ckpt_probe.metrics.stochastic import Sampling
from ckpt_probe.moments import Moments


def data(samples: int, features: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, samples)
    labels[:classes] = np.arange(classes)
    weights = generator.normal(size=(classes, features))
    return weights[labels] + generator.normal(size=(samples, features)), labels, weights


def record_of(features, labels, weights=None, classes: int | None = None, **options) -> dict:
    moments = Moments(classes, **options)
    moments.update(features, labels)
    return moments.compute(weights)


def assert_close(first: dict, second: dict, rel: float = 1e-10) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, float):
            assert value == pytest.approx(second[name], rel=rel, abs=1e-12), name
        elif name != "route":
            assert value == second[name], name


def entropy(matrix: np.ndarray) -> float:
    values = np.linalg.eigvalsh(matrix)
    values = values[values > 1e-14]
    return float(-(values * np.log(values)).sum())


def brute_force(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Return every number of the record by its definition, with N × N matrices and loops."""
    N, C = len(features), len(weights)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    heads = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    K1, K2 = unit @ unit.T, heads[labels] @ heads[labels].T
    H1, H2, joint = entropy(K1 / N), entropy(K2 / N), entropy(K1 * K2 / N)
    means = np.stack([features[labels == c].mean(axis=0) for c in range(C)])
    M = means - means.mean(axis=0)
    Mu = M / np.linalg.norm(M, axis=1, keepdims=True)
    HM, HW, HJ = entropy(Mu @ Mu.T / C), entropy(heads @ heads.T / C), entropy((Mu @ Mu.T) * (heads @ heads.T) / C)
    within = [unit[labels == c] for c in range(C)]
    Hc = [entropy(rows @ rows.T / len(rows)) for rows in within]
    centred = features - means[labels]
    pinv = np.linalg.pinv(M.T @ M / C, rcond=1e-12, hermitian=True)
    variances = [float((centred[labels == c] ** 2).sum(axis=1).mean()) for c in range(C)]
    pairs = [(a, b) for a in range(C) for b in range(a + 1, C)]
    lengths = np.linalg.norm(M, axis=1)
    E = np.eye(C) - 1 / C
    nc1 = float(np.trace(centred.T @ centred / N @ pinv) / C)
    energies = [-math.log(np.linalg.norm(Mu[a] - Mu[b])) for a, b in pairs]
    products, singular = weights @ M.T, np.linalg.svd(features, compute_uv=False)
    shares, covariance = singular / singular.sum(), np.cov(features.T)
    # Two centred class means are opposite: their entropy is zero, and ratios of it are undefined.
    smallest = min(HM, HW) if C > 2 else math.nan
    return {
        "sample.entropy_features": H1,
        "sample.entropy_weights": H2,
        "sample.entropy_joint": joint,
        "sample.mutual_information": H1 + H2 - joint,
        "sample.mir": (H1 + H2 - joint) / min(H1, H2),
        "sample.hdr": abs(H1 - H2) / max(H1, H2),
        "sample.effective_rank": math.exp(H1),
        "class.entropy_means": HM,
        "class.entropy_weights": HW,
        "class.mutual_information": HM + HW - HJ,
        "class.mir": (HM + HW - HJ) / smallest,
        "class.hdr": abs(HM - HW) / max(HM, HW),
        "within.entropy_mean": float(np.mean(Hc)),
        "within.entropy_max": max(Hc),
        "sample.entropy_normalized": H1 / math.log(min(features.shape)),
        "nc1.pinv": nc1,
        "nc1.quotient": float((centred**2).sum() / N / ((M**2).sum() / C)),
        "separation": math.log(C * nc1),
        "nc1.cdnv": float(
            np.mean(
                [(variances[a] + variances[b]) / (2 * ((means[a] - means[b]) ** 2).sum()) for a, b in pairs],
            )
        ),
        "nc2.equinorm_means": float(lengths.std() / lengths.mean()),
        "nc2.equinorm_weights": float(np.linalg.norm(weights, axis=1).std() / np.linalg.norm(weights, axis=1).mean()),
        "nc2.equiangular_means": float(np.mean([abs(Mu[a] @ Mu[b] + 1 / (C - 1)) for a, b in pairs])),
        "nc2.equiangular_weights": float(np.mean([abs(heads[a] @ heads[b] + 1 / (C - 1)) for a, b in pairs])),
        "nc2.etf": float(np.linalg.norm(M @ M.T / np.linalg.norm(M @ M.T) - E / np.linalg.norm(E))),
        "nc2.lognorm_variance": float(np.log(lengths).var(ddof=1)),
        "gnc2.uniformity": float(np.mean(energies)),
        "gnc2.spread": float(np.std(energies)),
        "nc3.duality": float(np.linalg.norm(weights / np.linalg.norm(weights) - M / np.linalg.norm(M))),
        "nc3.uniformity": float((Mu * heads).sum(axis=1).std()),
        "nc3.simplex": float(np.linalg.norm(products / np.linalg.norm(products) - E / np.linalg.norm(E))),
        "rankme": math.exp(-(shares * np.log(shares)).sum()),
        "participation_ratio": float(np.trace(covariance) ** 2 / (covariance**2).sum()),
    }


@pytest.mark.parametrize(
    ("samples", "features", "classes", "route"),
    [
        (150, 4, 3, "dense-moments"),
        (40, 30, 5, "dense-gram"),
        (300, 6, 12, "dense-moments"),
        (60, 3, 7, "dense-moments"),
        (25, 16, 2, "dense-gram"),
    ],
)
def test_every_number_equals_that_of_brute_force(samples: int, features: int, classes: int, route: str) -> None:
    X, labels, weights = data(samples, features, classes)
    record = record_of(X, labels, weights)
    assert record["route"] == route
    expected = brute_force(X, labels, weights)
    if classes == 2:
        # Two centred class means are opposite: entropy zero, ratios undefined.
        for name in ("class.mir", "class.hdr", "class.mutual_information", "class.entropy_means"):
            expected.pop(name)
        assert record["class.mir"] is None
    for name, value in expected.items():
        assert record[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


@given(
    cuts=st.lists(st.integers(0, 120), max_size=6),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 5),
    shape=st.sampled_from([(120, 3, 4), (120, 40, 4), (120, 2, 9)]),
    memory=st.sampled_from([2**30, 2000, 100]),
)
@settings(max_examples=40, deadline=None)
def test_merging_any_parts_in_any_order_equals_one_pass(cuts, order, seed: int, shape, memory: int) -> None:
    X, labels, weights = data(*shape, seed=seed)
    X[7] = 0
    complete = record_of(X, labels, weights, classes=shape[2], memory=memory)
    edges = [0, *sorted(cuts), len(X)]
    parts = list(pairwise(edges))
    order.shuffle(parts)
    total = Moments(shape[2], memory=memory)
    for start, stop in parts:
        part = Moments(shape[2], memory=memory)
        middle = (start + stop) // 2
        part.update(X[start:middle], labels[start:middle])
        part.update(X[middle:stop], labels[middle:stop])
        total.merge(part)
    assert total.samples == len(X)
    assert_close(total.compute(weights), complete)


def test_features_far_from_the_origin_lose_no_digits() -> None:
    X, labels, weights = data(400, 5, 3)
    near, far = record_of(X, labels, weights), record_of(X + 1e6, labels, weights)
    assert far["nc1.pinv"] == pytest.approx(near["nc1.pinv"], rel=1e-8)
    assert far["nc1.cdnv"] == pytest.approx(near["nc1.cdnv"], rel=1e-8)


def test_a_small_memory_budget_stores_only_the_total_and_states_it() -> None:
    X, labels, weights = data(200, 6, 4)
    full = record_of(X, labels, weights)
    less = record_of(X, labels, weights, memory=100)
    assert less["sample.entropy_features"] == pytest.approx(full["sample.entropy_features"], rel=1e-11)
    assert less["sample.mir"] is None
    assert less["within.entropy_mean"] is None
    assert "over the memory budget" in less["missing"]
    assert less["nc1.pinv"] == pytest.approx(full["nc1.pinv"], rel=1e-12)
    of_classes = 8 * 4 * 6**2
    assert record_of(X, labels, weights, memory=of_classes)["sample.mir"] == pytest.approx(full["sample.mir"])
    assert record_of(X, labels, weights, memory=of_classes - 1)["sample.mir"] is None


@pytest.mark.parametrize("samples", [200, 21])
def test_joint_matrices_over_the_dense_limit_are_sampled_from_stored_rows_or_moments(samples: int) -> None:
    # 200 rows are stored as second moments of the classes, 21 as rows.
    X, labels, weights = data(samples, 6, 4)
    X[3], weights[2] = 0, 0
    exact = record_of(X, labels, weights)
    moments = Moments(4)
    moments.update(X, labels)
    for seed in range(5):
        record = moments.compute(weights, exact_limit=10, sampling=Sampling(1e-2, seed=seed), orders=(2.0,))
        assert record["route"] == "stochastic"
        assert "the largest side for a dense eigensolver" in record["route_reason"]
        assert record["samples_left_out"] == exact["samples_left_out"] > 0
        assert 0 < record["sample.mir_computing_error"] <= 1e-2 * record["sample.mir"]
        assert abs(record["sample.mir"] - exact["sample.mir"]) <= 4 * record["sample.mir_computing_error"]
    few = moments.compute(weights, exact_limit=10, sampling=Sampling(1e-16, probes=16))
    assert "sampling stopped before the tolerance was reached" in few["route_reason"]
    assert few["sample.probes"] == 16


def test_a_sampled_class_level_has_errors_of_what_has_a_gradient() -> None:
    X, labels, weights = data(120, 5, 3)
    moments = Moments(3, halves=True, subset=120)
    moments.update(X, labels)
    exact, record = (moments.compute(weights, only=("class",), errors=True, exact_limit=k) for k in (None, 1))
    assert record["class.mir"] == pytest.approx(exact["class.mir"], rel=1e-3)
    assert record["class.entropy_means_stderr"] == pytest.approx(exact["class.entropy_means_stderr"], rel=1e-9)
    assert record["class.mir_stderr"] is None
    assert "class.mir_stderr" in str(record["missing"])


def test_zero_rows_are_left_out_and_counted() -> None:
    X, labels, weights = data(60, 5, 3)
    X[[4, 9]] = 0
    record = record_of(X, labels, weights)
    nonzero = np.delete(np.arange(60), [4, 9])
    assert record["samples_left_out"] == 2
    assert record["samples"] == 60
    without = record_of(X[nonzero], labels[nonzero], weights)
    assert record["sample.mir"] == pytest.approx(without["sample.mir"], rel=1e-12)
    assert record["nc1.pinv"] != pytest.approx(without["nc1.pinv"], rel=1e-3)


def test_more_than_half_zero_rows_is_an_error() -> None:
    X, labels, weights = data(60, 5, 3)
    X[:31] = 0
    with pytest.raises(DataError, match="31 of 60 rows have zero length"):
        record_of(X, labels, weights)


def test_a_weight_row_of_zero_length_leaves_its_class_out() -> None:
    X, labels, weights = data(60, 5, 4)
    weights[2] = 0
    record = record_of(X, labels, weights)
    assert record["classes_left_out"] == 1
    assert record["samples_left_out"] == int((labels == 2).sum())
    remaining = labels != 2
    without = record_of(X[remaining], labels[remaining], weights)
    assert record["sample.mir"] == pytest.approx(without["sample.mir"], rel=1e-12)


def test_classes_without_a_sample_are_counted() -> None:
    X, labels, weights = data(60, 5, 4)
    present = labels != 1
    record = record_of(X[present], labels[present], weights)
    assert record["classes"] == 4
    assert record["classes_left_out"] == 1
    renumbered = np.searchsorted([0, 2, 3], labels[present])
    assert record["class.mir"] == pytest.approx(
        record_of(X[present], renumbered, weights[[0, 2, 3]])["class.mir"], rel=1e-12
    )
    assert record["reference.entropy"] == reference_values(3)["reference.entropy"]


def test_a_single_class_with_samples_leaves_class_metrics_out_with_a_reason() -> None:
    X, _, weights = data(30, 5, 4)
    record = record_of(X, np.zeros(30, dtype=int), weights)
    assert record["class.mir"] is None
    assert record["nc1.pinv"] is None
    assert "only one class has samples" in record["missing"]
    assert record["sample.entropy_features"] > 0


def test_a_classifier_of_one_class_is_an_error() -> None:
    with pytest.raises(DataError, match="at least two classes, found 1"):
        Moments(1)


def test_more_classes_than_the_memory_holds_are_an_error() -> None:
    with pytest.raises(DataError, match="`classes=1000000000000`: the counts of these classes would take 8,000"):
        Moments(10**12)


def test_ratios_of_two_classes_are_missing_with_a_reason() -> None:
    X, labels, weights = data(80, 5, 2)
    record = record_of(X, labels, weights)
    assert record["class.entropy_means"] == pytest.approx(0, abs=1e-9)
    assert record["class.mir"] is None
    assert record["reference.mir"] is None
    assert record["reference.entropy"] == 0
    assert "the entropy in its denominator is zero" in record["missing"]
    assert not any(isinstance(value, float) and math.isnan(value) for value in record.values())


@pytest.mark.parametrize("counts", [[10_000, 1], [10_000, 1, 3]])
def test_classes_of_uneven_sizes_have_the_numbers_of_brute_force(counts: list[int]) -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(counts)), counts)
    weights = generator.normal(size=(len(counts), 4))
    X = weights[labels] + generator.normal(size=(len(labels), 4))
    record = record_of(X, labels, weights)
    assert record["samples"] == sum(counts)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    within = [entropy(unit[labels == c].T @ unit[labels == c] / count) for c, count in enumerate(counts)]
    assert record["within.entropy_mean"] == pytest.approx(np.mean(within), rel=1e-10)
    heads = (weights / np.linalg.norm(weights, axis=1, keepdims=True))[labels]
    products = (unit[:, :, None] * heads[:, None, :]).reshape(len(X), -1)
    assert record["sample.entropy_joint"] == pytest.approx(entropy(products.T @ products / len(X)), rel=1e-9)
    means = np.stack([X[labels == c].mean(axis=0) for c in range(len(counts))])
    M = means - means.mean(axis=0)
    scatter = (X - means[labels]).T @ (X - means[labels]) / len(X)
    pinv = np.linalg.pinv(M.T @ M / len(M), rcond=1e-12, hermitian=True)
    assert record["nc1.pinv"] == pytest.approx(np.trace(scatter @ pinv) / len(M), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_features_are_computed_in_float64(dtype: torch.dtype) -> None:
    X, labels, weights = data(60, 5, 3)
    rounded = torch.tensor(X).to(dtype)
    assert_close(record_of(rounded, labels, weights), record_of(rounded.double(), labels, weights), rel=1e-12)


def test_low_rank_weights_repeated_rows_and_single_dimensions_are_handled() -> None:
    X, labels, weights = data(200, 6, 5)
    flat = weights[:, :2] @ np.random.default_rng(3).normal(size=(2, 6))
    assert record_of(X, labels, flat)["sample.entropy_joint"] == pytest.approx(
        brute_force(X, labels, flat)["sample.entropy_joint"], rel=1e-9
    )
    repeated = record_of(np.repeat(X[:5], 4, axis=0), np.repeat(labels[:5], 4), weights)
    assert repeated["sample.effective_rank"] <= 5 + 1e-9
    single_dimension = record_of(np.abs(X[:, :1]), labels, np.abs(weights[:, :1]))
    assert single_dimension["sample.entropy_features"] == pytest.approx(0, abs=1e-12)
    assert single_dimension["sample.mir"] is None


def test_a_single_sample_has_zero_entropy_and_no_ratio() -> None:
    record = record_of(np.ones((1, 3)), np.array([1]), np.eye(3)[:2])
    assert record["sample.entropy_features"] == pytest.approx(0, abs=1e-12)
    assert record["sample.mir"] is None
    assert record["samples"] == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_block_with_nan_is_refused_with_its_row_and_not_added(bad: float) -> None:
    X, labels, weights = data(60, 5, 3)
    moments = Moments(3)
    moments.update(X[:40], labels[:40])
    before = moments.compute(weights)
    broken = X[40:].copy()
    broken[[3, 8], 2] = bad
    with pytest.raises(DataError, match="2 rows hold NaN or infinity, the first is row 43"):
        moments.update(broken, labels[40:])
    assert moments.compute(weights) == before


@pytest.mark.parametrize(
    ("label", "message"), [(3, "row 17 is 3, labels must be between 0 and 2"), (-1, "row 17 is -1")]
)
def test_labels_out_of_range_are_refused_with_their_row(label: int, message: str) -> None:
    X, labels, _ = data(60, 5, 3)
    labels[17] = label
    with pytest.raises(DataError, match=message):
        record_of(X, labels, classes=3)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.ones((4, 2)), np.zeros(5, dtype=int), r"expected \(n, D\) and \(n,\)"),
        (np.ones(4), np.zeros(4, dtype=int), r"expected \(n, D\) and \(n,\)"),
        (np.ones((4, 2)), np.full(4, 0.5), "expected whole numbers of classes, found 0.5"),
        (np.ones((4, 2)), np.zeros(4, dtype=bool), "expected whole numbers"),
    ],
)
def test_features_and_labels_that_do_not_match_are_errors(
    features: np.ndarray, labels: np.ndarray, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        record_of(features, labels)


def test_blocks_merges_and_weights_of_wrong_shapes_are_errors() -> None:
    X, labels, weights = data(60, 5, 3)
    moments = Moments()
    with pytest.raises(DataError, match="no samples were added"):
        moments.compute(weights)
    moments.update(X, labels)
    with pytest.raises(DataError, match="this block has 4 columns, earlier blocks had 5"):
        moments.update(X[:, :4], labels)
    second = Moments()
    second.update(X[:, :4], labels)
    with pytest.raises(DataError, match="moments of 5 features cannot be merged with moments of 4"):
        moments.merge(second)
    second = Moments(7)
    second.update(X, labels)
    with pytest.raises(DataError, match="moments of None classes cannot be merged with moments of 7"):
        moments.merge(second)
    with pytest.raises(DataError, match="expected shape"):
        moments.compute(weights[:, :3])
    with pytest.raises(DataError, match="2 rows, but labels go up to 2"):
        moments.compute(weights[:2])
    with pytest.raises(DataError, match="classifier bias"):
        moments.compute(weights, np.zeros(4))
    with pytest.raises(DataError, match="classifier weights: 1 row holds NaN"):
        moments.compute(np.where(np.arange(3)[:, None] == 1, np.nan, weights))


def test_metrics_of_the_weights_are_missing_without_weights() -> None:
    X, labels, weights = data(60, 5, 3)
    record = record_of(X, labels)
    assert record["class.entropy_means"] == pytest.approx(record_of(X, labels, weights)["class.entropy_means"])
    for name in ("class.mir", "sample.mir", "nc3.duality", "route"):
        assert record[name] is None
    assert "no classifier weights" in record["missing"]


def test_numpy_and_torch_give_the_same_record_and_an_empty_block_adds_nothing() -> None:
    X, labels, weights = data(60, 5, 3)
    moments = Moments(3)
    moments.update(torch.tensor(X), torch.tensor(labels, dtype=torch.uint8))
    moments.update(np.empty((0, 5)), np.empty(0, dtype=int))
    assert_close(moments.compute(torch.tensor(weights)), record_of(X, labels, weights, classes=3), rel=1e-13)
    assert moments.counts == {c: int((labels == c).sum()) for c in range(3)}
    np.testing.assert_allclose(moments.mean, X.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.class_means[1], X[labels == 1].mean(axis=0), rtol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_moments_on_cuda_agree_with_the_cpu() -> None:
    X, labels, weights = data(300, 20, 4)
    on_cuda = record_of(torch.tensor(X, device="cuda"), torch.tensor(labels, device="cuda"), weights)
    assert_close(on_cuda, record_of(X, labels, weights), rel=1e-9)


def test_settings_that_are_not_whole_numbers_are_refused_and_those_of_numpy_become_plain() -> None:
    wrong = [("classes", 3.0), ("classes", "3"), ("subset", 2.5), ("memory", 1e9), ("memory", -1), ("seed", "a")]
    for name, value in wrong:
        with pytest.raises(UsageError, match=f"`{name}="):
            cp.Moments(**{name: value})
    moments = cp.Moments(np.int64(3))  # pyright: ignore[reportArgumentType]
    moments.update(np.eye(3), range(3))
    assert type(moments.compute()["classes"]) is int


def test_features_without_columns_are_refused() -> None:
    with pytest.raises(DataError, match=r"expected \(n, D\) and \(n,\), found \(3, 0\)"):
        cp.Moments().update(np.empty((3, 0)), [0, 1, 2])


def test_a_bias_with_nan_is_an_error_and_not_a_wrong_decision() -> None:
    rows, labels = np.random.default_rng(0).standard_normal((9, 4)), np.arange(9) % 3
    with pytest.raises(DataError, match="classifier bias: entry 1 is NaN"):
        cp.nc4(rows, labels, rows[:3], np.array([0.0, np.nan, 0.0]))
    masked = cp.analyze_features(rows, labels, rows[:3], np.array([0.0, -np.inf, 0.0]))
    assert masked["accuracy"] == np.mean((rows @ rows[:3].T)[:, [0, 2]].argmax(axis=1) * 2 == labels)


def test_a_label_of_billions_of_classes_is_refused_before_memory_is_allocated() -> None:
    moments = cp.Moments()
    with pytest.raises(DataError, match=r"row 1 is 1000000000000: the means of 1,000,000,000,001 classes would take"):
        moments.update(np.ones((2, 4)), [0, 10**12])
    assert moments.samples == 0


def test_records_count_classes_that_are_small_or_left_out() -> None:
    labels = np.repeat([0, 1, 2, 4], [5, 3, 1, 1])
    rows = np.random.default_rng(0).normal(size=(10, 4))
    record = record_of(rows, labels, classes=6)
    assert (record["classes"], record["classes_present"], record["classes_left_out"]) == (6, 4, 2)
    assert record["classes_of_one_sample"] == 2
    assert "classes_below_min_samples" not in record
    record = cp.analyze_features(rows, labels, min_samples=2)
    assert (record["classes_below_min_samples"], record["classes_present"]) == (2, 4)
    assert "classes_of_one_sample" not in record


def test_half_of_the_class_means_may_equal_the_mean_of_all() -> None:
    simplex = np.array([[1, 0], [-0.5, math.sqrt(0.75)], [-0.5, -math.sqrt(0.75)]])
    for zeros in (3, 4):
        means = np.concatenate([np.zeros((zeros, 2)), simplex])
        record = record_of(
            np.concatenate([means + 0.5, means - 0.5]), np.tile(np.arange(len(means)), 2), only=["class"]
        )
        if zeros == 3:
            assert record["class.entropy_means"] == pytest.approx(math.log(2))
            assert record["classes_left_out"] == 3
        else:
            assert "4 of 7 class means" in record["missing"]


def test_the_rounding_of_single_precision_adds_up_over_blocks_and_merges() -> None:
    rows, labels, _ = data(400, 5, 3)
    parts = [Moments(3, precision="float32") for _ in range(2)]
    for part, start in zip(parts, (0, 200), strict=True):
        part.update(rows[start : start + 200], labels[start : start + 200])
    roundings = [part.state_dict() for part in parts]
    both = parts[0].merge(parts[1])
    assert both is None or isinstance(both, Moments)
    first, second, merged = (
        sum(float(value) for name, value in state.items() if name.endswith("rounding"))
        for state in (*roundings, parts[0].state_dict())
    )
    assert merged == pytest.approx(first + second)
    assert first > 0
