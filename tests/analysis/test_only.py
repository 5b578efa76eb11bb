"""Tests of the option `only`: contents of the record, omitted passes, scores in place of logits, and the cache."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ckpt_probe.analysis import Settings, analyze, analyze_features, compute_from_blocks
from ckpt_probe.analysis import record as module
from ckpt_probe.dumps import DumpWriter
from ckpt_probe.errors import UsageError
from ckpt_probe.moments import quality as quality_module
from ckpt_probe.moments.quality import LinearHead, Quality, Scored

COMMON = {"samples", "features", "classes", "classes_present", "classes_left_out", "missing"}


def data(samples: int = 120, classes: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.arange(samples) % classes
    weights = generator.normal(size=(classes, 6))
    return weights[labels] + generator.normal(size=(samples, 6)), labels, weights, generator.normal(size=classes)


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("quality", {"accuracy", "loss", "ece"}),
        ("nc4", {"nc4.disagreement", "nearest_mean_accuracy"}),
        ("centred", {"centred.mir", "centred.hdr", "centred.effective_rank"}),
        ("within", {"within.entropy_mean", "within.entropy_max"}),
        ("quality,nc3", {"accuracy", "loss", "ece", "nc3.duality", "nc3.uniformity", "nc3.simplex"}),
    ],
)
def test_a_record_has_the_requested_metrics_with_the_numbers_of_the_full_record(only: str, names: set[str]) -> None:
    full = analyze_features(*data(), centred=True)
    record = analyze_features(*data(), only=only)
    assert set(record) == names | COMMON
    assert {name: record[name] for name in names} == {name: full[name] for name in names}
    assert record["missing"] is None
    assert analyze_features(*data(), only=tuple(only.split(","))) == record


def test_metrics_that_are_not_requested_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, weights, bias = data()
    passes = []

    def blocks():
        passes.append(1)
        yield features, labels, None

    def never(*_, **__):
        raise AssertionError("computed although it was not requested")

    monkeypatch.setattr("ckpt_probe.moments.inputs.sample_level", never)
    monkeypatch.setattr("ckpt_probe.moments.inputs.within_level", never)
    monkeypatch.setattr("ckpt_probe.moments.inputs.class_level", never)
    monkeypatch.setattr(Quality, "update_head", never)
    compute_from_blocks(blocks, weights, bias, Settings(only=("nc",)))
    assert len(passes) == 2
    compute_from_blocks(blocks, weights, bias, Settings(only=("nc1", "nc2", "nc3")))
    assert len(passes) == 3


def test_without_predictions_nearest_means_are_computed_only_on_request() -> None:
    features, labels, _, _ = data()
    usual = analyze_features(features, labels)
    assert usual["nearest_mean_accuracy"] is None
    assert "nearest_mean_accuracy: needs a second pass, which only nc4 asks for here" in usual["missing"]
    record = analyze_features(features, labels, only=("nc4",))
    assert record["nc4.disagreement"] is None
    assert record["nearest_mean_accuracy"] == analyze_features(*data())["nearest_mean_accuracy"]
    means = np.stack([features[labels == c].mean(axis=0) for c in range(4)])
    nearest = ((features[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert record["nearest_mean_accuracy"] == (nearest == labels).mean()


def test_samples_of_classes_that_are_too_small_have_no_nearest_mean() -> None:
    features, labels, weights, _ = data()
    labels = np.where(labels == 3, 0, labels)
    labels[17] = 3
    record = analyze_features(features, labels, weights, only=("nc4", "nc3"), min_samples=2)
    counted = labels != 3
    means = np.stack([features[labels == c].mean(axis=0) for c in range(3)])
    nearest = ((features[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert record["nearest_mean_accuracy"] == (nearest == labels)[counted].mean()
    assert record["nc4.disagreement"] == (nearest != (features @ weights.T).argmax(axis=1)).mean()
    assert record["classes_left_out"] == 1


def test_scores_in_place_of_logits_give_the_same_record() -> None:
    features, labels, weights, bias = data()
    logits = torch.tensor(features @ weights.T + bias)
    losses, confidence = F.cross_entropy(logits, torch.tensor(labels), reduction="none"), logits.softmax(1).amax(1)
    scored = Scored(logits.argmax(dim=1), losses.numpy(), confidence.numpy())
    expected = analyze_features(features, labels, weights, bias)
    record = compute_from_blocks(lambda: [(features, labels, scored)], weights, bias).record
    assert record == {**expected, **{name: pytest.approx(expected[name], rel=1e-12) for name in ("loss", "ece")}}
    # This holds without a head too, as for layers before it.
    assert compute_from_blocks(lambda: [(features, labels, scored)], None).record["nc4.disagreement"] is not None


@pytest.mark.parametrize("room", [2**31, 100])
def test_the_second_pass_uses_predictions_of_the_first_if_they_fit_into_memory(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels, weights, bias = data()
    made = []
    decision = LinearHead.decision
    monkeypatch.setattr(LinearHead, "decision", lambda head: made.append(1) or decision(head))
    monkeypatch.setattr(module, "PREDICTED_SHARE", 2**31 // room)

    def blocks():
        for start in range(0, 120, 50):
            yield features[start : start + 50], labels[start : start + 50], None

    record = compute_from_blocks(blocks, weights, bias, Settings(only=("quality", "nc4"))).record
    assert bool(made) == (room == 100)
    full = analyze_features(features, labels, weights, bias)
    assert (record["nc4.disagreement"], record["accuracy"]) == (full["nc4.disagreement"], full["accuracy"])


def test_losses_of_many_classes_are_computed_in_blocks_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, weights, bias = data(300, 40)
    expected = analyze_features(features, labels, weights, bias, only=("quality",))
    monkeypatch.setattr(quality_module, "FEW_CLASSES", 7)
    monkeypatch.setattr(quality_module, "LOGITS_AT_ONCE", 100)
    record = analyze_features(features, labels, weights, bias, only=("quality",))
    assert record["accuracy"] == expected["accuracy"]
    assert record["loss"] == pytest.approx(expected["loss"], rel=1e-12)
    large = analyze_features(features * 1e3, labels, weights, bias, only=("quality",))
    logits = torch.tensor(features * 1e3 @ weights.T + bias)
    assert large["loss"] == pytest.approx(F.cross_entropy(logits, torch.tensor(labels)).item(), rel=1e-12)
    scored = LinearHead(torch.tensor(weights), torch.tensor(bias)).scored(features, torch.tensor(labels))
    losses = F.cross_entropy(torch.tensor(features @ weights.T + bias), torch.tensor(labels), reduction="none")
    assert torch.as_tensor(scored.loss).tolist() == pytest.approx(losses.tolist(), rel=1e-11, abs=1e-13)


def test_single_precision_is_close_to_double_precision() -> None:
    expected, single = (analyze_features(*data(), precision=name) for name in ("float64", "float32"))
    for name in ("nc1.pinv", "nc1.cdnv", "sample.mir", "loss", "within.entropy_mean"):
        assert single[name] == pytest.approx(expected[name], rel=1e-5), name
    assert single["accuracy"] == expected["accuracy"]


def test_invalid_settings_are_refused() -> None:
    for options, message in (
        ({"only": "nc,clas"}, "'clas' is neither a metric nor a family of metrics; did you mean class"),
        ({"only": ()}, "expected at least one family"),
        ({"precision": "float16"}, "precision: expected float64 or float32"),
        ({"min_samples": 0}, "`min_samples=0`: expected at least 1"),
    ):
        with pytest.raises(UsageError) as error:
            analyze_features(*data(), **options)
        assert message in str(error.value)


def test_metrics_of_a_package_are_the_family_of_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "familymetrics-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: familymetrics\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ckpt_probe.metrics]\nown = family_metrics_module:rank\n")
    source = (
        "def rank(moments, weights, bias):\n    return {'rank': moments.compute(weights)['sample.effective_rank']}\n"
    )
    (tmp_path / "family_metrics_module.py").write_text(source)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    full = analyze_features(*data())
    assert full["own.rank"] == full["sample.effective_rank"]
    assert set(analyze_features(*data(), only=("own",))) == {"own.rank"} | COMMON
    assert "own.rank" not in analyze_features(*data(), only=("nc",))


def test_the_cache_distinguishes_the_requested_families(tmp_path: Path) -> None:
    features, labels, weights, bias = data()
    with DumpWriter(tmp_path / "step-1.h5", None, classes=4, features=6, feature_dtype="float64") as writer:
        writer.write_classifier(weights, bias)
        writer.start_split("test", 120, logits=False)
        writer.append("test", features, labels)
    for options in ({}, {"only": ("nc",)}, {"only": ("class",)}, {"min_samples": 31}, {"precision": "float32"}):
        [expected] = analyze(tmp_path / "step-1.h5", **options)
        for _ in range(2):
            assert list(analyze(tmp_path, cache=True, **options)) == [expected], options
    files = len(list(tmp_path.rglob("*.json")))
    list(analyze(tmp_path, cache=True, only=("nc4", "nc3", "nc2", "nc1")))
    assert len(list(tmp_path.rglob("*.json"))) == files


def test_without_a_class_of_enough_samples_there_is_no_nearest_mean() -> None:
    record = analyze_features(*data(), min_samples=31)
    assert (record["nc4.disagreement"], record["nearest_mean_accuracy"]) == (None, None)
    assert "nc4.disagreement, nearest_mean_accuracy: no class has as many samples as a class needs" in record["missing"]
    assert record["accuracy"] == analyze_features(*data())["accuracy"]
