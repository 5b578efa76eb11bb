"""Tests that earlier findings of the fuzzer stay fixed and that a few new cases end well; `make fuzz` runs 10,000."""

import os
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run_fuzzer(commands: Any, *words: object) -> str:
    program = commands.script(HERE / "fuzzing.py", *words)
    done = subprocess.run(program, capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_files_of_the_corpus_are_no_longer_findings(commands: Any) -> None:
    output = run_fuzzer(commands, "--replay", HERE / "corpus")
    assert f"{len(list((HERE / 'corpus').glob('*.gz')))} cases, 0 findings" in output


def test_files_made_to_exhaust_memory_or_time_are_refused(commands: Any) -> None:
    """Use a budget of 16 MiB in place of 512 MiB, with which `make fuzz` runs."""
    output = run_fuzzer(commands, "--hostile", 2**24)
    assert "39 cases, 0 findings" in output
    assert "refused 39" in output


def test_new_cases_end_in_a_clear_error_or_the_right_answer(commands: Any) -> None:
    output = run_fuzzer(commands, "--cases", 32, "--seed", 1)
    assert "32 cases, 0 findings" in output
    assert "refused" in output
