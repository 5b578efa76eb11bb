"""Tests of a probe in a user's own training loop: the record of an extraction, its file, refusals, two processes."""

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ckpt_probe as cp
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.integrations import Probe
from ckpt_probe.integrations.tap import Tap
from ckpt_probe.moments import quality

torch.manual_seed(0)
LABELS = torch.arange(150) % 3
INPUTS = 2 * torch.randn(3, 6)[LABELS] + torch.randn(150, 6)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).eval()


def batches(size: int = 32) -> list[tuple[Tensor, Tensor]]:
    return list(zip(INPUTS.split(size), LABELS.split(size), strict=True))


def evaluated(probe: Probe, model: nn.Module, step: int = 0, split: str = "test", size: int = 32) -> dict:
    with torch.no_grad(), probe.evaluation(split, step) as evaluation:
        for inputs, labels in batches(size):
            model(inputs)
            evaluation.update(labels)
    assert evaluation.record is not None
    return evaluation.record


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_record_equals_that_of_an_extraction(tmp_path: Path, extracted: Callable, same: Callable) -> None:
    model = network()
    record = evaluated(cp.Probe(model, tmp_path / "records.jsonl"), model, step=7)
    same(record, extracted(model, batches()))
    assert read_lines(tmp_path / "records.jsonl") == [record]
    assert (record["checkpoint"], record["step"], record["split"]) == ("step-000007", 7, "test")
    assert list(record)[:3] == ["checkpoint", "step", "split"]
    assert cp.read_records(tmp_path / "records.jsonl") == [record]


def test_gathering_rows_in_blocks_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extracted: Callable, same: Callable
) -> None:
    model = network()
    monkeypatch.setattr(quality, "GATHERED_ROWS", 40)
    same(evaluated(cp.Probe(model, tmp_path / "a.jsonl"), model, size=7), extracted(model, batches()))
    monkeypatch.setattr(quality, "GATHERED_BYTES", 1)
    same(evaluated(cp.Probe(model, tmp_path / "b.jsonl"), model, size=7), extracted(model, batches()))


def test_the_classifier_is_the_last_linear_layer_or_the_named_one(tmp_path: Path) -> None:
    model = network()
    named = evaluated(cp.Probe(model, tmp_path / "named.jsonl", classifier="4"), model)
    assert evaluated(cp.Probe(model, tmp_path / "found.jsonl"), model) == named
    with pytest.raises(UsageError, match=r"classifier 3: no linear layer of that name; there are: 0, 4"):
        cp.Probe(model, tmp_path / "other.jsonl", classifier="3")


def test_hooks_are_removed_and_training_passes_are_not_measured(tmp_path: Path) -> None:
    model = network()
    probe = cp.Probe(model, tmp_path / "records.jsonl")
    first = evaluated(probe, model, 1)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert sum(hooks) == 0
    model.train()(INPUTS)
    model.eval()
    assert evaluated(probe, model, 2)["samples"] == first["samples"] == 150


def test_the_record_uses_the_current_weights(tmp_path: Path, extracted: Callable, same: Callable) -> None:
    model = network()
    probe = cp.Probe(model, tmp_path / "records.jsonl")
    evaluated(probe, model, 1)
    with torch.no_grad():
        model[4].weight.normal_()
    same(evaluated(probe, model, 2), extracted(model, batches()))


def test_rows_beyond_the_limit_are_left_out(tmp_path: Path, extracted: Callable, same: Callable) -> None:
    model = network()
    probe = cp.Probe(model, tmp_path / "records.jsonl")
    with torch.no_grad(), probe.evaluation("test", 0, limit=140) as evaluation:
        for inputs, labels in [*batches(32), (INPUTS[:8], LABELS[:8])]:
            model(inputs)
            evaluation.update(labels)
    same(evaluation.record, extracted(model, [(INPUTS[:140], LABELS[:140])]))


class TwoParts(nn.Module):
    """A model whose two parts a loop runs one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Sequential(nn.Linear(6, 3)), nn.Linear(3, 3)


def run_twice(model: nn.Module, inputs: Tensor) -> None:
    model(inputs)
    model(inputs)


@pytest.mark.parametrize(
    ("model", "run", "labels", "error", "message"),
    [
        (
            network(),
            lambda model, x: None,
            LABELS,
            DataError,
            "classifier did not run for a batch of 150 labels; .* torch.compile",
        ),
        (network(), run_twice, LABELS, UsageError, "the model ran 2 times before the labels of a batch came"),
        (network(), lambda model, x: model(x), LABELS[:9], DataError, r"ran on \(150, 8\) for 9 labels"),
        (network(), lambda model, x: model(x), LABELS.float(), UsageError, "expected whole numbers"),
        (network(), lambda model, x: model(x), LABELS + 1, DataError, "labels: row 2 is 3"),
        (
            network(),
            lambda model, x: model(x * torch.nan),
            LABELS,
            DataError,
            "features: 150 rows hold NaN or infinity",
        ),
        (TwoParts().eval(), lambda m, x: m.head(m.trunk(x)), LABELS, UsageError, r"runs trunk, head .*classifier="),
    ],
)
def test_an_invalid_evaluation_is_an_error_at_its_end_and_writes_no_record(
    tmp_path: Path, model: nn.Module, run: Callable, labels: Tensor, error: type, message: str
) -> None:
    probe = cp.Probe(model, tmp_path / "records.jsonl")

    def evaluate() -> None:
        with torch.no_grad(), probe.evaluation("test", 0) as evaluation:
            run(model, INPUTS)
            evaluation.update(labels)

    with pytest.raises(error, match=message):
        evaluate()
    assert not (tmp_path / "records.jsonl").exists()


def test_a_model_run_in_parts_is_measured_if_its_classifier_is_named(
    tmp_path: Path, extracted: Callable, same: Callable
) -> None:
    model = TwoParts().eval()
    probe = cp.Probe(model, tmp_path / "records.jsonl", classifier="head")
    with torch.no_grad(), probe.evaluation("test", 0) as evaluation:
        model.head(model.trunk(INPUTS))
        evaluation.update(LABELS)
    same(evaluation.record, extracted(nn.Sequential(model.trunk, model.head), [(INPUTS, LABELS)]))


def test_a_model_in_training_mode_is_refused_and_an_exception_records_nothing(tmp_path: Path) -> None:
    model = network().train()
    probe = cp.Probe(model, tmp_path / "records.jsonl")
    with pytest.raises(UsageError, match=r"call model\.eval"):
        evaluated(probe, model)
    with pytest.raises(ZeroDivisionError), probe.evaluation("test", 0):
        _ = 1 / 0
    assert not (tmp_path / "records.jsonl").exists()
    with pytest.raises(DataError, match="ran no batch"), probe.evaluation("test", 0):
        pass


def test_a_paused_tap_holds_no_tensor_of_later_passes() -> None:
    model = network()
    tap = Tap(model)
    inputs, labels = batches()[0]
    with torch.no_grad():
        tap.start()
        model(inputs)
        _, recorded = tap.take(len(labels))
        tap.pause()
    # With gradients enabled, as in training, a tensor that is still referenced would keep a whole graph in memory.
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    handle = model[-1].register_forward_hook(lambda _module, inputs_of_layer, _output: alive.add(inputs_of_layer[0]))
    model(inputs)
    handle.remove()
    gc.collect()
    assert not list(alive)
    with torch.no_grad():
        tap.start()
        model(inputs)
        _, again = tap.take(len(labels))
        tap.stop()
    assert torch.equal(again.features, recorded.features)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_nested_evaluation_and_the_one_around_it_have_the_record_of_their_own_rows(tmp_path: Path) -> None:
    model = network()
    alone = evaluated(cp.Probe(model, tmp_path / "alone.jsonl"), model)
    probe = cp.Probe(model, tmp_path / "records.jsonl")
    with torch.no_grad(), probe.evaluation("outer", 0) as outer:
        for position, (inputs, labels) in enumerate(batches()):
            model(inputs)
            outer.update(labels)
            if position == 1:
                inner = evaluated(probe, model, split="inner")
    assert outer.record is not None
    assert {**outer.record, "split": "test"} == {**inner, "split": "test"} == alone
    assert not any(module._forward_hooks for module in model.modules())


class OfDictionary(nn.Module):
    """A model that takes a dictionary of tensors, or a list of them, in place of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, batch: dict | list) -> Tensor:
        return self.net(batch["x"] if isinstance(batch, dict) else torch.stack(batch))


def test_the_classifier_of_a_model_that_takes_a_dictionary_is_found(tmp_path: Path, same: Callable) -> None:
    model = OfDictionary().eval()
    probe = cp.Probe(model, tmp_path / "records.jsonl")
    with torch.no_grad(), probe.evaluation("test", 0) as evaluation:
        model({"x": INPUTS, "name": "text"})
        evaluation.update(LABELS)
    same(evaluation.record, evaluated(cp.Probe(model.net, tmp_path / "net.jsonl"), model.net, size=150))
    other = cp.Probe(model, tmp_path / "list.jsonl")

    def evaluate() -> None:
        with torch.no_grad(), other.evaluation("test", 0) as evaluation:
            model(list(INPUTS))
            evaluation.update(LABELS)

    with pytest.raises(UsageError, match=r"neither a tensor nor a dictionary of tensors.*classifier="):
        evaluate()


def test_numbers_of_an_evaluation_are_checked_before_it_and_stored_as_those_of_json(tmp_path: Path) -> None:
    model = network()
    probe = cp.Probe(model, tmp_path / "records.jsonl")
    with torch.no_grad(), probe.evaluation("test", np.int64(3), epoch=np.float32(0.5)) as evaluation:
        model(INPUTS)
        evaluation.update(LABELS.tolist())
    stored = read_lines(tmp_path / "records.jsonl")[0]
    assert (stored["step"], stored["checkpoint"], stored["epoch"]) == (3, "step-000003", 0.5)
    wrong = [({"step": 3.0}, "`step=3.0`: expected a whole number"), ({"epoch": float("nan")}, "`epoch=nan`: expected")]
    for keywords, message in [*wrong, ({"limit": -1}, "`limit=-1`: expected at least 0")]:
        with pytest.raises(UsageError, match=message):
            probe.evaluation(**{"split": "test", "step": 4, **keywords}).__enter__()
    with pytest.raises(UsageError, match="expected a `Settings` object"):
        cp.Probe(model, tmp_path / "other.jsonl", settings={"only": "nc1"})  # pyright: ignore[reportArgumentType]


def test_two_forward_passes_for_the_labels_of_a_later_batch_are_an_error(tmp_path: Path) -> None:
    model = network()
    probe = cp.Probe(model, tmp_path / "records.jsonl")

    def evaluate() -> None:
        with torch.no_grad(), probe.evaluation("test", 0) as evaluation:
            for run in (lambda _, inputs: model(inputs), run_twice):
                run(model, INPUTS)
                evaluation.update(LABELS)

    with pytest.raises(DataError, match="ran 2 times for the labels of one batch: give the labels after each"):
        evaluate()


def test_a_last_forward_pass_without_labels_causes_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    probe = cp.Probe(model, tmp_path / "records.jsonl")
    expected = evaluated(probe, model)
    assert caplog.messages == []
    with torch.no_grad(), probe.evaluation("again", 0) as evaluation:
        for inputs, labels in batches():
            model(inputs)
            evaluation.update(labels)
        model(INPUTS)
    assert caplog.messages == [
        "step 0, split again: the last forward pass is not measured, as it has no labels: call update(labels) after "
        "each forward pass"
    ]
    assert evaluation.record == {**expected, "split": "again"}
