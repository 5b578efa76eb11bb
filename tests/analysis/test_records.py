"""Tests of `Records`: computed during iteration, stored for the next one, shown in notebooks, and errors raised."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

import ckpt_probe as cp
from ckpt_probe.errors import DataError, UsageError

UNFINISHED = """
from ckpt_probe import DataError, Records


def rows():
    try:
        yield {"step": 0}
        yield {"step": 1}
    except DataError:
        pass


records = Records(rows())
print(records[0]["step"])
"""

RECORDS = [
    {"checkpoint": f"step-{step}", "step": step, "split": split, "accuracy": step / 10, "class.mir": mir, "note": "x"}
    for step, mir in ((0, 0.5), (5, None), (10, 0.75))
    for split in ("train", "test")
]


def failing() -> Iterator[dict]:
    yield RECORDS[0]
    raise DataError("step-5.h5: damaged")


def test_records_are_computed_one_by_one_and_stored() -> None:
    drawn = []
    records = cp.Records(drawn.append(record) or record for record in RECORDS)
    assert next(iter(records)) == RECORDS[0]
    assert records[1] == RECORDS[1]
    assert len(drawn) == 2
    assert list(records) == list(records) == RECORDS
    assert (len(records), records[-1], list(records[1:3])) == (6, RECORDS[-1], RECORDS[1:3])
    assert len(drawn) == 6


def test_records_equal_lists_of_equal_records() -> None:
    assert cp.Records(RECORDS) == RECORDS
    assert cp.Records(RECORDS) == RECORDS
    assert cp.Records(RECORDS) == cp.Records(iter(RECORDS))
    assert cp.Records(RECORDS) != RECORDS[:-1]
    with pytest.raises(TypeError, match="unhashable"):
        hash(cp.Records(RECORDS))


def test_an_error_during_iteration_is_raised_every_time() -> None:
    records = cp.Records(failing())
    for _ in range(2):
        with pytest.raises(DataError, match="damaged"):
            list(records)
        with pytest.raises(DataError, match="damaged"):
            len(records)
    assert records[0] == RECORDS[0]


def test_records_of_an_interrupted_iteration_are_refused() -> None:
    def interrupted() -> Iterator[dict]:
        yield RECORDS[0]
        raise KeyboardInterrupt

    records = cp.Records(interrupted())
    with pytest.raises(KeyboardInterrupt):
        list(records)
    with pytest.raises(DataError, match="interrupted"):
        list(records)


def test_records_that_are_never_read_to_their_end_print_nothing_at_the_end_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", UNFINISHED], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_notebook_shows_a_line_for_each_metric_with_its_values() -> None:
    root = ET.fromstring(cp.Records(RECORDS)._repr_html_())
    assert root.findtext("caption") == "6 records, step 0 to 10"
    header = [cell.text for cell in root.iter("th")]
    assert header == ["metric", "train", "train first", "train last", "test", "test first", "test last", "at collapse"]
    rows = [["".join(cell.itertext()) for cell in row.iter("td")] for row in root.findall("tr")]
    assert rows == [
        ["acc (accuracy)", "", "0", "1", "", "0", "1", ""],
        ["MIR (class.mir)", "", "0.5", "0.75", "", "0.5", "0.75", ""],
    ]
    # The line has a gap because the value at step 5 is missing.
    assert [path.attrib["d"].count("M") for path in root.iter("path")] == [1, 1, 2, 2]


def test_the_value_at_collapse_is_shown_and_hostile_names_are_escaped() -> None:
    records = [{**record, "reference.mir": 0.9, "<b>": 1.0, "split": "<i>"} for record in RECORDS]
    root = ET.fromstring(cp.Records(records)._repr_html_())
    assert not {"b", "i"} & {element.tag for element in root.iter()}
    assert [cell.text for cell in root.iter("td") if cell.text in {"0.9", "<b>"}] == ["0.9", "<b>"]


def test_files_and_dumps_are_read_as_records(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    assert cp.read_records(tmp_path / "records.jsonl") == RECORDS
    with h5py.File(tmp_path / "step-1.h5", "w") as file:
        file["test/features"], file["test/labels"] = np.eye(6), np.arange(6) % 3
    analyzed = cp.analyze(tmp_path)
    assert analyzed == cp.analyze(tmp_path / "step-1.h5")
    assert "step 1 to 1" in analyzed._repr_html_()


def test_records_come_from_directories_several_files_and_groups(tmp_path: Path) -> None:
    for run, value in (("a", 0.5), ("b", 0.7)):
        (tmp_path / run).mkdir()
        (tmp_path / run / "metrics.jsonl").write_text(json.dumps({"step": 1, "accuracy": value}) + "\n")
        (tmp_path / run / "other.jsonl").write_text(json.dumps({"step": 9}) + "\n")
    a, b = ({"step": 1, "accuracy": value} for value in (0.5, 0.7))
    assert cp.read_records(tmp_path / "a") == [a]
    assert cp.read_records([str(tmp_path / "a"), tmp_path / "b" / "metrics.jsonl"]) == [a, b]
    grouped = cp.read_records({"plain": tmp_path / "a", "both": [tmp_path / "a", tmp_path / "b"]})
    assert grouped == [{"group": "plain", **a}, {"group": "both", **a}, {"group": "both", **b}]
    assert list(grouped[0]) == ["group", "step", "accuracy"]
    (tmp_path / "b" / "metrics.jsonl").unlink()
    assert cp.read_records(tmp_path / "b") == [{"step": 9}]
    with pytest.raises(DataError, match=r"no file of records \(\.jsonl\) in this directory"):
        cp.read_records(tmp_path)


def test_files_of_every_format_have_the_same_records(tmp_path: Path) -> None:
    records = [
        {"checkpoint": "10", "step": step, "split": "test", "class.mir": value, "missing": None}
        for step, value in ((1, 0.25), (2, None), (3, 1e-9))
    ]
    for name in ("a.jsonl", "b.CSV", "c.parquet"):
        cp.export(records, tmp_path / name)
        assert cp.read_records(tmp_path / name) == records
        assert cp.export(tmp_path / name, tmp_path / f"{name}.jsonl") == records
        cp.report([tmp_path / name], out=tmp_path / f"{name}.html")
    frame = cp.to_dataframe(records)
    cp.plot(frame, tmp_path / "frame.svg", metrics="class.mir")
    assert cp.export(frame, tmp_path / "frame.jsonl") == records
    for function in (cp.read_records, cp.events, cp.compare):
        with pytest.raises(UsageError, match=r"expected the path of a file .* pandas.DataFrame"):
            function(frame)  # pyright: ignore[reportArgumentType, reportCallIssue]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"split": ["test"]}', r"split is \['test'\], expected a number or a text"),
        ('{"features": "x"}', "features is 'x', expected a number"),
    ],
)
def test_positions_and_counts_of_other_kinds_are_an_error_of_one_line(
    tmp_path: Path, record: str, message: str
) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"step": 1}}\n{record}\n')
    with pytest.raises(DataError, match=rf"a\.jsonl: record 2: {message}"):
        cp.read_records(tmp_path / "a.jsonl")


def test_a_missing_dump_and_a_wrong_argument_are_errors_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        cp.analyze(tmp_path / "nowhere.h5")
    with pytest.raises(cp.UsageError, match="min_samples"):
        cp.analyze(tmp_path / "nowhere.h5", min_samples=0)


def test_records_in_memory_in_place_of_paths_and_paths_in_place_of_records_are_errors_of_one_line() -> None:
    records = [{"step": 1, "accuracy": 0.5}]
    for function in (cp.read_records, cp.events):
        with pytest.raises(
            UsageError, match="expected the path of a file or a directory, found an object of type dict"
        ):
            function(records)  # pyright: ignore[reportArgumentType]
    for wrong in ("records.jsonl", Path("records.jsonl"), records[0]):
        with pytest.raises(DataError, match=r"record 0 is a .*; read the records of a file by `read_records`"):
            cp.to_dataframe(wrong)  # pyright: ignore[reportArgumentType]


def test_numbers_of_numpy_in_records_are_drawn(tmp_path: Path) -> None:
    records = [{"step": np.int64(step), "accuracy": np.float32(step / 4)} for step in range(3)]
    cp.plot(records, tmp_path / "figure.svg", metrics="accuracy")
    assert (tmp_path / "figure.svg").exists()
