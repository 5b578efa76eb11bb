"""Fixtures that run the command as users do, and a small trained, extracted run that tests share."""

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
    """Return the command line that runs ckpt-probe in a new Python process."""
    return [sys.executable, "-m", "ckpt_probe", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "120"}


@pytest.fixture
def probe(commands: Any, tmp_path: Path) -> Run:
    """Return a function that runs ckpt-probe in the directory of the test and returns the completed process."""

    def run(*words: object, **options) -> subprocess.CompletedProcess[str]:
        settings = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True, "timeout": 1200}
        return subprocess.run(commands.ckpt_probe(*words), **(settings | options))

    return run


@pytest.fixture
def trained(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy config.toml, run/ (steps 0, 10, 60) and dumps/ for one test, and return their directory."""
    return shutil.copytree(trained_once, tmp_path_factory.mktemp("trained") / "own")


@pytest.fixture(scope="session")
def trained_once(commands: Any, built_once: Callable[..., Path]) -> Path:
    """Train and extract the run that tests copy, and return its directory; read only."""

    def build(directory: Path) -> None:
        (directory / "config.toml").write_text(CONFIG)
        for words in (("train", "config.toml", "-o", "run"), ("extract", "run", "-o", "dumps")):
            subprocess.run(
                commands.ckpt_probe(*words),
                cwd=directory,
                env=environment(),
                check=True,
                capture_output=True,
                timeout=1200,
            )

    return built_once("trained", build)
