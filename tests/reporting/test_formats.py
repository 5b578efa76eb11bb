"""Tests of formats of records: JSON Lines, CSV, data frames, Parquet, and event files of TensorBoard."""

import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ckpt_probe as cp
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.reporting.conditions import write_event_files
from ckpt_probe.reporting.formats import to_json_line, write_parquet

RECORDS = [
    {"checkpoint": "a", "step": 0, "split": "train", "accuracy": 0.25, "loss": 1, "missing": None, "nc1.pinv": None},
    {"checkpoint": "b", "step": None, "split": "train", "accuracy": None, "loss": 0.5, "missing": None, "own": True},
]


def test_a_data_frame_has_a_row_per_record_and_a_column_per_name() -> None:
    frame = cp.to_dataframe(iter(RECORDS))
    assert list(frame.columns) == ["checkpoint", "step", "split", "accuracy", "loss", "missing", "nc1.pinv", "own"]
    kinds = {name: str(kind) for name, kind in frame.dtypes.items()}
    assert kinds == {
        "checkpoint": "string",
        "step": "Int64",
        "split": "string",
        "accuracy": "float64",
        "loss": "float64",
        "missing": "string",
        "nc1.pinv": "float64",
        "own": "boolean",
    }
    assert frame["accuracy"].tolist() == pytest.approx([0.25, np.nan], nan_ok=True)
    assert frame["loss"].tolist() == [1.0, 0.5]
    assert frame["step"][1] is pd.NA
    assert frame["nc1.pinv"].isna().all()


def test_parquet_keeps_every_digit_of_a_record(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    record = cp.analyze_features(rng.normal(size=(60, 5)), np.arange(60) % 3, rng.normal(size=(3, 5)))
    records = [{"step": step, **record} for step in (0, 10)]
    assert write_parquet(records, tmp_path / "r.parquet") == 2
    back = pd.read_parquet(tmp_path / "r.parquet")
    for name, value in record.items():
        values = back[name].tolist()
        assert values == [value, value] or (value is None and back[name].isna().all()), name
    assert back["step"].dtype == "int64"


def test_names_that_utf_8_cannot_encode_are_escaped(tmp_path: Path) -> None:
    write_parquet([{"checkpoint": "mod\udce9le", "loss\ud800": 1.0}], tmp_path / "a.parquet")
    assert cp.read_records(tmp_path / "a.parquet") == [{"checkpoint": "mod\\udce9le", "loss\\ud800": 1.0}]


def test_no_records_give_an_empty_data_frame() -> None:
    assert cp.to_dataframe([]).shape == (0, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.5, "a"], "value: some records hold a number, some a text"),
        ([1, True], "value: some records hold a truth value, some a whole number"),
        ([0.5, [1, 2]], "record 1: value is a list"),
        ([2**63, 1], "value: a whole number of more than 64 bits"),
        ([0.5, 10**400], "value: a whole number of more than 64 bits"),
    ],
)
def test_values_that_cannot_form_a_column_are_an_error_that_names_it(values: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        cp.to_dataframe([{"value": value} for value in values])


def test_a_line_of_json_has_no_nan_or_infinity() -> None:
    with pytest.raises(DataError, match=r"^loss is nan, rate is -inf, which JSON lacks; write a file of another"):
        to_json_line({"step": 1, "loss": math.nan, "rate": -math.inf})


@pytest.mark.parametrize(("step", "text"), [(0.5, "0.5"), (2**63, r"9\.22337e\+18")])
def test_a_step_that_tensorboard_cannot_hold_is_an_error(step: float, text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"run: step {text}: TensorBoard has whole steps"):
        write_event_files({"run": [{"step": step, "loss": 1.0}]}, tmp_path / "events")


def test_existing_files_and_missing_packages_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.parquet").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        write_parquet(RECORDS, tmp_path / "r.parquet")
    monkeypatch.setitem(sys.modules, "pandas", None)
    for call in (lambda: cp.to_dataframe(RECORDS), lambda: write_parquet(RECORDS, tmp_path / "new.parquet")):
        with pytest.raises(UsageError, match=r'pip install "ckpt-probe\[frames\]"'):
            call()
    assert [file.name for file in tmp_path.iterdir()] == ["r.parquet"]


def records(*splits: str) -> list[dict]:
    return [
        {"checkpoint": f"s{s}", "step": s, "split": split, "class.mir": s / 8, "reference.mir": 0.75, "nc1.pinv": nc1}
        for s, nc1 in ((0, 4.0), (2, None), (4, 1.0))
        for split in splits
    ]


def read(directory: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return (step, value) pairs by run and tag."""
    scalars = {}
    for run in sorted({file.parent for file in directory.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(run))
        events.Reload()
        tags = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        scalars[run.relative_to(directory).as_posix()] = tags
    return scalars


def test_tensorboard_has_a_run_for_each_split_and_one_for_values_at_collapse(tmp_path: Path) -> None:
    values, notes = write_event_files({"run": records("train", "test")}, tmp_path / "events")
    mir, nc1 = [(0, 0.0), (2, 0.25), (4, 0.5)], [(0, 4.0), (4, 1.0)]
    assert read(tmp_path / "events") == {
        "train": {"class/mir": mir, "nc1/pinv": nc1},
        "test": {"class/mir": mir, "nc1/pinv": nc1},
        "at-collapse": {"class/mir": [(0, 0.75), (2, 0.75), (4, 0.75)], "nc1/pinv": [(0, 0.0), (4, 0.0)]},
    }
    assert values == 10
    assert notes == ["run: 2 values are missing"]


def test_conditions_are_separate_runs_and_names_cannot_lead_out_of_the_directory(tmp_path: Path) -> None:
    write_event_files({"a": records("../../out"), "b/c": records("train")}, tmp_path / "events")
    assert set(read(tmp_path / "events")) == {"a/_.._out", "a/at-collapse", "b_c/train", "b_c/at-collapse"}
    assert [file.name for file in tmp_path.iterdir()] == ["events"]


def test_other_coordinates_of_a_record_are_part_of_its_run(tmp_path: Path) -> None:
    write_event_files(
        {"run": [{"step": 1, "split": "test", "class": c, "variance": c / 2} for c in (0, 1)]}, tmp_path / "e"
    )
    assert set(read(tmp_path / "e")) == {"test/class-0", "test/class-1", "at-collapse"}


def test_records_without_step_are_counted_and_repeated_steps_refused(tmp_path: Path) -> None:
    rows = records("test")
    _, notes = write_event_files({"run": [*rows, {"split": "test", "class.mir": 1.0}]}, tmp_path / "events")
    assert notes[0] == "run: 1 of 4 records have no step, left out"
    with pytest.raises(DataError, match=r"test: class\.mir has several values at step 0; .* \(NAME=FILE\)"):
        write_event_files({"run": rows * 2}, tmp_path / "twice")
    with pytest.raises(DataError, match="no record has a step and a number"):
        write_event_files({"run": [{"alpha": 0.5, "loss": 1.0}]}, tmp_path / "none")
    assert [file.name for file in tmp_path.iterdir()] == ["events"]


def test_an_existing_directory_and_a_missing_package_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "events").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        write_event_files({"run": records("test")}, tmp_path / "events")
    write_event_files({"run": records("test")}, tmp_path / "events", overwrite=True)
    assert "test" in read(tmp_path / "events")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r'pip install "ckpt-probe\[tensorboard\]"'):
        write_event_files({"run": records("test")}, tmp_path / "others")
