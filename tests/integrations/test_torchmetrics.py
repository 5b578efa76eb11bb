"""Tests that the torchmetrics metric equals the record: alone, in a collection, merged, and in two processes."""

import copy
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

import ckpt_probe as cp

SCRIPT = Path(__file__).with_name("distributed.py")


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    labels = torch.arange(100) % 4
    return torch.randn(4, 6)[labels] + torch.randn(100, 6), labels


@pytest.fixture
def head() -> nn.Linear:
    return nn.Linear(6, 4)


def values(features: Tensor, labels: Tensor, head: nn.Linear | None) -> dict[str, Any]:
    if head is None:
        return cp.analyze_features(features, labels)
    return cp.analyze_features(features, labels, head.weight.detach(), head.bias.detach())


def same(computed: dict[str, Tensor], record: dict[str, Any], rel: float = 1e-9) -> None:
    assert {"class.mir", "nc1.pinv", "sample.mir", "accuracy"} <= computed.keys()
    for name, value in computed.items():
        assert value.ndim == 0
        assert float(value) == pytest.approx(record[name], rel=rel, abs=1e-12), name


def test_batches_give_the_values_of_the_record(samples, head) -> None:
    metric = cp.RecordMetric(head)
    for features, labels in zip(samples[0].split(17), samples[1].split(17), strict=True):
        metric.update(features, labels)
    same(metric.compute(), values(*samples, head))
    metric.reset()
    metric.update(*samples, preds=head(samples[0]))
    same(metric.compute(), values(*samples, head), rel=1e-6)


def test_weights_that_are_exchanged_after_the_last_batch_do_not_count(samples, head) -> None:
    classifier = copy.deepcopy(head)
    features, labels = samples
    metric = cp.RecordMetric(classifier, only="nc,class,quality")
    for _ in range(2):  # reset releases the weights
        classifier.weight.data.neg_()
        expected = cp.RecordMetric(copy.deepcopy(classifier), only="nc,class,quality")
        for each in (metric, expected):
            each.update(features, labels)
        classifier.weight.data.neg_()
        assert metric.compute() == expected.compute()
        metric.reset()
        classifier.weight.data.mul_(2).add_(1)


def test_rows_of_ignored_positions_are_left_out(samples, head) -> None:
    features, labels = samples[0].view(20, 5, 6), samples[1].view(20, 5).clone()
    labels[:, 3:] = -100
    metric = cp.RecordMetric(head)
    metric.update(features, labels)
    same(metric.compute(), values(features[:, :3].flatten(0, 1), labels[:, :3].flatten(), head))


@pytest.mark.parametrize("on_step", [False, True])
def test_forward_has_the_values_of_the_batch_and_accumulates(samples, head, on_step: bool) -> None:
    metric, parts = (
        cp.RecordMetric(head, dist_sync_on_step=on_step),
        [(samples[0][:40], samples[1][:40]), (samples[0][40:], samples[1][40:])],
    )
    for part in parts:
        same(metric(*part), values(*part, head))
    same(metric.compute(), values(*samples, head))


def test_a_collection_passes_each_metric_its_arguments(samples, head) -> None:
    accuracy = MulticlassAccuracy(4, average="micro")
    collection = MetricCollection({"accuracy_of_torchmetrics": accuracy, "record": cp.RecordMetric(head)})
    clone = collection.clone(prefix="test/")
    for metrics in (collection, clone):
        for features, labels in zip(samples[0].split(30), samples[1].split(30), strict=True):
            metrics.update(preds=head(features), target=labels, features=features)
    computed = dict(collection.compute())
    assert float(computed.pop("accuracy_of_torchmetrics")) == pytest.approx(float(computed["accuracy"]))
    same(computed, values(*samples, head), rel=1e-6)
    assert float(clone.compute()["test/class.mir"]) == float(computed["class.mir"])
    collection.reset()
    assert collection["record"].metric_state == {"_gathering": None}


def test_merging_is_exact_and_leaves_the_merged_metrics_unchanged(samples, head) -> None:
    first, second = cp.RecordMetric(head), cp.RecordMetric(head)
    first.update(samples[0][:60], samples[1][:60])
    second.update(samples[0][60:], samples[1][60:])
    before = second.compute()
    first.merge_state(second)
    first.merge_state(cp.RecordMetric(head))
    same(first.compute(), values(*samples, head))
    assert second.compute() == before


def test_a_copy_refers_to_the_classifier_and_survives_pickling(samples, head) -> None:
    metric = cp.RecordMetric(head, only="class")
    metric.update(*samples)
    copied = copy.deepcopy(metric)
    assert copied.compute() == metric.compute()
    assert not metric.state_dict()
    assert not list(metric.parameters())
    with torch.no_grad():
        head.weight.mul_(torch.rand_like(head.weight))
    for each in (metric, copied):
        each.reset()
        each.update(*samples)
    assert copied.compute() == metric.compute()
    assert set(metric.compute()) == {name for name in copied.compute() if name.startswith("class.")}
    assert pickle.loads(pickle.dumps(metric)).compute() == metric.compute()


def test_a_metric_without_classifier_has_the_values_of_features_alone(samples) -> None:
    metric = cp.RecordMetric(only=("nc1", "nc2"))
    metric.update(*samples)
    record = values(*samples, None)
    assert float(metric.compute()["nc1.pinv"]) == pytest.approx(record["nc1.pinv"], rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: cp.RecordMetric(proces_group=1),
            "RecordMetric: unknown keyword `proces_group`; did you",
        ),
        (lambda: cp.RecordMetric(nn.ReLU()), "`classifier`: expected a linear layer, found a ReLU"),
        (lambda: cp.RecordMetric(only="clas"), "'clas'.*did you mean class"),
        (lambda: cp.RecordMetric(only="nc", settings=cp.Settings()), "`only` and `settings` exclude each other"),
    ],
)
def test_invalid_arguments_are_refused(call, message: str) -> None:
    with pytest.raises(cp.UsageError, match=message):
        call()


def test_mismatched_shapes_are_named_in_the_error(samples) -> None:
    with pytest.raises(cp.DataError, match=r"found \(100, 6\), \(7,\)"):
        cp.RecordMetric().update(samples[0], torch.arange(7))
    with pytest.raises(cp.DataError, match="no samples were added"), pytest.warns(UserWarning, match="before"):
        cp.RecordMetric().compute()


def test_two_processes_have_the_values_of_one(tmp_path: Path, commands: Any) -> None:
    import json
    import runpy

    words = [commands.script(SCRIPT, "torchmetrics", tmp_path, rank) for rank in (0, 1)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in words]
    errors = [process.communicate(timeout=240)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(errors)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    script = runpy.run_path(str(SCRIPT))
    inputs, labels = script["samples"]().tensors
    model = script["network"]()
    with torch.no_grad():
        record = values(model[:2](inputs), labels, model[2])
    assert first["together"] == pytest.approx({name: record[name] for name in first["together"]}, rel=1e-12)
    assert first["first process alone"] == pytest.approx(first["together"], rel=1e-12)


def test_arrays_and_lists_are_batches_too() -> None:
    features, labels = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
    metric, of_lists = cp.RecordMetric(only="nc1"), cp.RecordMetric(only="nc1")
    metric.update(features.double(), labels)
    of_lists.update(features.tolist(), labels.tolist())
    assert of_lists.compute() == metric.compute()
    with pytest.raises(cp.UsageError, match="`num_classes='a'`: expected a whole number"):
        cp.RecordMetric(num_classes="a")  # pyright: ignore[reportArgumentType]
