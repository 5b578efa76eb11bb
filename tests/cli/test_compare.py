"""Tests of the command `compare`: its table, JSON Lines, CSV, and refused input."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from ckpt_probe.analysis import compare
from ckpt_probe.cli.app import run


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write two groups of four seeds: accuracy differs by 0.02 to 0.05 in each pair, the loss with alternating sign."""
    monkeypatch.chdir(tmp_path)
    for name, shift in (("plain", (0, 0, 0, 0)), ("other", (2, 3, 5, 4))):
        for seed, more in enumerate(shift):
            loss = 0.1 + (0.01 if name == "other" and seed % 2 else 0) - (0.01 if name == "other" else 0) / 2
            values = {"accuracy": 0.9 + 0.001 * seed + 0.01 * more, "loss": loss}
            record = json.dumps({"step": 50, "split": "test", **values})
            file = tmp_path / name / f"seed-{seed}" / "metrics.jsonl"
            file.parent.mkdir(parents=True)
            file.write_text(record + "\n")
    return ["plain", "other"]


def test_the_table_has_values_verdicts_and_method(groups: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *groups, "--metric", "accuracy,loss"]) == 0
    output = capsys.readouterr().out.splitlines()
    columns = ["metric", "group", "seeds", "mean", "std", "difference", "interval", "confidence", "verdict"]
    assert output[0].split() == columns
    assert "at most 87.5 %" in output[2]
    assert output[1].split() == ["accuracy", "plain", "4", "0.9015", "0.0013", "baseline"]
    assert output[2].split()[:5] == ["other", "4", "0.9365", "0.0140", "+0.0350"]
    assert output[2].rstrip().endswith("different: higher")
    assert output[4].rstrip().endswith("undecided")
    notes = " ".join(output[5:])
    assert "test at step 50; differences from plain" in notes
    assert "bootstrap of 9999 resamples, seed 0" in notes
    assert re.search(r"different: Student's paired test \(p: accuracy 0\.0\d+, loss [\d.]+\)", notes)
    assert "with 4 pairs the confidence of a resampled interval is at most 87.5 %, not 95 %" in notes


def test_json_and_csv_have_the_values_of_the_python_function(
    groups: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--sampling", "confidence=0.9", "--sampling", "resamples=500", "--sampling", "seed=3", "--step", "50"]
    expected = compare(groups, metrics=["accuracy"], confidence=0.9, resamples=500, seed=3)
    assert run(["compare", *groups, *options, "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records == [vars(comparison) for comparison in expected]
    assert (records[1]["verdict"], records[1]["direction"]) == ("different", "higher")
    assert run(["compare", *groups, *options, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["difference"] for row in rows] == ["", str(expected[1].difference)]


def test_students_interval_is_wider_and_named_in_a_note(groups: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *groups, "--sampling", "method=t"]) == 0
    output = capsys.readouterr().out
    assert "Student’s t" in output
    assert "resampling" not in output
    assert "  95 %  " in output
    assert compare(groups, method="t")[1].resamples is None


def test_groups_are_compared_at_every_step_and_at_equal_loss_and_written_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, shift in (("plain", 0.0), ("other", 0.2)):
        for seed in range(6):
            rows = [
                {
                    "step": s,
                    "split": "test",
                    "loss": 1 / (s + 1),
                    "accuracy": 0.5 + shift * (s > 2) + 0.001 * (seed * s % 5),
                }
                for s in range(8)
            ]
            file = tmp_path / name / f"seed-{seed}.jsonl"
            file.parent.mkdir(exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(["compare", "plain", "other", "--step", "all", "-o", "steps.csv"]) == 0
    output = capsys.readouterr()
    assert "different: higher, from step 3 on" in output.out
    assert "8 steps, of which the table has the last" in output.out
    assert len(Path("steps.csv").read_text().splitlines()) == 17
    assert "16 records" in output.err
    assert run(["compare", "plain", "other", "--at", "loss", "--margin", "0.01"]) == 0
    output = capsys.readouterr().out
    assert "at loss" in output
    assert "test at equal loss, from 1.000 to 0.1250" in output
    assert "margin (accuracy 0.0100)" in output
    assert run(["compare", "plain", "other", "-o", "steps.csv"]) == 2


def test_left_out_entries_are_reported_on_standard_error(groups: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("other/seed-3").rename("other/seed-7")
    assert run(["compare", *groups, "--json"]) == 0
    assert "2 entries have no entry of the same name to pair with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["plain"], 2, "at least two groups"),
        ([], 2, "GROUP"),
        (["plain", "other", "--json", "--csv"], 2, "exclude each other"),
        (["plain", "other", "--step", "-1"], 2, "'--step': expected a training step"),
        (["plain", "other", "--step", "best"], 2, "'--step': expected a training step"),
        (["plain", "other", "--step", "7"], 1, "nothing at step 7; there are: 50"),
        (["plain", "other", "--metric", "class.mir"], 1, "no metric 'class.mir'; there are: accuracy, loss"),
        (["plain", "other", "--metric", ","], 2, "at least one metric"),
        (["plain", "other", "--sampling", "confidence=95"], 2, "between 0 and 1"),
        (["plain", "nowhere"], 1, "nowhere: no such directory"),
    ],
)
def test_invalid_arguments_and_data_are_refused_in_one_line(
    groups: list[str], words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", *words]) == code
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
