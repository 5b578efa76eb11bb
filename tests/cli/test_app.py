"""Tests of the command line as a whole: help, invalid use, exit codes, and tracebacks only on request."""

import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.cli.app import VERBS, group, run
from ckpt_probe.errors import UsageError


def error_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.strip().splitlines()


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"  {verb} " in output for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_a_sentence_and_every_verb_an_example(verb: str) -> None:
    command = group.get_command(click.Context(group), verb)
    assert command is not None
    assert command.epilog is not None
    assert f"ckpt-probe {verb}" in command.epilog
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            for setting in getattr(parameter, "settings", {}).values():
                assert setting.help.endswith("."), f"{verb} {setting.name}: not a sentence"
            assert parameter.help, f"{verb} {parameter.name}"
            assert parameter.help.endswith("."), f"{verb} {parameter.name}: not a sentence"


def test_numbers_of_options_and_of_lines_of_help_are_limited(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 0
    for verb in VERBS:
        command = group.get_command(click.Context(group), verb)
        assert command is not None
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        count += len(options)
        assert all(hasattr(option, "group") or hasattr(option, "title") for option in options), verb
        for columns in (80, 100):
            monkeypatch.setenv("COLUMNS", str(columns))
            assert run([verb, "--help"]) == 0
            text = capsys.readouterr().out
            assert len(text.splitlines()) <= 50, f"{verb} at {columns} columns"
            assert max(map(len, text.split("Example")[0].splitlines())) <= columns, f"{verb} at {columns} columns"
    assert count <= 145


@pytest.mark.parametrize("verb", VERBS)
def test_an_option_of_one_value_is_refused_if_it_occurs_twice(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = group.get_command(click.Context(group), verb)
    assert command is not None
    for option in command.params:
        if not isinstance(option, click.Option) or option.multiple or (option.is_flag and not option.secondary_opts):
            continue
        once = [option.opts[-1], *([] if option.is_flag else ["1"])]
        assert run([verb, *once, *once]) == 2, option.name
        assert f"{option.opts[-1]}" in (line := error_lines(capsys)[0])
        assert "takes one value, but occurs 2 times" in line
        for opposite in option.secondary_opts:
            assert run([verb, *once, opposite]) == 2, option.name
            assert "takes one value" in error_lines(capsys)[0]


def test_a_key_of_a_configuration_that_is_set_twice_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text("")
    words = ["train", str(tmp_path / "c.toml"), "-o", str(tmp_path / "run"), "--set", "seed=1", "--set", "seed=2"]
    assert run(words) == 2
    assert error_lines(capsys) == ["error: --set seed: occurs twice; set each key once"]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["exctract"], "exctract"),
        (["analyze"], "DUMPS"),
        (["analyze", "x", "--colour"], "--colour"),
        (["interpolate", "a", "b", "--alpha", "half", "--out", "c"], "half"),
        (
            ["interpolate", "a", "b", "--alpha", "0.5", "-o", "c", "--points", "7", "--csv"],
            "it does not take --points, --csv",
        ),
        (["interpolate", "a", "b", "--alpha", "0.5", "-o", "c", "--path", "slerp"], "it does not take --path"),
        (
            ["interpolate", "a", "b", "-o", "c", "--set", "dtype=float16"],
            "--dtype needs --alpha, which writes a checkpoint",
        ),
        (
            ["interpolate", "a", "b", "-o", "c", "--set", "curve_epochs=3"],
            "--curve-epochs needs --path bezier or polychain",
        ),
        (
            ["interpolate", "a", "b", "-o", "c", "--align", "permutation", "--set", "align_samples=9"],
            "--align-samples needs --align activations",
        ),
        (["interpolate", "a", "b", "-o", "c", "--points", "²"], "a number of at least 3"),
    ],
)
def test_invalid_use_prints_one_line_and_exits_with_2(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    lines = error_lines(capsys)
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert hint in lines[0]


def test_invalid_data_prints_one_line_and_a_traceback_only_with_debug(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = tmp_path / "step-1.h5"
    dump.write_text("no HDF5")
    assert run(["analyze", str(dump)]) == 1
    lines = error_lines(capsys)
    assert len(lines) == 1
    assert "step-1.h5" in lines[0]
    assert run(["analyze", str(dump), "--debug"]) == 1
    assert any("Traceback" in line for line in error_lines(capsys))


def test_without_a_command_the_help_is_printed_and_the_exit_code_is_2() -> None:
    done = subprocess.run([sys.executable, "-m", "ckpt_probe"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "analyze" in done.stderr


def test_a_closed_pipe_is_not_an_error() -> None:
    program = f"{sys.executable} -m ckpt_probe --help | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {program}"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""


def test_an_unexpected_end_of_file_is_an_internal_error_and_not_an_interruption(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raise_eof_error(*_: object, **__: object) -> None:
        raise EOFError("no more data")

    monkeypatch.setattr("ckpt_probe.inspection.inspect_checkpoint", raise_eof_error)
    assert run(["inspect", "a.safetensors"]) == 70
    [line] = error_lines(capsys)
    assert line.startswith("internal error: EOFError: no more data")


@pytest.mark.parametrize("size", [2**50, (2**25, 2**25)])
def test_too_little_memory_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: int | tuple[int, int]
) -> None:
    allocate = np.zeros if isinstance(size, int) else torch.zeros
    monkeypatch.setattr("ckpt_probe.inspection.inspect_checkpoint", lambda *_, **__: allocate(size))
    assert run(["inspect", "a.safetensors"]) == 1
    [line] = error_lines(capsys)
    assert line.startswith("error: not enough memory (")


def test_an_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["analyse", "dumps"]) == 2
    assert "No such command 'analyse'; did you mean analyze" in capsys.readouterr().err


DATA = """
import os, signal
from ckpt_probe.data import load_data

class Freed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

def load():
    Freed()
    return load_data("digits")
"""


@pytest.mark.usefixtures("ctrl_c")
def test_an_interruption_in_a_destructor_which_python_ignores_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "data.py").write_text(DATA)
    (tmp_path / "long.toml").write_text('data.name = "data.py:load"\nmodel.name = "mlp"\ntraining.steps = 10_000_000\n')
    assert run(["train", "long.toml", "-o", "run"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("interrupted; ")


@pytest.mark.parametrize(
    "words", [("export", "a.jsonl"), ("plot", "run=a.jsonl", "--metric", "x"), ("report", "a.jsonl")]
)
def test_an_input_is_not_replaced_by_the_output(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text('{"step": 1, "x": 2}\n')
    Path("link.svg").symlink_to("a.jsonl")
    for output in ("a.jsonl", "link.svg"):
        assert run([*words, "-o", output, "--overwrite"]) == 2
        assert capsys.readouterr().err == f"error: {output}: both an input and the output; choose another name\n"
    assert Path("a.jsonl").read_text() == '{"step": 1, "x": 2}\n'


@pytest.mark.parametrize(
    "line",
    [
        "analyze dumps -o dumps/a.h5",
        "analyze dumps/a.h5 -odumps/a.h5",
        "similarity dumps other --out=dumps/a.h5",
        "weights . -o run/step-1.safetensors",
        "report name=dumps -o dumps/a.h5",
        "report other,dumps -o dumps/a.h5",
        "analyze [a] -o [a]/a.h5",
        "weights run -o run/config.json",
        "export group -o group/1.csv",
        "export group/*.csv -o group/1.csv",
        "plot run -o run/metrics.jsonl --metric x",
        "export run --tensorboard run -o run/metrics.jsonl",
    ],
)
def test_a_file_in_a_directory_of_inputs_is_not_replaced(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "dumps/a.h5",
        "run/step-1.safetensors",
        "run/metrics.jsonl",
        "run/config.json",
        "group/1.csv",
        "other/b.h5",
        "[a]/a.h5",
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"an input")
    assert run([*line.split(), "--overwrite"]) == 2
    [message] = error_lines(capsys)
    assert "both an input and the output; choose another name" in message or "records are no .h5; name" in message


def test_results_in_a_directory_of_inputs_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("run/events", "export"):
        Path(folder).mkdir(parents=True)
    Path("run/metrics.jsonl").write_text('{"step": 1, "x": 2}\n')
    Path("run/page.html").write_text("<!doctype html>")
    for name in ("run/a.svg", "run/events/all.csv", "export/all.jsonl"):
        Path(name).write_bytes(b"earlier results")
    Path("run/other.txt").write_text("")
    assert run(["analyze", "run", "-o", "run/other.txt", "--overwrite"]) == 1  # after a search for dumps
    assert run(["report", "run", "-o", "run/page.html", "--overwrite"]) == 0
    with pytest.raises(UsageError, match=r"metrics\.jsonl: not a page, so that a page does not replace it"):
        cp.report("run", "run/metrics.jsonl", overwrite=True)
    assert run(["plot", "run", "--metric", "x", "-o", "run/a.svg", "--overwrite"]) == 0
    words = ["--tensorboard", "run/events", "-o", "run/events/all.csv", "--overwrite"]
    assert run(["export", "run/metrics.jsonl", *words]) == 0
    assert run(["export", "run/metrics.jsonl", "-o", "export/all.jsonl", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("plot a.parquet -o a.svg --metric x", 1, "a.parquet: no such file"),
        ("events a.csv", 1, "a.csv: no such file"),
        ("analyze dumps -o dumps/b.h5", 2, "dumps/b.h5: records are no .h5; name a file that ends in .csv, .parquet"),
        ("export no.jsonl -o b.xlsx", 2, "b.xlsx: records are no .xlsx; name a file"),
    ],
)
def test_missing_records_and_names_of_other_formats_are_errors_of_one_line(
    line: str, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(line.split()) == code
    [error] = error_lines(capsys)
    assert error.startswith(f"error: {message}")


def test_a_name_that_is_too_long_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"step": 1, "x": 2}\n')
    assert run(["export", str(tmp_path / "a.jsonl"), "-o", str(tmp_path / ("x" * 250))]) == 1
    assert "cannot be written: File name too long" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["extract run", "prune a.pt", "train a.toml", "barriers run", "plane a b c", "average a b", "plot a.jsonl"]
)
def test_a_missing_output_is_named(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    [message] = error_lines(capsys)
    missing = "--metric" if line.startswith("plot") else "-o' / '--out"
    assert message == f"error: Missing option '{missing}'. (see: ckpt-probe {line.split()[0]} --help)"


def test_an_empty_name_of_the_output_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["extract", "run", "-o", ""]) == 2
    assert capsys.readouterr().err == "error: -o: an empty name, as of a variable that is not set\n"
