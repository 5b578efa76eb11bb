"""Tests of metrics on request: parts accumulated for each family, classes of enough samples, and single precision."""

import numpy as np
import pytest
import torch

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.moments import Moments, class_sums
from ckpt_probe.moments.entropies.levels import Options
from ckpt_probe.moments.record import compute_record
from ckpt_probe.moments.registry import DEFAULT, FAMILIES, GROUPS, METRICS
from ckpt_probe.moments.selection import chosen_families, find_metrics, suggest_metrics

COUNTS = {"samples", "features", "classes", "classes_present", "classes_left_out", "missing"}
OF_SAMPLES = {"samples_left_out", "route", "route_reason"}


def data(samples: int = 200, features: int = 6, classes: int = 5, seed: int = 0):
    generator = np.random.default_rng(seed)
    labels = np.arange(samples) % classes
    weights = generator.normal(size=(classes, features))
    return weights[labels] + generator.normal(size=(samples, features)), labels, weights


def moments_of(features, labels, **options) -> Moments:
    moments = Moments(5, **options)
    moments.update(features[:70], labels[:70])
    moments.update(features[70:], labels[70:])
    return moments


def test_names_select_families_and_unknown_names_are_errors() -> None:
    assert chosen_families(None) == frozenset(DEFAULT)
    assert chosen_families(["nc"]) == frozenset(GROUPS["nc"])
    assert chosen_families(["nc", "class", "nc1"]) == frozenset({*GROUPS["nc"], "class"})
    assert {metric.family for metric in METRICS} == {family.name for family in FAMILIES}
    for names, message in (
        (["clas"], "'clas' is neither a metric nor a family of metrics; did you mean class"),
        (["MIRR"], "'MIRR' is neither a metric nor a family of metrics; did you mean MIR"),
        (["xyz"], "'xyz' is neither a metric nor a family of metrics; families: nc, quality"),
        ([], "expected at least one family"),
    ):
        with pytest.raises(UsageError) as error:
            Moments(only=names)
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("only", "families"),
    [
        ("NC1", {"nc1"}),
        ("mir", {"class"}),
        ("CDNV, hdr", {"nc1", "class"}),
        (["nc4.Disagreement"], {"nc4"}),
        ("class.*", {"class"}),
        ("nc?", {"nc1", "nc2", "nc3", "nc4", "nc5"}),
        ("*.mir", {"class", "sample", "centred"}),
    ],
)
def test_metrics_labels_and_patterns_select_their_families(only: str | list[str], families: set[str]) -> None:
    assert chosen_families(only) == families


def test_metrics_are_found_by_name_label_and_pattern() -> None:
    assert find_metrics("MIR") == ["class.mir"]
    assert find_metrics(["NC1", "cdnv", "nc1.pinv"]) == ["nc1.pinv", "nc1.cdnv"]
    assert find_metrics("nc3.*,acc") == ["nc3.duality", "nc3.uniformity", "nc3.simplex", "accuracy"]
    assert find_metrics("NC*", ["nc1.pinv", "loss"]) == ["nc1.pinv"]
    assert find_metrics("mine, MIR", ["mine"]) == ["mine", "MIR"]
    assert suggest_metrics("nc1.pin", ["nc1.pinv", "loss"]) == "; did you mean nc1.pinv or NC1?"
    assert suggest_metrics("xyz", ["loss", "accuracy"]) == "; there are: loss, accuracy"


def test_metrics_have_distinct_names_labels_and_priorities() -> None:
    for field in ("name", "label", "priority"):
        assert len({getattr(metric, field) for metric in METRICS}) == len(METRICS), field


@pytest.mark.parametrize("family", ["class", "sample", "within", "nc1", "nc2", "nc3", "nc"])
def test_one_family_gives_its_own_numbers_only(family: str) -> None:
    features, labels, weights = data()
    complete = moments_of(features, labels).compute(weights)
    record = moments_of(features, labels, only=[family]).compute(weights)
    families = GROUPS.get(family, (family,))
    expected = {metric.name for metric in METRICS if metric.family in families} & set(complete)
    references = {name for name in record if name.startswith("reference.")}
    assert set(record) - references == expected | COUNTS | (OF_SAMPLES if family == "sample" else set())
    assert references == {
        "class": {"reference.mir", "reference.hdr", "reference.entropy"},
        "nc2": {"reference.uniformity"},
        "nc": {"reference.uniformity"},
    }.get(family, set())
    for name, value in record.items():
        assert value == complete[name], name


def test_moments_that_no_requested_family_needs_are_not_accumulated() -> None:
    features, labels, _ = data()
    state = moments_of(features, labels, only=["nc3", "nc4"]).state_dict()
    assert set(state) == {"counts", "means", "squares"}
    assert set(moments_of(features, labels, only=["nc1"]).state_dict()) == {"counts", "means", "squares", "within"}
    assert "within" not in moments_of(features, labels, only=["sample"]).state_dict()


def test_moments_of_the_same_families_merge_and_load_and_others_do_not() -> None:
    features, labels, weights = data()
    complete = moments_of(features, labels, only=["nc1", "class"])
    first, second = (Moments(5, only=["nc1", "class"]) for _ in range(2))
    first.update(features[:90], labels[:90])
    second.update(features[90:], labels[90:])
    first.merge(second)
    expected = complete.compute(weights)
    for name, value in first.compute(weights).items():
        assert value == (pytest.approx(expected[name], rel=1e-10) if isinstance(value, float) else expected[name]), name
    loaded = Moments(5, only=["nc1", "class"])
    loaded.load_state_dict(complete.state_dict())
    assert loaded.compute(weights) == expected
    with pytest.raises(DataError, match="different families"):
        first.merge(moments_of(features, labels))
    with pytest.raises(DataError, match="stored moments: missing unit_counts, left_out"):
        Moments(5).load_state_dict(complete.state_dict())
    fewer = Moments(5, only=["nc3"])
    fewer.load_state_dict(moments_of(features, labels).state_dict())
    assert fewer.compute(weights)["nc3.duality"] == expected_duality(features, labels, weights)


def expected_duality(features, labels, weights) -> float:
    return float(moments_of(features, labels).compute(weights)["nc3.duality"] or 0)


def test_classes_of_few_samples_are_left_out_of_metrics_of_class_means() -> None:
    features, labels, weights = data()
    labels = np.where(np.arange(200) == 17, 4, np.where(labels == 4, 0, labels))
    moments = moments_of(features, labels)
    record = compute_record(moments.inputs(weights, options=Options(min_samples=2))).record
    assert (record["classes"], record["classes_present"], record["classes_left_out"]) == (5, 5, 1)
    remaining = labels != 4
    without = Moments(4)
    without.update(features[remaining], labels[remaining])
    expected = without.compute(weights[:4])
    for name in ("class.mir", "class.entropy_means", "nc1.cdnv", "nc2.etf", "nc3.duality", "within.entropy_mean"):
        assert record[name] == pytest.approx(expected[name], rel=1e-12), name
    # Metrics of samples include the samples of all classes.
    assert record["sample.mir"] == moments.compute(weights)["sample.mir"]
    assert record["samples"] == 200
    assert bool(moments.means_of_classes(2)[4].isnan().all())
    assert not bool(moments.class_means.isnan().any())


def test_too_few_classes_of_enough_samples_have_a_reason() -> None:
    features, labels, weights = data()
    options = Options(min_samples=41, details=True)
    record = compute_record(moments_of(features, labels).inputs(weights, options=options)).record
    assert record["class.mir"] is None
    assert record["within.entropy_mean"] is None
    assert record["nc1.pinv"] is None
    assert "fewer than two classes have as many samples as a class needs" in str(record["missing"])
    assert record["sample.mir"] is not None


@pytest.mark.parametrize("classes", [5, 60])
def test_single_precision_keeps_six_digits(classes: int) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, 4000)
    weights = generator.normal(size=(classes, 24))
    features = (weights[labels] + generator.normal(size=(4000, 24)) + 5).astype(np.float32)
    double, single = (Moments(classes, precision=precision) for precision in ("float64", "float32"))
    for moments in (double, single):
        moments.update(features, labels)
    expected = double.compute(weights)
    for name, value in single.compute(weights).items():
        if isinstance(value, float):
            assert value == pytest.approx(expected[name], rel=2e-5, abs=1e-7), name
    assert single.compute(weights)["nc1.pinv"] != expected["nc1.pinv"]
    with pytest.raises(UsageError, match="precision: expected float64 or float32, found 'half'"):
        Moments(precision="half")


def test_sorting_blocks_of_many_classes_together_does_not_change_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_sums, "CACHED_BYTES", 8 * 10 * 50)
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 70, 1000)
    features, weights = generator.normal(size=(1000, 10)) + 2, generator.normal(size=(70, 10))
    together, apart = (Moments(70, memory=2**14, only=["nc", "within", "class"]) for _ in range(2))
    together.update(features, labels)
    for start in range(0, 1000, 30):
        apart.update(features[start : start + 30], labels[start : start + 30])
    expected, merged_blocks = (m.compute(weights, rows=lambda: [(features, labels)]) for m in (apart, together))
    for name, value in merged_blocks.items():
        assert value == (pytest.approx(expected[name], rel=1e-9) if isinstance(value, float) else expected[name]), name


def test_normalised_entropy_is_one_for_even_directions() -> None:
    moments = Moments(2)
    moments.update(torch.eye(6), torch.arange(6) % 2)
    record = moments.compute()
    assert record["sample.entropy_normalized"] == pytest.approx(1, rel=1e-12)
    single = Moments(2)
    single.update(torch.ones(1, 3), torch.zeros(1, dtype=torch.int64))
    record = single.compute()
    assert record["sample.entropy_normalized"] is None
    assert "sample.entropy_normalized: one sample or one feature has one direction" in record["missing"]
