"""Tests of records of examples, classes, checkpoints and runs, and of the reasons for dumps that are left out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.dumps import DumpWriter
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.moments import Moments
from ckpt_probe.moments.quality import Scored
from ckpt_probe.predictions import read_predictions, scores
from ckpt_probe.progress import MessageLog

from .conftest import LABELS, PREDICTED, logits_of, write_dump

Writing = Callable[..., Path]


def single(records: Any) -> Any:
    (record,) = records
    return record


def test_every_example_has_its_history(run: Path) -> None:
    records = {record["index"]: record for record in cp.examples(run)}
    names = ("first_learned", "forgotten", "never_learned", "right", "changed")
    assert [tuple(records[index][name] for name in names) for index in range(4)] == [
        (0, 0, False, 3, 0),
        (10, 0, False, 2, 1),
        (20, 1, False, 2, 2),
        (None, 0, True, 0, 1),
    ]
    last = records[3]
    assert (last["class"], last["class_name"], last["predicted"], last["predicted_name"]) == (2, "cow", 1, "bee")
    assert last["missing"] == "first_learned: predicted wrongly at the last checkpoint"
    assert last["loss"] == pytest.approx(-np.log(1 / (2 + np.exp(3))))
    assert records[0]["name"] is None
    assert cp.examples(run)[0]["index"] == 3


def test_classes_have_counts_and_histograms(run: Path) -> None:
    ant, bee, cow = cp.examples(run, by="class")
    assert (ant["samples"], ant["learned"], ant["first_learned.histogram"]) == (2, 2, "0:1 10:1")
    assert (bee["forgotten"], bee["forgetting_events"], bee["forgotten.histogram"]) == (1, 1, "1:1")
    assert bee["missing"] is None
    assert (cow["never_learned"], cow["learned"], cow["first_learned.histogram"]) == (1, 0, "")


def test_every_checkpoint_is_compared_with_the_one_before(run: Path) -> None:
    first, second, third = cp.examples(run, by="step")
    assert (first["accuracy"], first["function.disagreement"]) == (0.5, None)
    assert first["missing"].endswith("the first checkpoint")
    assert (second["step"], second["function.disagreement"], second["function.error_agreement"]) == (10, 0.5, 1.0)
    assert (second["function.learned"], second["function.forgotten"]) == (0.25, 0.25)
    assert second["function.divergence"] > 0
    assert third["function.error_agreement"] == 0


def test_predictions_without_logits_have_no_divergence(write_run: Writing) -> None:
    scored = [Scored(np.array(row), np.full(4, 0.5)) for row in PREDICTED]
    directory = write_run("scored", scored, LABELS)
    record = cp.examples(directory, by="step")[1]
    assert (record["function.disagreement"], record["function.divergence"]) == (0.5, None)
    assert record["missing"] == "function.divergence: only predictions are stored, not logits"
    assert cp.examples(directory)[0]["loss"] == 0.5


@pytest.mark.parametrize("rows_at_once", [4, 1000])
def test_logits_are_computed_from_features_and_classifier_weights(
    tmp_path: Path, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "BLOCK_BYTES", 8 * 3 * rows_at_once)
    weights, bias = np.random.default_rng(0).normal(size=(3, 2)), np.array([0.0, 0.5, -1.0])
    features = np.random.default_rng(1).normal(size=(6, 2))
    with DumpWriter(tmp_path / "step-1.h5", None, classes=3, features=2, feature_dtype="float64") as writer:
        writer.write_classifier(weights, bias)
        writer.start_split("test", 6, logits=False)
        writer.append("test", features, np.arange(6) % 3)
    predictions = single(read_predictions(tmp_path))
    logits = features @ weights.T + bias
    assert predictions.predicted.tolist() == [logits.argmax(axis=1).tolist()]
    assert predictions.loss == pytest.approx(np.log(np.exp(logits).sum(1)) - logits[np.arange(6), np.arange(6) % 3])


def test_a_label_without_a_logit_has_no_loss(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "step_1.h5", "w") as file:
        file["test/features"], file["test/labels"] = np.zeros((2, 2)), np.array([0, 3])
        file["test/logits"] = np.array([[1.0, 0, 0], [0, 1, 0]])
    first, second = single(read_predictions(tmp_path)).loss
    assert first == pytest.approx(-1 + np.log(np.e + 2))
    assert np.isnan(second)


@pytest.mark.parametrize("rows_at_once", [1, 2, 5, 100])
def test_probabilities_in_blocks_are_those_of_every_row(
    write_run: Writing, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = [np.random.default_rng(seed).normal(size=(5, 3)).astype(np.float32) for seed in range(2)]
    directory = write_run("blocks", logits, np.arange(5) % 3)
    monkeypatch.setattr(scores, "BLOCK_BYTES", 8 * 3 * 2 * rows_at_once)
    blocks = [*scores.probability_blocks(sorted(directory.glob("*.h5")), "test", 5, 3)]
    expected = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), expected, rtol=1e-6)
    chosen = [*scores.probability_blocks(sorted(directory.glob("*.h5")), "test", 5, 3, np.array([0, 3]))]
    np.testing.assert_allclose(np.concatenate(chosen, axis=1), expected[:, [0, 3]], rtol=1e-6)


def test_a_single_checkpoint_has_no_forgetting(write_run: Writing) -> None:
    directory = write_run("one", [logits_of(PREDICTED[0])], LABELS)
    record = cp.examples(directory)[-1]
    assert (record["first_learned"], record["forgotten"], record["never_learned"]) == (0, None, False)
    assert "one checkpoint has predictions" in record["missing"]
    assert "one checkpoint has predictions" in single(cp.examples(directory, by="step"))["missing"]
    of_class = cp.examples(directory, by="class")[0]
    assert (of_class["forgotten"], of_class["forgetting_events"], of_class["forgotten.histogram"]) == (None, None, None)
    assert of_class["missing"].startswith("forgotten: one checkpoint has predictions, ")
    with pytest.raises(DataError, match="test: one checkpoint has predictions; two are needed"):
        list(cp.function_similarity(directory))


def test_a_step_with_nan_is_left_out_and_the_others_are_computed(write_run: Writing) -> None:
    logits = [logits_of(row) for row in [*PREDICTED, PREDICTED[2]]]
    logits[1][2, 0] = np.nan
    directory = write_run("nan", logits, LABELS)
    log = MessageLog()
    records = {record["index"]: record for record in cp.examples(directory, progress=log)}
    assert [records[index]["first_learned"] for index in range(4)] == [0, 20, 0, None]
    (message,) = log.messages
    assert message.startswith("left out: ")
    assert "step-0010.h5: test: the logits of row 2 are NaN, so it has no prediction" in message
    steps = cp.examples(directory, by="step")
    assert [record["step"] for record in steps] == [0, 10, 20, 30]
    assert [record["checkpoint"] for record in steps] == [f"step-{step:04}" for step in (0, 10, 20, 30)]
    assert {record["split"] for record in steps} == {"test"}
    assert steps[1]["function.disagreement"] is None
    assert "row 2 are NaN" in steps[1]["missing"]
    assert steps[2]["function.disagreement"] == 0.5


def test_dumps_of_other_rows_are_left_out_by_name(write_run: Writing) -> None:
    logits = [logits_of(row) for row in [*PREDICTED, [0, 1, 1]]]
    labels = [LABELS, LABELS[::-1].copy(), LABELS, LABELS[:3]]
    directory, log = write_run("other", logits, labels), MessageLog()
    assert len(cp.examples(directory, progress=log)) == 4
    assert len(log.messages) == 2
    assert "step-0010.h5: test: 4 rows with other labels than those of step-0000 and 1 more" in log.messages[0]
    assert "step-0030.h5: test: 3 rows, not the 4 of step-0000" in log.messages[1]


def test_a_dump_of_another_split_is_left_out_by_name(write_run: Writing) -> None:
    directory, log = write_run("run", [logits_of(row) for row in PREDICTED], LABELS), MessageLog()
    write_dump(directory / "step-0030.h5", logits_of(PREDICTED[0]), LABELS, split="train")
    assert len(cp.examples(directory, splits="test", progress=log)) == 4
    assert log.messages == [f"left out: {directory}/step-0030.h5: no split 'test'; there are: train"]
    with pytest.raises(DataError, match="no split 'tset'; there are: test"):
        cp.examples(directory, splits="tset")


def test_dumps_without_predictions_are_an_error_with_the_reason(write_run: Writing, tmp_path: Path) -> None:
    directory = write_run("none", [None, None], LABELS)
    with pytest.raises(DataError, match=r"step-0000.h5: test: no logits, predictions or classifier weights .*1 more"):
        cp.examples(directory)
    moments = Moments(3)
    moments.update(torch.randn(6, 2), torch.arange(6) % 3)
    with DumpWriter(tmp_path / "moments.h5", None, classes=3, features=2) as writer:
        writer.write_moments("test", moments.state_dict(), {"samples": 6})
    with pytest.raises(DataError, match="only class moments are stored, not rows"):
        cp.examples(tmp_path / "moments.h5")


def test_rows_without_labels_are_compared_but_not_learned(write_run: Writing) -> None:
    directory = write_run("unlabelled", [logits_of(row) for row in PREDICTED], None)
    record = cp.examples(directory, by="step")[1]
    assert (record["function.disagreement"], record["function.forgotten"], record["accuracy"]) == (0.5, None, None)
    with pytest.raises(DataError, match="the rows have no labels, so no example is learned"):
        list(cp.examples(directory))


def test_runs_of_equal_accuracy_may_disagree(write_run: Writing) -> None:
    first = write_run("first", [logits_of([0, 0, 1, 0])], LABELS)
    second = write_run("second", [logits_of([1, 0, 1, 2])], LABELS)
    record = single(cp.examples([first, second], by="run"))
    assert (record["run"], record["other"], record["split"]) == ("first", "second", "test")
    assert (record["accuracy"], record["other_accuracy"]) == (0.75, 0.75)
    assert (record["function.disagreement"], record["churn.wins"], record["churn.losses"]) == (0.5, 0.25, 0.25)
    assert record["function.error_agreement"] is None
    assert "function.error_agreement: no row is predicted wrongly by both" in record["missing"]
    assert {each["run"] for each in cp.examples({"a": first, "b": second})} == {"a", "b"}
    groups = cp.examples({"g": [first, second]}, by="step")
    assert [(each["run"], each["group"], each["seed"]) for each in groups] == [
        ("g/first", "g", "first"),
        ("g/second", "g", "second"),
    ]
    with pytest.raises(UsageError, match="name each source once"):
        cp.examples([first, first])
    with pytest.raises(UsageError, match="compares several runs"):
        cp.examples(first, by="run")


def test_runs_with_other_rows_are_refused_in_one_line(write_run: Writing) -> None:
    first = write_run("first", [logits_of([0, 0, 1, 0])], LABELS)
    second = write_run("second", [logits_of([1, 0, 1])], LABELS[:3])
    with pytest.raises(DataError, match="first and second: test: 4 and 3 rows; extract both from the same data"):
        list(cp.examples([first, second], by="run"))


def test_function_similarity_has_matrices_of_steps_and_of_runs(run: Path, write_run: Writing) -> None:
    disagreement, divergence, errors = cp.function_similarity(run)
    assert (disagreement.kind, disagreement.measure, disagreement.rows) == ("steps", "disagreement", ("0", "10", "20"))
    assert disagreement.values[0] == (0.0, 0.5, 0.5)
    assert divergence.values[1][2] == cp.examples(run, by="step")[2]["function.divergence"]
    assert (errors.measure, errors.values[0][0]) == ("error_agreement", 1.0)
    second_run = write_run("second_run", [logits_of([0, 0, 1, 2])], LABELS)
    matrix = next(iter(cp.function_similarity([run, second_run])))
    assert (matrix.kind, matrix.rows, matrix.values[0][1]) == ("runs", ("run", "second_run"), 0.25)
    json.dumps(matrix.to_record())


def test_examples_are_named_by_the_files_of_their_data(write_run: Writing, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    from PIL import Image

    for name in ("ant/1", "ant/2", "bee/3", "cow/4"):
        file = tmp_path / "photos" / "test" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)
    directory, log = write_run("run", [logits_of(row) for row in PREDICTED], LABELS), MessageLog()
    records = cp.examples(directory, data=f"imagefolder:{tmp_path}/photos", progress=log)
    assert {record["index"]: record["name"] for record in records} == dict(
        enumerate(("ant/1.png", "ant/2.png", "bee/3.png", "cow/4.png"))
    )
    list(cp.examples(directory, data="digits", progress=log))
    assert "examples have no names: digits: split test has other labels than the rows of the dump" in log.messages[-1]


def test_names_in_dumps_name_examples_and_distinguish_rows(write_run: Writing) -> None:
    directory, log = write_run("run", [logits_of(row) for row in PREDICTED], LABELS), MessageLog()
    for step, names in ((10, "abcd"), (20, "abcd"), (30, "abdc")):
        write_dump(directory / f"step-{step:04d}.h5", logits_of(PREDICTED[2]), LABELS, sample_names=[*names])
    records = cp.examples(directory, progress=log)
    assert {record["index"]: record["name"] for record in records} == dict(enumerate("abcd"))
    assert log.messages == [
        f"left out: {directory}/step-0030.h5: test: other samples, by their names, than in most dumps"
    ]


def test_a_foreign_file_needs_no_more_than_features_labels_and_logits(tmp_path: Path) -> None:
    for step, row in enumerate(PREDICTED):
        with h5py.File(tmp_path / f"step_{step}.h5", "w") as file:
            file["test/features"], file["test/labels"] = np.zeros((4, 2)), LABELS
            file["test/logits"] = logits_of(row).astype(">f4")
    assert [record["first_learned"] for record in cp.examples(tmp_path)] == [None, 2, 1, 0]


def test_an_unknown_kind_names_the_known_ones(run: Path) -> None:
    with pytest.raises(UsageError, match="`by='exemple'`: expected example, class, step, run; did you mean example"):
        cp.examples(run, by="exemple")
