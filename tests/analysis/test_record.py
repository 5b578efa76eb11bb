"""Tests of records: their names and numbers, streamed data, second passes, and metrics of other packages."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ckpt_probe as cp
from ckpt_probe.analysis import Settings, analyze_features, compute_from_blocks, in_order
from ckpt_probe.errors import DataError
from ckpt_probe.moments.registry import DOCUMENTS, LAYERS, METRICS, OUTSIDE, SERIES, TRAIN_MEANS
from ckpt_probe.reporting.table import metrics_list, records_table

DOCUMENTED = {
    "class.mir", "class.hdr", "class.entropy_means", "class.entropy_weights", "class.mutual_information",
    "sample.mir", "sample.hdr", "sample.entropy_features", "sample.entropy_weights", "sample.entropy_joint",
    "sample.mutual_information", "sample.effective_rank", "sample.mir_computing_error", "within.entropy_mean",
    "within.entropy_max", "nc1.pinv", "nc1.cdnv", "nc2.equinorm_means", "nc2.equinorm_weights",
    "nc2.equiangular_means", "nc2.equiangular_weights", "nc2.etf", "nc3.duality", "nc4.disagreement", "accuracy",
    "loss", "centred.mir", "centred.hdr", "centred.effective_rank", "reference.mir", "reference.hdr",
    "reference.entropy", "samples", "features", "classes", "samples_left_out", "classes_left_out", "route",
    "route_reason", "missing",
    "classes_present", "sample.entropy_normalized", "separation", "gnc2.uniformity", "gnc2.spread", "nc3.uniformity",
    "nearest_mean_accuracy", "reference.uniformity", "ece", "nc1.quotient", "nc2.lognorm_variance", "nc3.simplex",
    "rankme", "alpha_req", "alpha_req_first", "alpha_req_last", "participation_ratio",
}  # fmt: skip

OF_PACKAGE = """
from ckpt_probe.moments.registry import MEANS, Metric

def sizes(moments, weights, bias):
    return {"samples": float(moments.samples), "rows": len(weights)}

SPREAD = Metric(
    "angles.spread", "angle s.d.", "standard deviation of the norms of class means", "angles",
    function=lambda inputs: inputs.means.norm(dim=1).std(correction=0), requires=(MEANS,),
)
"""


def data(samples: int = 90) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.arange(samples) % 4
    weights = generator.normal(size=(4, 6))
    return weights[labels] + generator.normal(size=(samples, 6)), labels, weights, generator.normal(size=4)


def test_a_record_has_every_documented_name_and_every_registered_metric() -> None:
    features, labels, weights, bias = data()
    record = analyze_features(features, labels, weights, bias, centred=True)
    assert set(record) == DOCUMENTED
    others = {
        m.name for m in METRICS if m.of_weights or {LAYERS, SERIES, OUTSIDE, DOCUMENTS, TRAIN_MEANS} & set(m.requires)
    }
    assert {metric.name for metric in METRICS} - set(record) == others
    assert record["missing"] is None
    assert list(record) == list(in_order(dict(reversed(record.items()))))


def test_accuracy_loss_and_nc4_are_computed_from_weights_and_bias() -> None:
    features, labels, weights, bias = data()
    record = analyze_features(features, labels, weights, bias)
    logits = features @ weights.T + bias
    assert record["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert record["loss"] == pytest.approx(F.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item())
    means = np.stack([features[labels == c].mean(axis=0) for c in range(4)])
    nearest = ((features[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert record["nc4.disagreement"] == pytest.approx((nearest != logits.argmax(1)).mean())


def test_stored_logits_have_priority_over_those_of_the_weights() -> None:
    features, labels, weights, _ = data()
    logits = np.eye(4)[labels] * 50
    record = analyze_features(features, labels, weights, logits=logits)
    assert record["accuracy"] == 1
    assert record["loss"] == pytest.approx(0, abs=1e-12)
    without = analyze_features(features, labels, logits=logits)
    assert without["accuracy"] == 1
    assert without["class.mir"] is None


def test_without_weights_and_logits_the_reason_is_reported() -> None:
    features, labels, _, _ = data()
    record = analyze_features(features, labels)
    assert record["accuracy"] is None
    assert record["nc4.disagreement"] is None
    assert (record["route"], record["route_reason"]) == (None, None)
    assert "neither logits nor classifier weights" in record["missing"]


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_blocks_of_any_size_give_the_same_record(rows: int) -> None:
    features, labels, weights, bias = data()
    full = analyze_features(features, labels, weights, bias, centred=True)

    def blocks():
        for start in range(0, len(labels), rows):
            yield features[start : start + rows], labels[start : start + rows], None

    record = compute_from_blocks(blocks, weights, bias, Settings(centred=True)).record
    for name, value in full.items():
        expected = pytest.approx(value, rel=1e-10, abs=1e-13) if isinstance(value, float) else value
        assert record[name] == expected, name


def test_centred_metrics_are_those_of_centred_features() -> None:
    features, labels, weights, _ = data()
    record = analyze_features(features + 3, labels, weights, centred=True)
    moved = analyze_features(features - features.mean(axis=0), labels, weights)
    assert record["centred.mir"] == pytest.approx(moved["sample.mir"], rel=1e-10)
    assert record["centred.hdr"] == pytest.approx(moved["sample.hdr"], rel=1e-10)
    assert record["sample.mir"] != pytest.approx(moved["sample.mir"], rel=1e-3)
    assert "centred.mir" not in analyze_features(features, labels, weights)


def test_data_that_changes_between_two_passes_are_refused() -> None:
    features, labels, weights, _ = data()
    passes = iter([90, 60])

    def blocks():
        count = next(passes)
        yield features[:count], labels[:count], None

    with pytest.raises(DataError, match="changed between two passes: 90 rows, then 60"):
        compute_from_blocks(blocks, weights)


def test_different_numbers_of_rows_are_refused() -> None:
    features, labels, weights, _ = data()
    with pytest.raises(DataError, match="90 rows of features but 89 labels"):
        analyze_features(features, labels[:-1], weights)
    with pytest.raises(DataError, match="90 rows of features but 3 rows of logits"):
        analyze_features(features, labels, weights, logits=np.zeros((3, 4)))


def test_an_infinite_loss_is_missing() -> None:
    features, labels, weights, _ = data()
    logits = np.where(np.eye(4, dtype=bool)[labels], -math.inf, 0.0)
    record = analyze_features(features, labels, weights, logits=logits)
    assert record["loss"] is None
    assert record["accuracy"] == 0


def test_metrics_of_other_packages_are_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "othermetrics-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: othermetrics\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[ckpt_probe.metrics]\nmine = other_metrics_module:sizes\nangles = other_metrics_module:SPREAD\n"
    )
    (tmp_path / "other_metrics_module.py").write_text(OF_PACKAGE)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    features, labels, weights, _ = data()
    record = analyze_features(features, labels, weights)
    assert (record["mine.samples"], record["mine.rows"]) == (90.0, 4)
    assert list(record)[-1] == "missing"
    means = np.stack([features[labels == c].mean(axis=0) for c in range(4)])
    spread = np.linalg.norm(means - means.mean(axis=0), axis=1).std()
    assert record["angles.spread"] == pytest.approx(spread)
    only = analyze_features(features, labels, weights, only=["angles"])
    assert only["angles.spread"] == record["angles.spread"]
    assert "class.mir" not in only
    one_class = analyze_features(features, np.zeros(90, dtype=int), weights)
    assert "angles.spread" in one_class["missing"].partition(": only one class has samples")[0].split(", ")
    table = records_table([{"split": "test", **record}])
    assert "angle s.d." in [str(column.header) for column in table.columns]
    assert "angles.spread                standard deviation" in metrics_list()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_of_logits_that_are_not_finite_is_missing_with_the_reason(value: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(30, 4, generator=generator), torch.arange(30) % 3
    logits = torch.randn(30, 3, generator=generator)
    logits[4, 1] = value
    record = analyze_features(features, labels, logits=logits)
    assert record["loss"] is None
    assert "loss: not finite, because logits are infinite or NaN" in record["missing"]


@pytest.mark.parametrize("only", [None, "nc4"])
def test_numbers_of_predictions_are_missing_if_a_row_has_none(only: str | None) -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(30, 4, generator=generator), torch.arange(30) % 3
    logits = torch.randn(30, 3, generator=generator)
    logits[4, 1] = torch.nan
    record = analyze_features(features, labels, logits=logits, only=only)
    for name in ["nc4.disagreement", *([] if only else ["accuracy"])]:
        assert record[name] is None
        assert name in record["missing"]
    assert "1 rows have no prediction, because logits are NaN" in record["missing"]
    assert record["nearest_mean_accuracy"] is not None


def test_rounding_of_single_precision_is_no_direction() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(3000) % 4
    flat = generator.normal(size=(3000, 5)) @ generator.normal(size=(5, 24)) + generator.normal(size=24)
    names = ("rankme", "alpha_req", "participation_ratio", "alpha_req_last")
    double, single = (analyze_features(flat, labels, only="spectrum", precision=p) for p in ("float64", "float32"))
    assert [single[name] for name in names] == pytest.approx([double[name] for name in names], rel=1e-5)
    line = np.exp(generator.normal(size=(3000, 1))) * generator.normal(size=24)
    weights = generator.normal(size=(4, 24))
    record = analyze_features(line, labels, weights, only="sample", centred=True, precision="float32")
    assert record["centred.mir"] is None
    moments, copy = (cp.Moments(4, only="sample", precision="float32") for _ in range(2))
    moments.update(flat, labels)
    copy.load_state_dict(moments.state_dict())
    assert copy.inputs(weights).unit.epsilon == moments.inputs(weights).unit.epsilon > 1e-12
    assert "the entropy in its denominator is zero up to rounding" in record["missing"]


def test_labels_too_large_for_memory_are_refused_and_overflows_are_missing() -> None:
    features, labels = (
        torch.randn(6, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 0, 1, 2**40]),
    )
    with pytest.raises(
        DataError, match=r"labels: row 5 is 1099511627776: the means of 1,099,511,627,777 classes would take"
    ):
        analyze_features(features, labels)
    labels[5] = 2
    weights = torch.full((3, 4), 1e200, dtype=torch.float64)
    record = analyze_features(1e160 * features.double(), labels, weights)
    assert all(value is None or not isinstance(value, float) or np.isfinite(value) for value in record.values())
    assert "not finite" in record["missing"]


def test_labels_beyond_the_columns_of_logits_are_refused() -> None:
    features, labels, _, _ = data()
    with pytest.raises(DataError, match=r"labels: row 3 is 3, but logits have shape \(90, 3\)"):
        analyze_features(features, labels, logits=np.zeros((90, 3)))
    assert analyze_features(features, labels.astype(np.uint64))["classes"] == 4


@pytest.mark.parametrize(
    ("scored", "settings", "passes"), [(False, {}, 1), (False, {"per_class": True}, 2), (True, {}, 2)]
)
def test_a_second_pass_is_made_only_if_rows_are_compared_with_class_means(
    scored: bool, settings: dict, passes: int
) -> None:
    features, labels, weights, _ = data()
    made = []

    def blocks():
        made.append(1)
        yield features, labels, None

    compute_from_blocks(blocks, weights if scored else None, None, Settings(**settings))
    assert len(made) == passes


def test_per_class_values_that_are_not_finite_are_missing_with_the_reason() -> None:
    features, labels, weights, _ = data()
    reading = compute_from_blocks(lambda: [(1e160 * features, labels, None)], weights, None, Settings(per_class=True))
    for row in reading.per_class:
        assert row["variance"] is None
        assert "variance: not finite" in str(row["missing"])


def test_the_error_of_a_difference_of_paired_rows_is_smaller() -> None:
    features, labels, weights, bias = data(120)
    moved = features + 0.01 * np.random.default_rng(1).normal(size=features.shape)
    first, second = (analyze_features(rows, labels, weights, bias, errors=True) for rows in (features, moved))
    assert first["nc1.pinv"] == pytest.approx(analyze_features(features, labels, weights, bias)["nc1.pinv"])
    change = cp.difference(first, second, metrics=["nc1.pinv"])
    assert change["rows"] == "paired"
    assert 0 < change["nc1.pinv_stderr"] < first["nc1.pinv_stderr"] / 5


@pytest.mark.parametrize("single", [0, 3])
def test_errors_of_rows_are_computed_beside_a_class_of_one_row(single: int) -> None:
    features, labels, weights, bias = data()
    chosen = (labels != single) | (np.cumsum(labels == single) == 1)
    record = analyze_features(features[chosen], labels[chosen], weights, bias, errors=True)
    assert record["nc4.disagreement_stderr"] is None
    assert record["class.mir_bias"] is None
    assert record["sample.mir_stderr"] > 0
    assert math.isfinite(record["sample.mir_bias"])


def test_errors_of_few_rows_are_positive_or_missing_with_the_reason() -> None:
    generator = np.random.default_rng(0)
    for samples in (8, 9, 10, 12, 15, 20):
        labels = generator.integers(0, 5, samples)
        features = np.eye(5, 6)[labels] + 0.3 * generator.normal(size=(samples, 6))
        record = analyze_features(features, labels, np.eye(5, 6), errors=True)
        for name in [name for name in record if name.endswith(("_stderr", "_bias"))]:
            assert record[name] is None or math.isfinite(record[name])
            assert record[name] is not None or name in record["missing"]
            assert record[name] != 0 or name.endswith("_bias")


@pytest.mark.parametrize("errors", [False, True])
def test_a_classifier_of_zeros_leaves_the_metrics_of_features(errors: bool) -> None:
    features, labels, weights, _ = data()
    record = analyze_features(features, labels, 0 * weights, errors=errors)
    without = analyze_features(features, labels, errors=errors)
    for name in ("class.entropy_means", "sample.entropy_features", "nc1.pinv", "nc2.etf"):
        assert record[name] == without[name]
    for name in ("class.mir", "sample.mir", "nc3.duality", "class.entropy_weights", "route"):
        assert record[name] is None
        assert name in record["missing"].partition("all classifier weights are zero")[0]
    assert record["loss"] == pytest.approx(math.log(4))


def test_coinciding_class_means_leave_the_metrics_of_rows() -> None:
    _, labels, weights, _ = data()
    record = analyze_features(np.tile(np.arange(1.0, 7), (len(labels), 1)), labels, weights)
    assert record["sample.entropy_features"] == pytest.approx(0, abs=1e-12)
    assert record["sample.entropy_weights"] == pytest.approx(
        analyze_features(weights[labels], labels, weights)["sample.entropy_weights"]
    )
    assert record["class.mir"] is None
    assert record["class.entropy_means"] is None
    assert "class means coincide" in record["missing"]


def test_records_of_a_probe_have_errors(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    probe = cp.Probe(model, tmp_path / "records.jsonl", settings=cp.Settings(errors=True, only="nc1,quality"))
    inputs, labels = torch.randn(90, 6, generator=torch.Generator().manual_seed(0)), torch.arange(90) % 3
    with probe.evaluation("test", 1) as evaluation:
        for rows, classes in zip(inputs.split(32), labels.split(32), strict=True):
            model(rows)
            evaluation.update(classes)
    record = evaluation.record
    assert record is not None
    right = (model(inputs).argmax(dim=1) == labels).double()
    # Each of the three classes has 30 rows.
    expected = math.sqrt(np.mean([float(right[label::3].var()) for label in range(3)]) / 90)
    assert record["accuracy_stderr"] == pytest.approx(expected, rel=1e-6)
    assert record["nc1.pinv_stderr"] > 0
    assert cp.read_records(tmp_path / "records.jsonl")[0]["nc1.pinv_bias"] == record["nc1.pinv_bias"]


def test_arguments_of_unusual_types_give_the_numbers_of_arrays_or_an_error_of_one_line() -> None:
    rows, labels = np.random.default_rng(0).standard_normal((12, 5)), np.arange(12) % 3
    logits = rows[:, :3]
    record = cp.analyze_features(rows, labels, logits=logits)
    assert cp.analyze_features(rows, labels, logits=logits.tolist(), orders=None) == record  # pyright: ignore[reportArgumentType]
    wrong: list[tuple[dict, str]] = [
        ({"labels": None}, "labels: expected an array with a row for each sample, found None"),
        ({"features": 3.0}, "features: expected an array"),
        ({"orders": "2"}, "orders: the order of an entropy must be positive and finite, found 2"),
        ({"only": 3}, "`only`: '3' is neither a metric nor a family"),
        ({"memory": 1e9}, "`memory=1000000000.0`: expected a whole number"),
    ]
    for keywords, message in wrong:
        with pytest.raises(cp.CkptProbeError, match=message):
            cp.analyze_features(**{"features": rows, "labels": labels, **keywords})
    with pytest.raises(cp.UsageError, match="`dist_exp='a'`: expected a finite number"):
        cp.cdnv(rows, labels, dist_exp="a")  # pyright: ignore[reportArgumentType]
