"""Tests of the command `events`: its table, drawing, JSON Lines, files, and messages."""

import json
from pathlib import Path

import numpy as np
import pytest

from ckpt_probe.cli.app import run

STEPS = [int(step) for step in np.unique(np.geomspace(1, 6000, 40).round())]


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return records of a run whose accuracy jumps late and whose MIR jumps early; NC1 is noise."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    with Path("run.jsonl").open("w") as file:
        for index, step in enumerate(STEPS):
            noise = 0.02 * generator.normal(size=3)
            values = {"accuracy": (index > 28) + noise[0], "class.mir": (index > 15) + noise[1], "nc1.pinv": noise[2]}
            file.write(json.dumps({"step": step, "split": "test", **values}) + "\n")
    return Path("run.jsonl")


def test_the_table_has_intervals_and_the_smallest_detectable_change(
    records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["events", "run.jsonl"]) == 0
    output = capsys.readouterr().out
    header = ["metric", "event", "from", "step", "to", "step", "before", "after", "smallest", "detectable"]
    assert output.splitlines()[0].split() == header
    assert "test accuracy   abrupt change" in output
    quiet = next(line for line in output.splitlines() if line.startswith("test nc1.pinv"))
    assert "no event" in quiet
    assert 0 < float(quiet.split()[-1]) < 1
    assert "family-wise error of 5%" in output
    assert "In this run, test class.mir left its initial level by step" in output
    drawing = [line for line in output.splitlines() if "█" in line]
    assert drawing[0].startswith("test class.mir")
    assert drawing[1].startswith("test accuracy")
    assert drawing[0].index("█") < drawing[1].index("█")


def test_json_has_an_object_per_event(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["events", "run.jsonl", "--json", "-o", "events.csv", "--figure", "events.svg"]) == 0
    output = capsys.readouterr()
    events = [json.loads(line) for line in output.out.splitlines()]
    assert {event["kind"] for event in events} == {"change", "onset", "end"}
    for event in events:
        assert {"kind", "metric", "from_step", "to_step"} <= event.keys()
        assert ("abrupt" in event) == (event["kind"] == "change")
        jump = {"accuracy": STEPS[29], "class.mir": STEPS[16]}[event["metric"]]
        assert event["from_step"] < jump <= event["to_step"]
    assert Path("events.csv").read_text().count("\n") == len(events) + 1
    assert "test class.mir" in Path("events.svg").read_text()
    assert run(["events", "run.jsonl", "-o", "events.csv"]) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "events needs records or dumps"),
        (["nowhere.jsonl"], 1, "nowhere.jsonl: no such file"),
        (["empty.jsonl"], 1, "empty.jsonl: no record in it"),
        (["run.jsonl", "--level", "7"], 2, "--level 7"),
        (["run.jsonl", "--split", "train"], 2, "there are: test"),
        (["run.jsonl", "--metric", "class.hdr"], 1, "class.hdr"),
        (["--group", "run.jsonl"], 2, "--group: expected NAME=DIR"),
        (["--group", "a=x", "--group", "a=y"], 2, "--group: expected NAME=DIR, each with another name"),
        (["run.jsonl", "--json", "--csv"], 2, "exclude each other"),
    ],
)
def test_invalid_arguments_and_data_are_refused_in_one_line(
    records: Path, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty.jsonl").touch()
    assert run(["events", *words]) == code
    [line] = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_a_run_of_few_checkpoints_has_no_events_and_a_reason(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = records.read_text().splitlines()[:10]
    Path("short.jsonl").write_text("\n".join(lines))
    assert run(["events", "short.jsonl"]) == 0
    output = capsys.readouterr().out
    assert "10 checkpoints with a value; events need at least 12" in output
