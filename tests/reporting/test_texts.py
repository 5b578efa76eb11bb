"""Tests that texts from files are escaped in the terminal, JSON, CSV, HTML and SVG."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ckpt_probe.analysis import analyze
from ckpt_probe.cli.app import run
from ckpt_probe.dumps import DumpWriter
from ckpt_probe.errors import in_cell, in_json, printable
from ckpt_probe.reporting.formats import to_csv, to_json_line

NASTY = "\x1b]0;owned\x07[red]\u202egnp.exe\x9b2J"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"), ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"), ("-2+3", "'-2+3"), ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "␉=1"), (" =1", "' =1"), ("-2.5e-3", "-2.5e-3"), ("+7", "+7"), ("-inf", "-inf"), ("a=1", "a=1"),
        ("", ""), ("\x1b[2J", "␛[2J"), ("step-000010", "step-000010"),
    ],
)  # fmt: skip
def test_a_csv_cell_is_not_a_formula(text: str, cell: str) -> None:
    assert in_cell(text) == cell


def test_csv_escapes_formulas_and_leaves_numbers_unchanged() -> None:
    records = [
        {"=name": -1.5, "checkpoint": "=HYPERLINK(1)", "n": -3, "none": None},
        {"checkpoint": NASTY, "more": "x"},
    ]
    header, first, second = csv.reader(io.StringIO(to_csv(records)))
    assert header == ["'=name", "checkpoint", "n", "none", "more"]
    assert first == ["-1.5", "'=HYPERLINK(1)", "-3", "", ""]
    assert second == ["", printable(NASTY), "", "", "x"]
    assert "\x1b" not in to_csv(records)


def test_json_is_read_back_and_has_no_control_characters() -> None:
    record = {"name": NASTY, "ä": "λ\u2003x", "far": "\U000e0001", "n": 1.5}
    line = to_json_line(record)
    assert json.loads(line) == record
    assert "λ" in line
    assert not {"\x1b", "\x9b", "\x07", "\u202e", "\U000e0001"} & set(line)
    assert in_json('{"a": "b"}') == '{"a": "b"}'


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    save_file({NASTY: torch.ones(2, 3), "[bold]w[/bold]": torch.ones(1)}, path, {"note": NASTY, NASTY: "x"})
    return path


def test_inspect_shows_names_and_metadata_as_text(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--statistics"], ["--json"]):
        assert run(["inspect", str(checkpoint), *options]) == 0
        out = capsys.readouterr().out
        assert not {"\x1b", "\x9b", "\x07", "\u202e"} & set(out)
        assert "[red]" in out
        assert "[bold]w[/bold]" in out


def test_hostile_names_of_files_and_splits_are_escaped_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"=x{NASTY.replace('/', '')}.h5"
    generator = np.random.default_rng(0)
    with DumpWriter(path, None, classes=3, features=4) as writer:
        writer.write_classifier(generator.normal(size=(3, 4)))
        writer.start_split("test", 30, logits=False)
        writer.append("test", generator.normal(size=(30, 4)).astype(np.float32), np.arange(30) % 3)
    [record] = analyze(path)
    assert record["checkpoint"] == path.stem
    for options in ([], ["--wide"], ["--json"], ["--csv"]):
        assert run(["analyze", str(path), "--set", "cache=false", *options]) == 0
        out, messages = capsys.readouterr()
        assert not {"\x1b", "\x9b", "\x07", "\u202e"} & set(out + messages)
    page = tmp_path / "page.html"
    assert run(["report", str(path), "-o", str(page)]) == 0
    assert not {"\x1b", "\x9b", "\x07", "\u202e"} & set(page.read_text() + "".join(capsys.readouterr()))


def test_an_error_escapes_the_name_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tmp_path / f"{NASTY}.pt")]) == 1
    messages = capsys.readouterr().err
    assert not {"\x1b", "\x9b", "\x07", "\u202e"} & set(messages)
    assert len(messages.splitlines()) == 1
