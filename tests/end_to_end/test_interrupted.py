"""Tests of Ctrl-C and kill -9 in each stage: exit code 130, no unfinished files, and a later run completes the work."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run, command, environment

LONG = """\
[data]
name = "digits"
[model]
name = "mlp"
arguments = {{ hidden = [32, 32], dropout = 0.1 }}
[training]
steps = {steps}
[optimizer]
name = "{optimizer}"
learning_rate = 0.01
[checkpoints]
every_steps = {every}
"""


# The process signals itself when it renames a file to a given name or opens it, at the same moment on any machine.
SIGNALLED = """
import os, sys
from pathlib import Path
from ckpt_probe.cli.app import run

event, ending, signal_number = sys.argv[1], sys.argv[2], int(sys.argv[3])
left = [1]

def signalled(name, arguments):
    if name == event and str(Path(os.fspath(arguments[event == "os.rename"]))).endswith(ending) and left:
        left.clear()
        os.kill(os.getpid(), signal_number)

sys.addaudithook(signalled)
sys.exit(run(sys.argv[4:]))
"""


@pytest.fixture
def interrupted(commands: Any, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Return a function that runs a command, signals it at a file operation, and returns exit code and errors."""

    def run(*words: object, at: str, number: signal.Signals, event: str = "os.rename") -> tuple[int, str]:
        program = commands.python(SIGNALLED, event, at, int(number), *words)
        done = subprocess.run(program, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=1200)
        return done.returncode, done.stderr

    return run


def started(words: tuple, directory: Path) -> subprocess.Popen[str]:
    """Start a command whose output pipe is small, so that it blocks after a few unread lines."""
    return subprocess.Popen(
        command(*words),
        cwd=directory,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pipesize=4096,
        # If the tests run in the background, SIGINT is ignored, and child processes inherit this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def checkpoints(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.glob("checkpoints/*.safetensors")}


def unfinished_files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.name.endswith(".part")]


def explains_how_to_resume(errors: str) -> bool:
    return errors.strip().splitlines()[-1].startswith("interrupted; ") and "Traceback" not in errors


@pytest.fixture(scope="module")
def uninterrupted(commands: Any, tmp_path_factory: pytest.TempPathFactory, optimizer: str) -> Path:
    """Train a run without interruption, and return its directory."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    (directory / "long.toml").write_text(LONG.format(steps=300, every=50, optimizer=optimizer))
    words = commands.ckpt_probe("train", "long.toml", "-o", "run")
    subprocess.run(words, cwd=directory, env=environment(), check=True, capture_output=True, timeout=1200)
    return directory / "run"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"], scope="module")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_training_resumes_bit_for_bit(
    probe: Run, interrupted: Callable, uninterrupted: Path, tmp_path: Path, optimizer: str, number: signal.Signals
) -> None:
    (tmp_path / "long.toml").write_text(LONG.format(steps=300, every=50, optimizer=optimizer))
    code, errors = interrupted("train", "long.toml", "-o", "cut", at="step-000150.safetensors", number=number)
    assert code == (130 if number == signal.SIGINT else -signal.SIGKILL)
    if number == signal.SIGINT:
        assert explains_how_to_resume(errors)
        assert unfinished_files(tmp_path) == []
    assert "step-000300.safetensors" not in checkpoints(tmp_path / "cut")
    done = probe("train", "long.toml", "-o", "cut", "--resume")
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stderr
    assert checkpoints(tmp_path / "cut") == checkpoints(uninterrupted)
    logs = [(run / "metrics.jsonl").read_text().splitlines() for run in (tmp_path / "cut", uninterrupted)]
    resumed, expected = (
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in log] for log in logs
    )
    assert resumed == expected


def test_training_stops_at_a_signal_of_another_process(tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(LONG.format(steps=10**7, every=10, optimizer="sgd"))
    with started(("train", "long.toml", "-o", "cut"), tmp_path) as process:
        # The training would take hours, so it is still running however late the signal is sent.
        while len(list(tmp_path.glob("cut/checkpoints/*.safetensors"))) < 3:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert explains_how_to_resume(errors)
    assert unfinished_files(tmp_path) == []


@pytest.fixture(scope="module")
def many(commands: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run with many checkpoints, so that later stages can be interrupted between two of them."""
    directory = tmp_path_factory.mktemp("many")
    (directory / "long.toml").write_text(LONG.format(steps=500, every=50, optimizer="sgd"))
    words = commands.ckpt_probe("train", "long.toml", "-o", "run")
    subprocess.run(words, cwd=directory, env=environment(), check=True, capture_output=True, timeout=1200)
    return directory / "run"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_extract_resumes_with_the_missing_dumps(
    probe: Run, interrupted: Callable, many: Path, tmp_path: Path, number: signal.Signals
) -> None:
    code, errors = interrupted("extract", many, "-o", "dumps", at="step-000150.h5", number=number)
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -signal.SIGKILL)
    if number != signal.SIGKILL:
        assert explains_how_to_resume(errors)
        assert unfinished_files(tmp_path) == []
    complete = sorted(path.name for path in (tmp_path / "dumps").glob("step-*.h5"))
    assert 3 <= len(complete) <= 5
    assert probe("analyze", "dumps", "--json").returncode == 0
    done = probe("extract", many, "-o", "dumps")
    assert f"{11 - len(complete)} dumps written, {len(complete)} already complete" in done.stderr
    assert len(list((tmp_path / "dumps").glob("step-*.h5"))) == 11
    assert unfinished_files(tmp_path) == []


def test_an_interrupted_analyze_stops_at_once_and_writes_no_file(probe: Run, many: Path, tmp_path: Path) -> None:
    assert probe("extract", many, "-o", "dumps").returncode == 0
    words = ("analyze", "dumps", "--json", "-o", "records.jsonl")
    with started(words, tmp_path) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["step"] == 0
        # The command is still running, as its output does not fit into the pipe.
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert explains_how_to_resume(errors)
    assert not (tmp_path / "records.jsonl").exists()
    assert probe(*words).returncode == 0
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 22


def test_interpolate_resumes_with_the_missing_points(
    probe: Run, interrupted: Callable, many: Path, tmp_path: Path
) -> None:
    a, b = (many / "checkpoints" / f"step-{step}.safetensors" for step in ("000000", "000500"))
    words = ("interpolate", a, b, "-o", "path", "--points", "15", "--json")
    points = tmp_path / "path" / "points.jsonl"
    code, errors = interrupted(*words, at="points.jsonl", number=signal.SIGINT)
    assert code == 130
    assert explains_how_to_resume(errors)
    complete = points.read_text().splitlines()
    assert 2 <= len(complete) < 30
    assert not (tmp_path / "path" / "path.json").exists()
    done = probe(*words)
    assert done.returncode == 0, done.stderr
    assert points.read_text().splitlines()[: len(complete)] == complete
    assert len(points.read_text().splitlines()) == 30
    assert probe("interpolate", a, b, "-o", "uninterrupted", "--points", "15").returncode == 0
    assert points.read_bytes() == (tmp_path / "uninterrupted" / "points.jsonl").read_bytes()


def test_an_interrupted_demo_leaves_no_unfinished_files(interrupted: Callable, tmp_path: Path) -> None:
    code, errors = interrupted("demo", "-o", "demo", at="runs/a/metrics.jsonl", number=signal.SIGINT, event="open")
    assert code == 130
    assert explains_how_to_resume(errors)
    assert unfinished_files(tmp_path) == []


LOADING = """
import os, signal, sys
from ckpt_probe.__main__ import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a script ignore SIGINT
module, sys.argv = sys.argv[1], ["ckpt-probe", *sys.argv[2:]]
left = [1]

def signalled(event, arguments):
    if event == "import" and arguments[0] == module and left:
        left.clear()
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(signalled)
main()
"""


@pytest.mark.parametrize("module", ["ckpt_probe.cli.app", "h5py"])
def test_an_interruption_while_modules_are_imported_prints_one_line(module: str, tmp_path: Path) -> None:
    words = [sys.executable, "-c", LOADING, module, "inspect", str(tmp_path / "a.h5")]
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=1200)
    [line] = done.stderr.splitlines()
    assert done.returncode == 130
    assert line.startswith("interrupted")
