"""Tests of too many open files, a full disk, a deleted directory, and Ctrl-C twice: one line, no unfinished files."""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run, environment

LIMITED = """
import resource, signal, sys
import torch, h5py, numpy, scipy, safetensors.torch
import ckpt_probe.extraction, ckpt_probe.analysis, ckpt_probe.merging, ckpt_probe.paths, ckpt_probe.training
from ckpt_probe.cli.app import run

kind, most = getattr(resource, sys.argv[1]), int(sys.argv[2])
if kind == resource.RLIMIT_FSIZE:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))
# Under this limit a module compiled now would leave truncated bytecode for later imports.
sys.dont_write_bytecode = True
sys.exit(run(sys.argv[3:]))
"""

DELETING = """
import shutil, sys
from pathlib import Path
from ckpt_probe.cli.app import run

ending, folder, left = sys.argv[1], sys.argv[2], [1]

def delete(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith(ending) and left:
        left.clear()
        shutil.rmtree(folder)

sys.addaudithook(delete)
sys.exit(run(sys.argv[3:]))
"""


def run_program(commands: Any, program: str, directory: Path, *words: object) -> subprocess.CompletedProcess[str]:
    started = commands.python(program, *words)
    return subprocess.run(started, cwd=directory, env=environment(), capture_output=True, text=True, timeout=600)


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    return last


def unfinished_files(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob("*") if path.name.endswith((".part", ".old"))]


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (2000, "extract run -o more"),
        (2000, "extract run -o more --store moments"),
        (2000, "train config.toml -o more"),
        (
            500,
            "average run/checkpoints/step-000010.safetensors run/checkpoints/step-000060.safetensors "
            "-o more.safetensors",
        ),
        (100, "analyze dumps --json -o more.jsonl --set cache=false"),
        (500, "report dumps -o more.html"),
        (500, "prune run/checkpoints/step-000060.safetensors --sparsity 0.5 -o more"),
    ],
)
def test_a_full_disk_is_a_one_line_error_and_leaves_no_unfinished_files(
    commands: Any, trained: Path, limit: int, words: str
) -> None:
    line = error_of(run_program(commands, LIMITED, trained, "RLIMIT_FSIZE", limit, *words.split()))
    assert "more" in line
    assert unfinished_files(trained) == []
    assert not list(trained.glob("more.*"))


@pytest.mark.parametrize("words", ["extract run -o more", "analyze dumps --set cache=false"])
def test_too_many_open_files_are_a_one_line_error(commands: Any, trained: Path, words: str) -> None:
    done = run_program(commands, LIMITED, trained, "RLIMIT_NOFILE", 3, *words.split())
    assert "too many open files" in error_of(done).lower()
    assert unfinished_files(trained) == []


def test_a_deleted_output_directory_is_a_one_line_error(commands: Any, trained: Path) -> None:
    line = error_of(
        run_program(commands, DELETING, trained, "more/step-000010.h5", "more", "extract", "run", "-o", "more")
    )
    assert "more/step-000010.h5" in line
    assert unfinished_files(trained) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_directory_is_a_one_line_error(commands: Any, probe: Run, trained: Path) -> None:
    (trained / "more").mkdir(mode=0o500)
    assert "more" in error_of(probe("extract", "run", "-o", "more", cwd=trained))


TWICE = """
import os, signal, sys
from ckpt_probe.cli.app import run

left = [2]

def twice(event, arguments):
    if left and event in {"os.rename", "os.remove", "os.unlink"} and ".h5" in str(arguments[0]):
        left.pop()
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(twice)
sys.exit(run(sys.argv[1:]))
"""


def test_ctrl_c_twice_ends_the_command_and_a_later_run_resumes(commands: Any, probe: Run, trained: Path) -> None:
    done = run_program(commands, TWICE, trained, "extract", "run", "-o", "more")
    assert done.returncode in {130, -signal.SIGINT}
    assert "Traceback" not in done.stderr
    resumed = probe("extract", "run", "-o", "more", cwd=trained)
    assert resumed.returncode == 0, resumed.stderr
    assert unfinished_files(trained) == []
    assert len(list((trained / "more").glob("*.h5"))) == 3
    shutil.rmtree(trained / "more")
