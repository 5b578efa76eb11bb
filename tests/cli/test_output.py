"""Tests of the terminal: colours and NO_COLOR, --quiet, progress bars, and completion by the shell."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ckpt_probe.checkpoints import save_checkpoint
from ckpt_probe.cli.app import run
from ckpt_probe.cli.output import bars

COLOUR = re.compile(r"\x1b\[[\d;]*\b(?:3[0-7]|38;[25]|9[0-7])[\d;]*m")
RECORD = {"step": 1, "split": "test", "accuracy": 0.5}


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.jsonl").write_text(json.dumps(RECORD) + "\n")
    return tmp_path


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    """Write two checkpoints with a tensor of several blocks, and return their paths."""
    paths = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    for path in paths:
        save_checkpoint(Path(path), {"weight": torch.ones(700, 1000)}, {})
    return paths


def test_with_no_color_bars_have_no_colour(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    output = []
    for value in ("", "1"):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("NO_COLOR", value)
        with bars() as progress, progress.task("dumps", 2, "dumps") as bar:
            bar.advance()
        output.append(capsys.readouterr().err)
    coloured, plain = output
    assert COLOUR.search(coloured)
    assert not COLOUR.search(plain)
    assert "dumps" in plain


@pytest.mark.parametrize("index", [0, 1, 4])
def test_quiet_hides_messages_but_no_results_and_no_errors(
    index: int, records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "r.jsonl", "-o", "r.parquet"]
    assert run([*words[:index], "--quiet", *words[index:]]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "")
    assert (records / "r.parquet").exists()
    assert run(["--quiet", *words]) == 2
    assert capsys.readouterr().err.startswith("error: r.parquet: exists already")
    assert run([*words, "--overwrite"]) == 0
    assert "1 records" in capsys.readouterr().err


def test_quiet_without_a_command_exits_with_2() -> None:
    assert run(["--quiet"]) == 2


@pytest.mark.parametrize(
    ("command", "steps"),
    [
        (["average", "A", "B", "-o", "out.safetensors"], 3),
        (["interpolate", "A", "B", "--alpha", "0.5", "-o", "out.safetensors"], 3),
        (["inspect", "A", "--statistics"], 1),
    ],
)
def test_commands_that_read_whole_files_show_progress(
    command: list[str], steps: int, checkpoints: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCE_COLOR", "1")
    advanced = []
    monkeypatch.setattr("ckpt_probe.cli.output.Bar.advance", lambda bar, amount=1, **facts: advanced.append(amount))
    names = dict(zip("AB", checkpoints, strict=True))
    assert run([names.get(word, word) for word in command]) == 0
    assert sum(advanced) == steps


def test_without_a_terminal_a_command_does_not_import_rich(checkpoints: list[str], tmp_path: Path) -> None:
    words = ["interpolate", *checkpoints, "--alpha", "0.5", "-o", str(tmp_path / "out.safetensors")]
    program = f"import sys; from ckpt_probe.cli.app import run; run({words}); print('rich' in sys.modules)"
    plain = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    done = subprocess.run([sys.executable, "-c", program], env=plain, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
    assert "interpolated at alpha 0.5" in done.stderr


def test_a_file_is_written_although_the_pipe_is_closed(checkpoints: list[str], tmp_path: Path) -> None:
    command = f"{sys.executable} -m ckpt_probe weights {' '.join(checkpoints)} --only audit --json -o w.jsonl"
    script = f"set -o pipefail; {command} | true"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (0, ["w.jsonl: 2 records"])
    assert len((tmp_path / "w.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("destination", "code", "message"),
    [
        (">&-", 0, ""),
        ("> /dev/null", 0, ""),
        ("> /dev/full", 1, "error: the output: cannot be written: No space left on device\n"),
    ],
)
def test_standard_output_may_be_closed_full_or_without_unicode(destination: str, code: int, message: str) -> None:
    script = f"PYTHONIOENCODING=ascii {sys.executable} -m ckpt_probe weights --help {destination}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, message)


def complete(words: str, shell: str = "bash") -> list[str]:
    environment = {
        **os.environ,
        "_CKPT_PROBE_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    program = "from ckpt_probe.cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_the_shell_completes_commands_and_options() -> None:
    assert complete("ckpt-probe ana") == ["analyze"]
    assert "--sampling" in complete("ckpt-probe analyze --")
