"""Tests that constructions of neural collapse reach the theoretical values and that noise moves away from them."""

import math

import numpy as np
import pytest
import torch

from ckpt_probe.analysis import analyze_features
from ckpt_probe.errors import DataError
from ckpt_probe.metrics import reference_values, simplex_etf
from ckpt_probe.metrics.entropy import entropy_of_spectrum
from ckpt_probe.metrics.rows import spectrum
from ckpt_probe.moments.selection import metrics_in

ZERO_AT_COLLAPSE = (
    "class.hdr",
    "sample.hdr",
    "within.entropy_mean",
    "within.entropy_max",
    "nc1.pinv",
    "nc1.cdnv",
    "nc2.equinorm_means",
    "nc2.equinorm_weights",
    "nc2.equiangular_means",
    "nc2.equiangular_weights",
    "nc2.etf",
    "gnc2.spread",
    "nc3.duality",
    "nc3.uniformity",
    "nc4.disagreement",
)


def collapse_values(counts: list[int]) -> dict[str, float | None]:
    """Return the value at neural collapse of every metric that has one, for classes of `counts` samples.

    Features equal their class mean, and class means and weights are aligned simplex ETFs around the origin. At class
    level the values are those of `reference_values`. At sample level, with p_c the share of class c and E the Gram
    matrix of the ETF, the entropies are those of diag(√p) E diag(√p) and diag(√p) (E ⊙ E) diag(√p).
    """
    classes = len(counts)
    reference = reference_values(classes)
    shares = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    E = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64).fill_diagonal_(1)
    roots = shares.sqrt().outer(shares.sqrt())
    single, joint = (float(entropy_of_spectrum(spectrum(roots * matrix))) for matrix in (E, E * E))
    entropy, ratio = reference["reference.entropy"], reference["reference.mir"]
    means = {"class.entropy_means": entropy, "class.entropy_weights": entropy, "class.mir": ratio}
    means["gnc2.uniformity"] = -math.log(2 * classes / (classes - 1)) / 2
    means["class.mutual_information"] = 0.0 if ratio is None or entropy is None else ratio * entropy
    samples: dict[str, float | None] = dict.fromkeys(("sample.entropy_features", "sample.entropy_weights"), single)
    samples |= {"sample.entropy_joint": joint, "sample.mutual_information": 2 * single - joint}
    samples |= {"sample.effective_rank": math.exp(single)}
    samples["sample.mir"] = (2 * single - joint) / single if single > 0 else None
    zeros: dict[str, float | None] = dict.fromkeys(ZERO_AT_COLLAPSE, 0.0)
    if classes == 2:
        zeros |= {"class.hdr": None, "sample.hdr": None}
    return {**means, **samples, **zeros}


def collapsed(counts: list[int], features: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    etf = simplex_etf(len(counts), features).numpy()
    labels = np.repeat(np.arange(len(counts)), counts)
    return 5 * etf[labels], labels, 2 * etf


@pytest.mark.parametrize(
    ("counts", "features"),
    [
        ([7] * 3, 2),
        ([7] * 3, 9),
        ([5] * 10, 9),
        ([3] * 10, 40),
        ([1] * 20, 19),
        ([4] * 65, 64),
        ([9, 4], 1),
        ([9, 9], 5),
        ([1, 2, 3, 4, 5], 4),
        ([1000, 1, 10, 100], 6),
        ([50, 1, 3], 2),
    ],
)
def test_an_exact_etf_has_the_theoretical_values(counts: list[int], features: int) -> None:
    record = analyze_features(*collapsed(counts, features))
    expected = collapse_values(counts)
    for name, value in expected.items():
        if value is None:
            assert record[name] is None, name
        else:
            assert record[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name


@pytest.mark.parametrize("classes", [3, 4, 10, 100])
def test_equal_shares_give_the_class_level_values_in_closed_form(classes: int) -> None:
    values, reference = collapse_values([6] * classes), reference_values(classes)
    C = classes
    mir = 1 / (C - 1) + (C - 2) * math.log(max(C - 2, 1)) / ((C - 1) * math.log(C - 1))
    for level in ("class", "sample"):
        assert values[f"{level}.mir"] == pytest.approx(mir, rel=1e-12)
        assert values[f"{level}.entropy_weights"] == pytest.approx(math.log(C - 1), rel=1e-12)
    assert reference["reference.mir"] == pytest.approx(mir, rel=1e-14)


@pytest.mark.parametrize(
    ("classes", "features", "exists"), [(6, 5, True), (7, 5, False), (300, 64, False), (3, 1, False)]
)
def test_a_reference_exists_if_a_simplex_exists(classes: int, features: int, exists: bool) -> None:
    values = reference_values(classes, features)
    if exists:
        assert values == reference_values(classes)
        return
    assert (values["reference.mir"], values["reference.entropy"]) == (None, None)
    assert values["reference.hdr"] == (None if features == 1 else 0.0)


@pytest.mark.parametrize(("classes", "features"), [(4, 2), (7, 2), (12, 3)])
def test_collapse_without_a_simplex_keeps_entropies_below_log_d_and_hdr_at_zero(classes: int, features: int) -> None:
    rows = np.random.default_rng(0).normal(size=(classes, features))
    rows -= rows.mean(axis=0)
    labels = np.repeat(np.arange(classes), 3)
    record = analyze_features(rows[labels], labels, rows)
    assert record["class.entropy_means"] <= math.log(features)
    assert record["class.hdr"] == pytest.approx(record["reference.hdr"], abs=1e-12)
    assert f"no simplex of {classes} classes exists in {features}-dimensional space" in str(record["missing"])
    assert (record["reference.mir"], record["reference.entropy"]) == (None, None)
    line = analyze_features(rows[labels, :1], labels, rows[:, :1], only=("class", "nc2"))
    assert line["reference.uniformity"] is None
    assert "reference.uniformity: more than two classes in one dimension" in str(line["missing"])


@pytest.mark.parametrize("order", [0.5, 2.0])
def test_entropies_of_every_order_share_their_value_at_collapse_and_mir_does_not(order: float) -> None:
    record = analyze_features(*collapsed([4] * 5, 6), orders=(order,))
    assert record[f"renyi_{order:g}.class.entropy_means"] == pytest.approx(record["reference.entropy"])
    assert record[f"renyi_{order:g}.class.mir"] != pytest.approx(record["reference.mir"], rel=1e-3)
    references = {metric.name: metric.at_collapse for metric in metrics_in([record])}
    assert references[f"renyi_{order:g}.class.entropy_means"] == "reference.entropy"
    assert references[f"renyi_{order:g}.class.mir"] is None


def test_a_reference_without_a_simplex_is_an_error() -> None:
    for classes in (1, 0):
        with pytest.raises(DataError, match="at least two classes"):
            reference_values(classes)
    with pytest.raises(DataError, match="does not exist"):
        simplex_etf(6, 4)


@pytest.mark.parametrize("counts", [[50] * 6, [10, 90, 20, 80, 30, 70]])
def test_more_noise_moves_every_metric_further_from_collapse(counts: list[int]) -> None:
    features, labels, weights = collapsed(counts, 8)
    noise = np.random.default_rng(0).normal(size=features.shape)
    scales = (0.0, 0.02, 0.1, 0.3, 1.0, 2.0)
    records = [analyze_features(features + scale * noise, labels, weights) for scale in scales]
    for name in ("nc1.pinv", "nc1.cdnv", "within.entropy_mean", "within.entropy_max", "nc3.duality", "sample.hdr"):
        values = [record[name] for record in records]
        assert values == sorted(values), name
        assert values[-1] > values[0] + 1e-2, name
    values = [record["sample.mir"] for record in records]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(("classes", "features"), [(2, 1), (4, 3), (4, 9)])
def test_a_simplex_has_unit_rows_at_equal_angles_in_the_requested_dimensions(classes: int, features: int) -> None:
    rows = simplex_etf(classes, features)
    assert rows.shape == (classes, features)
    expected = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(rows @ rows.T, expected)
