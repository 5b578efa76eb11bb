"""The command as a person runs it, and one small run that every test may read."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

CONFIG = """\
[data]
name = "digits"
[model]
name = "mlp"
arguments = { hidden = [16] }
[training]
steps = 60
[checkpoints]
steps = [10]
"""


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "ckpt_probe", *map(str, words)]


def environment() -> dict[str, str]:
    # One thread: tests compare numbers bit for bit and share two cores.
    return {**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def probe(tmp_path: Path) -> Run:
    """Runs ckpt-probe in the test's own directory; the result has its output, its one line of error, its exit code."""

    def run(*words: object, **options) -> subprocess.CompletedProcess[str]:
        settings = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True, "timeout": 300}
        return subprocess.run(command(*words), **(settings | options))

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with config.toml, run/ (steps 0, 10, 60) and dumps/; read only."""
    where = tmp_path_factory.mktemp("trained")
    (where / "config.toml").write_text(CONFIG)
    for words in (("train", "config.toml", "-o", "run"), ("extract", "run", "-o", "dumps")):
        subprocess.run(command(*words), cwd=where, env=environment(), check=True, capture_output=True, timeout=300)
    return where
