"""The command as a person runs it, and one small run that every test may read."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    """The words that run ckpt-probe in a Python of its own."""
    return [sys.executable, "-m", "ckpt_probe", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "120"}


@pytest.fixture
def probe(commands: Any, tmp_path: Path) -> Run:
    """Runs ckpt-probe in the test's own directory; the result has its output, its one line of error, its exit code."""

    def run(*words: object, **options) -> subprocess.CompletedProcess[str]:
        settings = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True, "timeout": 1200}
        return subprocess.run(commands.ckpt_probe(*words), **(settings | options))

    return run


@pytest.fixture
def trained(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the test's own with config.toml, run/ (steps 0, 10, 60) and dumps/."""
    return shutil.copytree(trained_once, tmp_path_factory.mktemp("trained") / "own")


@pytest.fixture(scope="session")
def trained_once(commands: Any, built_once: Callable[..., Path]) -> Path:
    """What every test gets a copy of."""

    def build(where: Path) -> None:
        (where / "config.toml").write_text(CONFIG)
        for words in (("train", "config.toml", "-o", "run"), ("extract", "run", "-o", "dumps")):
            subprocess.run(
                commands.ckpt_probe(*words), cwd=where, env=environment(), check=True, capture_output=True, timeout=1200
            )

    return built_once("trained", build)
