"""Tests of the commands `examples` and `similarity --function`: tables, formats, files, and errors in one line."""

import csv
import io
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from ckpt_probe.analysis import compare
from ckpt_probe.cli.app import run

LABELS = np.array([0, 0, 1, 2])
PREDICTED = {"a": [[0, 1, 1, 0], [0, 0, 2, 0], [0, 0, 1, 1]], "b": [[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2]]}


@pytest.fixture
def dumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, steps in PREDICTED.items():
        Path("dumps", name).mkdir(parents=True)
        for step, row in enumerate(steps):
            with h5py.File(Path("dumps", name, f"step-{step}.h5"), "w") as file:
                file["test/features"], file["test/labels"] = np.random.default_rng(0).normal(size=(4, 2)), LABELS
                file["test/logits"] = 3.0 * np.eye(3)[row]
    return tmp_path


def test_the_table_begins_with_a_summary_and_the_worst_example(dumps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["examples", "dumps/a", "--rows", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "test: 4 examples: 3 learned for good, 1 never learned, 1 forgotten at least once"
    assert lines[1].split("  ")[0] == "split"
    assert [line.split()[:2] for line in lines[2:4]] == [["test", "3"], ["test", "2"]]
    assert lines[4:] == ["2 more examples with --rows N, --json, --csv or -o FILE"]


def test_every_format_has_every_example(dumps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["examples", "dumps/a", "--json", "-o", "out.csv"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["index"] for record in records] == [3, 2, 1, 0]
    rows = list(csv.DictReader(io.StringIO(Path("out.csv").read_text())))
    assert [(row["index"], row["first_learned"], row["forgotten"], row["never_learned"]) for row in rows] == [
        ("3", "", "0", "True"),
        ("2", "2", "1", "False"),
        ("1", "1", "0", "False"),
        ("0", "0", "0", "False"),
    ]
    assert run(["examples", "dumps/a", "--csv", "--split", "test"]) == 0
    assert capsys.readouterr().out == Path("out.csv").read_text()


@pytest.mark.parametrize("by", ["class", "step", "run"])
def test_every_kind_of_record_has_a_table(by: str, dumps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["examples", "first=dumps/a", "dumps/b", "--by", by, "--wide"]) == 0
    output = capsys.readouterr().out
    assert output.split()[:2] == ["run", "split"]
    assert "first" in output
    assert "missing" not in output if by == "class" else "– missing: function." in output


def test_records_by_step_are_compared_and_drawn(dumps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    for group, name in (("left", "a"), ("right", "b")):
        Path(group).mkdir()
        assert run(["examples", f"dumps/{name}", "--by", "step", "-o", f"{group}/0.jsonl"]) == 0
    assert run(["plot", "left/0.jsonl", "-o", "x.svg", "--metric", "function.disagreement,function.forgotten"]) == 0
    comparisons = compare(["left", "right"], metrics="function.disagreement")
    assert [comparison.mean for comparison in comparisons] == [0.5, 0.0]


def test_matrices_are_printed_by_step_and_by_run(dumps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["similarity", "--function", "dumps/a"]) == 0
    output = capsys.readouterr().out
    assert "test: CKA, layer penultimate by step, 4 rows" in output
    assert "test: share of rows predicted differently, checkpoints, 4 rows" in output
    assert "test: Jensen–Shannon divergence of predictions (nats), checkpoints, 4 rows" in output
    assert run(["similarity", "--function", "dumps/a", "dumps/b", "--json"]) == 0
    matrices = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [matrix["measure"] for matrix in matrices] == ["disagreement", "divergence", "error_agreement"]
    assert matrices[0]["rows"] == ["a", "b"]
    assert matrices[0]["values"] == [[0.0, 0.5], [0.5, 0.0]]
    assert run(["similarity", "dumps/a", "dumps/b", "dumps/a"]) == 2
    assert "--function compares more runs" in capsys.readouterr().err


def test_groups_are_directories_of_runs_or_patterns(dumps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["dumps"], ["dumps=dumps/*"]):
        assert run(["examples", *words, "--by", "step", "--json"]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        runs = {(record["run"], record["group"], record["seed"]) for record in records}
        assert runs == {("dumps/a", "dumps", "a"), ("dumps/b", "dumps", "b")}
    assert run(["examples", "dumps", "--by", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["other"] == "dumps/b"


def test_errors_are_printed_in_one_line_with_flags(dumps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File("none.h5", "w") as file:
        file["test/features"], file["test/labels"] = np.zeros((4, 2)), LABELS
    for words, code, message in (
        (["examples", "none.h5"], 1, "extract again with --with-logits and --overwrite"),
        (["examples", "dumps/a", "--by", "run"], 2, "--by run compares several runs"),
        (["examples", "dumps/a", "dumps/a"], 2, "dumps/a"),
        (["examples", "nothing"], 1, "nothing: no such file or directory"),
    ):
        assert run(words) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
