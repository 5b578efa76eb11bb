"""Tests that commands recover from a few kills at fixed events; `make kills` does two hundred at random moments."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def run_kills(commands: Any, *words: object) -> str:
    program = commands.script(HERE / "kills.py", *words)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Kill 10 and 11 are a command with worker processes and one on a cluster; they run apart from the others.
@pytest.mark.parametrize(("first", "kills"), [(0, 10), (10, 1), pytest.param(11, 1, marks=pytest.mark.slow)])
def test_every_command_killed_once_ends_in_the_same_files(commands: Any, first: int, kills: int) -> None:
    assert f"{kills} kills, 0 wrong" in run_kills(
        commands, "--first", first, "--kills", kills, "--seed", 1, "--events-only"
    )


@pytest.mark.slow
def test_two_hundred_killed_commands_end_in_the_same_files(commands: Any) -> None:
    assert "200 kills, 0 wrong" in run_kills(commands, "--kills", 200)
