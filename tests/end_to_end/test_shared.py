"""Two calls on one output, each a process of its own: the work is done once, neither waits for ever, both end well."""

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


def two_at_once(command: list[str], where: Path) -> list[subprocess.CompletedProcess[str]]:
    begun = [
        subprocess.Popen(
            command, cwd=where, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    found = []
    for process in begun:
        out, err = process.communicate(timeout=300)
        found.append(subprocess.CompletedProcess(command, process.returncode, out, err))
    return found


def numbers_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("kind", ["path", "plane"])
def test_two_calls_for_one_path_or_plane(kind: str, ends: list[Path], tmp_path: Path, commands: Any) -> None:
    words, points = {
        "path": (["interpolate", str(ends[0]), str(ends[2]), "-o", "out", "--points", "5"], 5),
        "plane": (["plane", *map(str, ends), "-o", "out", "--grid", "3"], 9),
    }[kind]
    command = commands.ckpt_probe(*words, "--split", "test", "--json", "--device", "cpu")
    both = two_at_once(command, tmp_path)
    assert [done.returncode for done in both] == [0, 0], [done.stderr for done in both]
    assert numbers_of(both[0].stdout) == numbers_of(both[1].stdout)
    kept = numbers_of((tmp_path / "out" / "points.jsonl").read_text())
    places = [(record.get("alpha"), record.get("x"), record.get("y")) for record in kept]
    assert len(places) == len(set(places)) >= points
    assert list(tmp_path.glob(".*")) == []


def evaluated(kind: str, ends: list[Path], out: Path, **how: Any) -> Any:
    here = {"device": "cpu", "splits": ["test"], **how}
    if kind == "path":
        return evaluate_path(ends[0], ends[2], out, points=3, **here)
    return evaluate_plane(*ends, out=out, grid=2, **here)


class Heard(NullProgress):
    """What is said, and a word when something is."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.spoken = threading.Event()

    def message(self, text: str) -> None:
        self.said.append(text)
        self.spoken.set()


@pytest.mark.parametrize("kind", ["path", "plane"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_who_waits_says_it_once(
    kind: str, overwrite: bool, ends: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[float] = []
    enough = threading.Event()

    def sleep(seconds: float) -> None:
        looked.append(seconds)
        if len(looked) >= 5:
            enough.set()
        threading.Event().wait(0.01)

    monkeypatch.setattr("ckpt_probe.scheduling.claims.sleep", sleep)
    out, heard, failed = tmp_path / "out", Heard(), []
    first = evaluated(kind, ends, out)

    def work() -> None:
        try:
            found = evaluated(kind, ends, out, overwrite=overwrite, progress=heard)
            assert found.points == first.points
        except BaseException as error:
            failed.append(error)

    with claimed(out) as claim:
        assert not hasattr(claim, "holder")
        waiting = threading.Thread(target=work)
        waiting.start()
        assert heard.spoken.wait(60)
        assert enough.wait(60)
    waiting.join()
    assert failed == []
    assert len([text for text in heard.said if "is working on it; waiting" in text]) == 1


@pytest.mark.parametrize("kind", ["path", "plane"])
def test_the_claim_of_a_process_that_is_gone_is_taken_over(kind: str, ends: list[Path], tmp_path: Path) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    import socket

    told = {"host": socket.gethostname(), "process": int(gone.stdout), "token": "x"}
    (tmp_path / ".out.claim-1").write_text(json.dumps(told))
    heard = Heard()
    assert evaluated(kind, ends, tmp_path / "out", progress=heard).points
    assert not [text for text in heard.said if "waiting" in text]
    assert list(tmp_path.glob(".out*")) == []


def test_two_calls_of_analyze_share_the_dumps(
    ends: list[Path], tmp_path: Path, probe: Callable[..., Any], commands: Any
) -> None:
    run = str(ends[0].parents[1])
    assert probe("extract", run, "-o", "dumps", "--device", "cpu").returncode == 0
    both = two_at_once(commands.ckpt_probe("analyze", "dumps", "--json"), tmp_path)
    assert [done.returncode for done in both] == [0, 0], [done.stderr for done in both]
    assert numbers_of(both[0].stdout) == numbers_of(both[1].stdout)
    assert len(numbers_of(both[0].stdout)) == 6
