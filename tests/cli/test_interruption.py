"""Ctrl-C ends a command wherever it arrives."""

from pathlib import Path

import pytest

from ckpt_probe.cli.app import run

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
