"""Tests of whole records of examples, classes, checkpoints and runs, and of the errors of unreadable predictions."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

import ckpt_probe as cp
from ckpt_probe.dumps import open_dump
from ckpt_probe.errors import DataError
from ckpt_probe.moments.quality import Scored
from ckpt_probe.predictions.scores import BLOCK_BYTES, read_scores
from ckpt_probe.progress import MessageLog

from .conftest import LABELS, logits_of, write_dump

Writing = Callable[..., Path]
PROBABILITIES = np.exp(3 * np.eye(3)) / (math.exp(3) + 2)
JENSEN_SHANNON = jensenshannon(*PROBABILITIES[:2]) ** 2
"""Divergence of two rows with different predictions, whose logits are 3 at the predicted class, else 0."""
RIGHT, WRONG = math.log(1 + 2 * math.exp(-3)), math.log(2 + math.exp(3))
"""Losses of correct and wrong predictions."""


def test_records_of_checkpoints_have_every_number_or_its_reason(run: Path) -> None:
    names = ("function.disagreement", "function.divergence", "function.error_agreement", "function.learned",
             "function.forgotten")  # fmt: skip
    rows = [
        (0, 0.5, (None, None, None, None, None), f"{', '.join(names)}: the first checkpoint"),
        (10, 0.5, (0.5, 0.5 * JENSEN_SHANNON, 1, 0.25, 0.25), None),
        (20, 0.75, (0.5, 0.5 * JENSEN_SHANNON, 0, 0.25, 0), None),
    ]
    for record, (step, accuracy, values, missing) in zip(cp.examples(run, by="step"), rows, strict=True):
        numbers = {
            name: value if value is None else pytest.approx(value) for name, value in zip(names, values, strict=True)
        }
        assert record == {"checkpoint": f"step-{step:04d}", "step": step, "split": "test", "samples": 4,
                          "accuracy": accuracy, **numbers, "missing": missing}  # fmt: skip


def test_records_of_classes_count_examples_and_their_events(run: Path) -> None:
    names = ("class_name", "samples", "learned", "never_learned", "forgotten", "forgetting_events",
             "first_learned.histogram", "forgotten.histogram")  # fmt: skip
    rows = [
        ("ant", 2, 2, 0, 0, 0, "0:1 10:1", "0:2"),
        ("bee", 1, 1, 0, 1, 1, "20:1", "1:1"),
        ("cow", 1, 0, 1, 0, 0, "", "0:1"),
    ]
    records = cp.examples(run, by="class")
    for label, (record, row) in enumerate(zip(records, rows, strict=True)):
        assert record == {"split": "test", "class": label, **dict(zip(names, row, strict=True)), "missing": None}


def test_records_of_examples_are_sorted_from_the_worst_to_the_best(run: Path) -> None:
    names = ("index", "class", "class_name", "first_learned", "forgotten", "never_learned", "right", "changed",
             "predicted", "predicted_name", "loss", "missing")  # fmt: skip
    rows = [
        (3, 2, "cow", None, 0, True, 0, 1, 1, "bee", WRONG, "first_learned: predicted wrongly at the last checkpoint"),
        (2, 1, "bee", 20, 1, False, 2, 2, 1, "bee", RIGHT, None),
        (1, 0, "ant", 10, 0, False, 2, 1, 0, "ant", RIGHT, None),
        (0, 0, "ant", 0, 0, False, 3, 0, 0, "ant", RIGHT, None),
    ]
    for record, row in zip(cp.examples(run), rows, strict=True):
        assert record.pop("loss") == pytest.approx(row[-2], rel=1e-6)
        values = {name: value for name, value in zip(names, row, strict=True) if name != "loss"}
        assert record == {"split": "test", "name": None, **values}


def test_records_of_pairs_of_runs_compare_their_last_checkpoints(run: Path, write_run: Writing) -> None:
    other = write_run("other", [logits_of([2, 2, 2, 2]), logits_of([1, 0, 1, 1])], LABELS)
    [record] = cp.examples([run, other], by="run")
    assert record == {
        "run": "run", "other": "other", "split": "test", "step": 20, "other_step": 10, "samples": 4,
        "accuracy": 0.75, "other_accuracy": 0.5, "function.disagreement": 0.25,
        "function.divergence": pytest.approx(0.25 * JENSEN_SHANNON), "function.error_agreement": 1.0,
        "churn.wins": 0.0, "churn.losses": 0.25, "missing": None,
    }  # fmt: skip
    unlabelled = [write_run(name, [logits_of(row)], None) for name, row in (("u", [0, 1]), ("v", [0, 2]))]
    [record] = cp.examples(unlabelled, by="run")
    assert record["missing"] == (
        "function.error_agreement: the rows have no labels; churn.wins: the rows have no labels; "
        "churn.losses: the rows have no labels"
    )


def test_a_single_checkpoint_states_why_nothing_can_be_forgotten(write_run: Writing) -> None:
    path = write_run("one", [logits_of([0, 1, 1, 0])], LABELS)
    reason = "one checkpoint has predictions, so there is no other to compare it with"
    assert {record["missing"] for record in cp.examples(path, by="class")} == {f"forgotten: {reason}"}
    [record] = cp.examples(path, by="step")
    assert record["missing"].endswith(f"function.forgotten: {reason}")
    worst, *_, best = cp.examples(path)
    assert best["missing"] == f"forgotten, changed: {reason}"
    assert worst["missing"] == f"first_learned: predicted wrongly at the last checkpoint; forgotten, changed: {reason}"


def error_of(path: Path) -> str:
    with open_dump(path) as dump, pytest.raises(DataError) as caught:
        read_scores(dump, "test")
    return str(caught.value)


def test_errors_name_the_dump_the_split_and_the_row(tmp_path: Path) -> None:
    file = tmp_path / "step-1.h5"
    for value, kind in ((math.nan, "NaN"), (math.inf, "infinite")):
        logits = logits_of([0, 1, 1, 0])
        logits[2, 1] = value
        write_dump(file, logits, LABELS)
        assert error_of(file) == f"{file}: test: the logits of row 2 are {kind}, so it has no prediction"
    write_dump(file, Scored(np.array([0, 1, 1, 0]), np.array([1, math.nan, 1, 1])), LABELS)
    assert error_of(file) == f"{file}: test: the loss of row 1 is NaN, so it has no prediction"
    write_dump(file, Scored(np.array([0, 1, 1, 0]), np.array([1, 2, 3, 4])), np.array([0, -1, 0, 0]))
    with open_dump(file) as dump:
        scores = read_scores(dump, "test")
    assert (scores.predicted.tolist(), scores.classes) == ([0, 1, 1, 0], 0)
    write_dump(file, None, LABELS)
    assert error_of(file) == (
        f"{file}: test: no logits, predictions or classifier weights are stored; extract again with "
        "`with_logits=True` and `overwrite=True`"
    )


def test_a_largest_logit_of_minus_infinity_is_no_prediction_but_a_smaller_one_is(tmp_path: Path) -> None:
    file = tmp_path / "step-1.h5"
    logits = logits_of([0, 1, 1, 0])
    logits[0, 2] = -math.inf
    write_dump(file, logits, LABELS)
    with open_dump(file) as dump:
        scores = read_scores(dump, "test")
    assert scores.loss is not None
    assert scores.loss.tolist() == pytest.approx([math.log(1 + math.exp(-3)), WRONG, RIGHT, WRONG])
    logits[1] = -math.inf
    write_dump(file, logits, LABELS)
    assert "the logits of row 1 are infinite" in error_of(file)
    assert BLOCK_BYTES >= 2**20


def test_dumps_that_are_left_out_are_named_with_their_rows(run: Path, write_run: Writing) -> None:
    write_dump(run / "step-0030.h5", logits_of([0, 1]), LABELS[:2])
    write_dump(run / "step-0040.h5", logits_of([0, 1, 1, 0]), LABELS[::-1].copy())
    progress = MessageLog()
    records = cp.examples(run, by="step", progress=progress)
    kept = "step-0000 and 2 more; extract it from the same data"
    reasons = [
        f"{run / 'step-0030.h5'}: test: 2 rows, not the 4 of {kept}",
        f"{run / 'step-0040.h5'}: test: 4 rows with other labels than those of {kept}",
    ]
    assert progress.messages == [f"left out: {reason}" for reason in reasons]
    assert [record["missing"] for record in records[3:]] == reasons
    other = write_run("less", [logits_of([0, 1])], LABELS[:2])
    with pytest.raises(DataError) as caught:
        cp.examples([run, other], by="run")
    assert str(caught.value) == "run and less: test: 4 and 2 rows; extract both from the same data"
