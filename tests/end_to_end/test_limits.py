"""No more files to open, no room on the disk, a directory that is gone, Ctrl-C twice: one line, and nothing half."""

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
# A module compiled now would leave a part of its cached bytecode to whoever imports it next.
sys.dont_write_bytecode = True
sys.exit(run(sys.argv[3:]))
"""

GONE = """
import shutil, sys
from pathlib import Path
from ckpt_probe.cli.app import run

ending, folder, left = sys.argv[1], sys.argv[2], [1]

def gone(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith(ending) and left:
        left.clear()
        shutil.rmtree(folder)

sys.addaudithook(gone)
sys.exit(run(sys.argv[3:]))
"""


def ended(commands: Any, program: str, where: Path, *words: object) -> subprocess.CompletedProcess[str]:
    started = commands.python(program, *words)
    return subprocess.run(started, cwd=where, env=environment(), capture_output=True, text=True, timeout=600)


def told(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    return last


def left(where: Path) -> list[str]:
    return [path.name for path in where.rglob("*") if path.name.endswith((".part", ".old"))]


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
def test_a_full_disk_is_one_line_and_leaves_nothing_half(commands: Any, trained: Path, limit: int, words: str) -> None:
    line = told(ended(commands, LIMITED, trained, "RLIMIT_FSIZE", limit, *words.split()))
    assert "more" in line
    assert left(trained) == []
    assert not list(trained.glob("more.*"))


@pytest.mark.parametrize("words", ["extract run -o more", "analyze dumps --set cache=false"])
def test_too_many_open_files_are_one_line(commands: Any, trained: Path, words: str) -> None:
    done = ended(commands, LIMITED, trained, "RLIMIT_NOFILE", 3, *words.split())
    assert "too many open files" in told(done).lower()
    assert left(trained) == []


def test_a_directory_that_vanishes_midway_is_one_line(commands: Any, trained: Path) -> None:
    line = told(ended(commands, GONE, trained, "more/step-000010.h5", "more", "extract", "run", "-o", "more"))
    assert "more/step-000010.h5" in line
    assert left(trained) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_directory_that_is_read_only_is_one_line(commands: Any, probe: Run, trained: Path) -> None:
    (trained / "more").mkdir(mode=0o500)
    assert "more" in told(probe("extract", "run", "-o", "more", cwd=trained))


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


def test_ctrl_c_twice_ends_and_a_later_run_goes_on(commands: Any, probe: Run, trained: Path) -> None:
    done = ended(commands, TWICE, trained, "extract", "run", "-o", "more")
    assert done.returncode in {130, -signal.SIGINT}
    assert "Traceback" not in done.stderr
    again = probe("extract", "run", "-o", "more", cwd=trained)
    assert again.returncode == 0, again.stderr
    assert left(trained) == []
    assert len(list((trained / "more").glob("*.h5"))) == 3
    shutil.rmtree(trained / "more")
