"""Tests of the series of metrics read from records, CSV files and groups of runs."""

import json
from pathlib import Path

import numpy as np
import pytest

import ckpt_probe as cp
from ckpt_probe.dumps import DumpWriter
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.findings.detection import find_events
from ckpt_probe.findings.series import series_of
from ckpt_probe.progress import MessageLog
from ckpt_probe.reporting.findings import findings_footnotes

STEPS = [int(step) for step in np.unique(np.geomspace(1, 6000, 40).round())]


def write(path: Path, jump: int, seed: int = 0, metrics: tuple[str, ...] = ("accuracy",)) -> Path:
    generator = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, step in enumerate(STEPS):
        values = {name: float(index >= jump + 6 * k) + 0.02 * generator.normal() for k, name in enumerate(metrics)}
        lines.append(json.dumps({"step": step, "split": "test", **values}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_values_are_corrected_by_their_bias_and_error_columns_have_no_series() -> None:
    rows = [{"step": s, "split": "test", "mir": 1.0, "mir_bias": 0.25, "mir_stderr": 0.1, "samples": 5} for s in (2, 1)]
    [series] = series_of([*rows, {"step": 3, "split": "test", "mir": None}])
    assert series.metric == "mir"
    assert series.steps.tolist() == [1, 2]
    assert series.values.tolist() == [0.75, 0.75]
    assert series.absent == 1
    assert series.name == "test mir"


def test_an_unreliable_bias_is_not_subtracted() -> None:
    row = {"split": "test", "mir": 1.0, "mir_bias": 0.25, "missing": "mir_bias: the sample is too small"}
    [series] = series_of([{"step": 1, **row}, {"step": 2, **row}])
    assert series.values.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("other", [{"missing": "mir_bias: the sample is too small"}, {"mir_bias": None}])
def test_values_with_and_without_a_reliable_bias_are_not_mixed_in_a_series(tmp_path: Path, other: dict) -> None:
    draw = np.random.default_rng(0)
    row = {"split": "test", "mir_bias": 0.25, "mir_stderr": 0.01}
    rows = [
        {"step": step, **row, "mir": 1 + 0.01 * draw.normal(), **(other if step < 20 else {})} for step in range(40)
    ]
    [series] = series_of(rows)
    assert series.values.tolist() == [each["mir"] for each in rows]
    file = tmp_path / "records.jsonl"
    file.write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    assert list(cp.events(file)) == []


def test_rows_of_different_layers_and_texts_form_separate_series() -> None:
    rows = [{"step": s, "tensor": name, "norm": 1.0} for s in (1, 2) for name in ("a", "b")]
    assert [each.name for each in series_of(rows)] == ["a norm", "b norm"]
    rows[0] |= {"audit.findings": "step-1: its name says step 1, its metadata says 2"}
    assert [each.name for each in series_of(rows)] == ["a norm", "b norm"]
    with pytest.raises(DataError, match="several records at step 1"):
        series_of([{"step": 1, "x": 1.0}, {"step": 1, "x": 2.0}])
    alone = [{"step": step, "x": float(step)} for step in (1, 2)] + [{"step": step, "y": 3.0} for step in (1, 2, 2)]
    assert [(each.name, [*each.steps], [*each.values]) for each in series_of(alone)] == [
        ("x", [1, 2], [1, 2]),
        ("y", [1, 2], [3, 3]),
    ]
    with pytest.raises(DataError, match="no record has a step"):
        series_of([{"x": 1.0}])
    without = {"step": 2, "batch_loss": 1.0}
    with pytest.raises(UsageError, match=r"there are: test$"):
        series_of([{"step": 1, "split": "test", "x": 1.0}, without], splits=["train"])
    with pytest.raises(UsageError, match=r"no record has a split$"):
        series_of([without], splits=["train"])


def test_a_csv_file_has_series_of_its_numeric_columns_by_step(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text("step,loss,note\n1,0.5,a\n2,,b\n3,nan,c\n")
    rows = cp.read_records(file)
    assert rows[0] == {"step": 1.0, "loss": 0.5, "note": "a"}
    assert rows[1]["loss"] is None
    [series] = series_of(rows)
    assert (series.values.tolist(), series.absent) == ([0.5], 2)
    file.write_text("epoch,loss\n1,2\n")
    with pytest.raises(DataError, match="no column step; there are: epoch, loss"):
        cp.events(file)


def test_events_are_found_in_the_requested_splits_only(tmp_path: Path) -> None:
    rows = [{"step": step, "split": split, "x": float(step > 100)} for step in STEPS for split in ("train", "test")]
    file = tmp_path / "run.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {limit["split"] for limit in cp.events(file).limits} == {"train", "test"}
    assert {limit["split"] for limit in cp.events(file, splits="test").limits} == {"test"}
    assert [(limit["checkpoints"], limit["absent"]) for limit in cp.events(file).limits] == [(len(STEPS), 0)] * 2
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:12]))
    assert [(limit["checkpoints"], limit["absent"]) for limit in cp.events(file).limits] == [(6, 0)] * 2


def test_a_header_in_another_spelling(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text("\ufeffStep, loss\n1, 0.5\n2, 0.25\n")
    assert cp.read_records(file) == [{"step": 1.0, "loss": 0.5}, {"step": 2.0, "loss": 0.25}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("step,loss\n", "a header, but no row"),
        ("step;loss\n1;2\n", "no column step; there are: step;loss"),
        ("step,loss,loss\n1,2,3\n", "two columns are called loss; rename one"),
        ("step,loss\n1,2\n2,3,4\n", r"line 3 has more cells than the header has columns \(2\)"),
        ("step,loss\n1,2\nx,3\n", "line 3: step 'x', expected a number"),
    ],
)
def test_a_csv_file_that_cannot_be_read_has_the_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        cp.events(file)


def test_a_metric_that_a_seed_lacks_is_tested_in_the_others(tmp_path: Path) -> None:
    write(tmp_path / "g" / "seed-0.jsonl", 15, 0, ("class.mir", "accuracy"))
    write(tmp_path / "g" / "seed-1.jsonl", 15, 1)
    progress = MessageLog()
    both = cp.events(tmp_path / "g", metrics="mir,accuracy")
    assert [(each.seed, each.metric) for each in both.series] == [
        ("seed-0", "class.mir"),
        ("seed-0", "accuracy"),
        ("seed-1", "accuracy"),
    ]
    assert "g/seed-1: no value of test class.mir, which other runs of the group have" in findings_footnotes(both)
    cp.events(tmp_path / "g", metrics="class.mir", progress=progress)
    assert progress.messages == ["g: seed-1 has no value of these metrics and is left out"]
    with pytest.raises(DataError, match=r"events: no metric 'class.mr'; did you mean class.mir"):
        cp.events(tmp_path / "g", metrics="class.mr")


def test_records_without_a_step_are_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "run.jsonl", 20)
    with file.open("a") as lines:
        lines.write('{"checkpoint": "final", "split": "test", "accuracy": 1.0}\n')
    progress = MessageLog()
    assert len(cp.events(file, progress=progress).series[0].steps) == len(STEPS)
    assert progress.messages == [f"{file}: 1 of {len(STEPS) + 1} records have no step and are left out"]


def test_events_of_a_csv_file_equal_those_of_the_records(tmp_path: Path) -> None:
    records = write(tmp_path / "run.jsonl", 20)
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    table = tmp_path / "run.csv"
    table.write_text("step,split,accuracy\n" + "".join(f"{r['step']},test,{r['accuracy']!r}\n" for r in rows))
    first, second = cp.events(records), cp.events(table)
    assert list(first) == list(second)
    assert first[0]["from_step"] < STEPS[20] <= first[0]["to_step"]


def test_a_directory_with_a_run_per_seed_is_a_group(tmp_path: Path) -> None:
    for seed in range(2):
        write(tmp_path / "plain" / f"seed-{seed}" / "metrics.jsonl", 15, seed, ("class.mir", "accuracy"))
    events = cp.events(tmp_path / "plain")
    assert {(event["group"], event["seed"]) for event in events} == {("plain", "seed-0"), ("plain", "seed-1")}
    assert [(order["before"], order["after"]) for order in events.orders] == [("test class.mir", "test accuracy")] * 2
    named = cp.events(groups={"p": tmp_path / "plain"}, metrics="acc")
    assert {event["group"] for event in named} == {"p"}
    assert {event["metric"] for event in named} == {"accuracy"}


def test_missing_sources_and_an_invalid_level_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs records or dumps"):
        cp.events()
    with pytest.raises(UsageError, match="`level=2`"):
        cp.events(write(tmp_path / "a.jsonl", 15), level=2)


def test_a_change_of_two_samples_of_an_otherwise_constant_accuracy_is_no_event() -> None:
    steps = np.unique(np.geomspace(65, 6000, 42).round())
    values = np.where(np.arange(len(steps)) > 30, 718, 716) / 2437
    records = [
        {"step": int(step), "split": "test", "samples": 2437, "accuracy": value, "loss": value + 0.1 / step}
        for step, value in zip(steps, values, strict=True)
    ]
    accuracy, loss = series_of(records)
    assert (accuracy.grain, loss.grain) == (1 / 2437, 0)
    assert find_events([accuracy])[0] == []
    assert find_events([series_of([{**each, "samples": None} for each in records])[0]])[0] != []


def test_a_directory_of_dumps_has_the_series_of_its_records_and_a_bar_for_each_run(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        for step in (0, 10, 20):
            with DumpWriter(tmp_path / run / f"step-{step}.h5", None, classes=3, features=4) as writer:
                writer.write_classifier(generator.normal(size=(3, 4)))
                writer.start_split("test", samples=12, logits=False)
                labels = np.arange(12) % 3
                writer.append("test", generator.normal(size=(12, 4)) + labels[:, None], labels)
    progress = MessageLog()
    found = cp.events([tmp_path / "a", tmp_path / "b"], metrics="mir,nc1.pinv", splits="test", progress=progress)
    assert [(each.group, each.metric) for each in found.series] == [
        (run, metric) for run in ("a", "b") for metric in ("class.mir", "nc1.pinv")
    ]
    for each in found.series:
        records = list(cp.analyze(tmp_path / each.group, layers=False))
        assert each.values.tolist() == [record[each.metric] for record in records]
        assert each.steps.tolist() == [0, 10, 20]
    assert progress.messages == []
