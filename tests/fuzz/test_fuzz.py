"""What the fuzzer once found is judged again, and a few new cases of a seed; `make fuzz` runs ten thousand."""

import os
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def fuzzed(commands: Any, *words: object) -> str:
    program = commands.script(HERE / "fuzzing.py", *words)
    done = subprocess.run(program, capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_nothing_of_the_corpus_is_found_again(commands: Any) -> None:
    found = fuzzed(commands, "--replay", HERE / "corpus")
    assert f"{len(list((HERE / 'corpus').glob('*.gz')))} cases, 0 findings" in found


def test_files_that_are_made_to_take_memory_or_time_are_refused(commands: Any) -> None:
    """With a budget of 16 MiB in place of 512; `make fuzz` has the real one."""
    found = fuzzed(commands, "--hostile", 2**24)
    assert "37 cases, 0 findings" in found
    assert "told 37" in found


def test_a_slice_of_new_cases_ends_in_a_clear_error_or_the_right_answer(commands: Any) -> None:
    found = fuzzed(commands, "--cases", 64, "--seed", 1)
    assert "64 cases, 0 findings" in found
    assert "told" in found
