"""Tests of two processes with one output: the work is done once, and both finish without waiting forever."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_probe.paths import evaluate_path, evaluate_plane
from ckpt_probe.progress import NullProgress
from ckpt_probe.scheduling import claimed

from .conftest import environment


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory, train_digits: Any) -> list[Path]:
    run = train_digits(tmp_path_factory.mktemp("run"), [10, 20], hidden=[8])
    return [run / "checkpoints" / f"step-{step:06d}.safetensors" for step in (0, 10, 20)]


def two_at_once(command: list[str], directory: Path) -> list[subprocess.CompletedProcess[str]]:
    processes = [
        subprocess.Popen(
            command, cwd=directory, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    completed = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        completed.append(subprocess.CompletedProcess(command, process.returncode, out, err))
    return completed


def numbers_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("kind", ["path", "plane"])
def test_two_calls_for_one_path_or_plane_share_the_points(
    kind: str, ends: list[Path], tmp_path: Path, commands: Any
) -> None:
    words, points = {
        "path": (["interpolate", str(ends[0]), str(ends[2]), "-o", "out", "--points", "5"], 5),
        "plane": (["plane", *map(str, ends), "-o", "out", "--grid", "3"], 9),
    }[kind]
    command = commands.ckpt_probe(*words, "--split", "test", "--json", "--device", "cpu")
    calls = two_at_once(command, tmp_path)
    assert [done.returncode for done in calls] == [0, 0], [done.stderr for done in calls]
    assert numbers_of(calls[0].stdout) == numbers_of(calls[1].stdout)
    records = numbers_of((tmp_path / "out" / "points.jsonl").read_text())
    positions = [(record.get("alpha"), record.get("x"), record.get("y")) for record in records]
    assert len(positions) == len(set(positions)) >= points
    assert list(tmp_path.glob(".*")) == []


def evaluate(kind: str, ends: list[Path], out: Path, **options: Any) -> Any:
    settings = {"device": "cpu", "splits": ["test"], **options}
    if kind == "path":
        return evaluate_path(ends[0], ends[2], out, points=3, **settings)
    return evaluate_plane(*ends, out=out, grid=2, **settings)


class Messages(NullProgress):
    """Progress that collects messages, and sets an event when there is one."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.received = threading.Event()

    def message(self, text: str) -> None:
        self.messages.append(text)
        self.received.set()


@pytest.mark.parametrize("kind", ["path", "plane"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_waiting_call_reports_it_once(
    kind: str, overwrite: bool, ends: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    enough = threading.Event()

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) >= 5:
            enough.set()
        threading.Event().wait(0.01)

    monkeypatch.setattr("ckpt_probe.scheduling.claims.sleep", sleep)
    out, progress, failed = tmp_path / "out", Messages(), []
    first = evaluate(kind, ends, out)

    def work() -> None:
        try:
            result = evaluate(kind, ends, out, overwrite=overwrite, progress=progress)
            assert result.points == first.points
        except BaseException as error:
            failed.append(error)

    with claimed(out) as claim:
        assert not hasattr(claim, "holder")
        waiting = threading.Thread(target=work)
        waiting.start()
        assert progress.received.wait(60)
        assert enough.wait(60)
    waiting.join()
    assert failed == []
    assert len([text for text in progress.messages if "is working on it; waiting" in text]) == 1


@pytest.mark.parametrize("kind", ["path", "plane"])
def test_the_claim_of_a_process_that_has_ended_is_taken_over(kind: str, ends: list[Path], tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    import socket

    claim = {"host": socket.gethostname(), "process": int(ended.stdout), "token": "x"}
    (tmp_path / ".out.claim-1").write_text(json.dumps(claim))
    progress = Messages()
    assert evaluate(kind, ends, tmp_path / "out", progress=progress).points
    assert not [text for text in progress.messages if "waiting" in text]
    assert list(tmp_path.glob(".out*")) == []


def test_two_calls_of_analyze_print_the_same_records(
    ends: list[Path], tmp_path: Path, probe: Callable[..., Any], commands: Any
) -> None:
    run = str(ends[0].parents[1])
    assert probe("extract", run, "-o", "dumps", "--device", "cpu").returncode == 0
    calls = two_at_once(commands.ckpt_probe("analyze", "dumps", "--json"), tmp_path)
    assert [done.returncode for done in calls] == [0, 0], [done.stderr for done in calls]
    assert numbers_of(calls[0].stdout) == numbers_of(calls[1].stdout)
    assert len(numbers_of(calls[0].stdout)) == 6
