"""Tests of the command `report`: files, messages, and refused input."""

import json
from pathlib import Path

import pytest

from ckpt_probe.cli.app import run


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write records in the working directory, and return it."""
    monkeypatch.chdir(tmp_path)
    lines = [{"step": s, "split": t, "accuracy": s / 10, "loss": 1.0} for s in (0, 5, 9) for t in ("train", "test")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_a_page_and_figures_are_written(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "report",
        "mine=a.jsonl",
        "-o",
        "out/report.html",
        "--figures",
        "figures",
        "--set",
        "figure_format=png",
        "--title",
        "T",
    ]
    assert run(words) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "figures: 2 figures\nout/report.html: 1 sections, 0.6 MB; open it in a browser\n"
    assert sorted(file.name for file in Path("figures").iterdir()) == ["metric-accuracy.png", "metric-loss.png"]
    assert [file.name for file in Path("out").iterdir()] == ["report.html"]
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "<title>T</title>" in page
    assert (
        '"ckpt-probe report mine=a.jsonl -o out/report.html --figures figures --set figure_format=png --title T"'
        in page
    )
    before = page
    assert run(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert run([*words, "--overwrite"]) == 0
    assert Path("out/report.html").read_text(encoding="utf-8") != before  # it contains another command


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["a.jsonl"], 2, "choose an output: --out report.html"),
        (["-o", "r.html"], 2, "SOURCES"),
        (["nowhere", "-o", "r.html"], 1, "nowhere: cannot be read"),
        (["a.jsonl", "-o", "a.jsonl"], 2, "a.jsonl: exists already"),
        (["a.jsonl", "-o", "r.html", "--set", "memory=much"], 2, "--set memory=much: "),
        (["a.jsonl", "-o", "r.html", "--set", "labels=none.txt"], 1, "none.txt: cannot be read"),
        (["a.jsonl", "-o", "r.html", "--set", "figure_format=gif"], 2, "gif"),
        (["a.jsonl", "a.jsonl", "-o", "r.html"], 2, "name each source once"),
    ],
)
def test_invalid_arguments_and_data_are_refused_in_one_line(
    directory: Path, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", *words]) == code
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert [file.name for file in Path().iterdir()] == ["a.jsonl"]


def test_a_damaged_source_among_others_is_left_out_and_named(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "b.jsonl").write_text('{"step": 0, "accuracy": 0.5}\n{"step": 1, "acc')
    assert run(["report", "b.jsonl", "a.jsonl", "-o", "r.html"]) == 0
    assert "left out: b.jsonl: line 2 is not JSON" in capsys.readouterr().err
    assert "Left out: b.jsonl: line 2 is not JSON" in (directory / "r.html").read_text(encoding="utf-8")
    (directory / "c.jsonl").write_text('{"step": "x"}')
    assert run(["report", "b.jsonl", "c.jsonl", "-o", "s.html"]) == 1
    assert "error: nothing to report: b.jsonl: line 2 is not JSON" in capsys.readouterr().err.splitlines()[-1]


def test_an_escape_sequence_in_a_file_reaches_no_terminal(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "a.jsonl").write_text(json.dumps({"step": 0, "accuracy": "\x1b[2Jgone"}) + "\n")
    assert run(["report", "a.jsonl", "-o", "r.html"]) == 1
    assert "\x1b" not in capsys.readouterr().err
    (directory / "\x1b[2J.bin").write_text("?")
    assert run(["report", "\x1b[2J.bin", "-o", "r.html"]) == 1
    assert "error: ␛[2J.bin: is neither" in capsys.readouterr().err
