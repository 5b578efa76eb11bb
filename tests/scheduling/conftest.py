"""Tasks that workers in other processes can import, and a Dask cluster on loopback."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TASKS = '''
import os
import signal
import time
from pathlib import Path

from ckpt_probe.errors import DataError
from ckpt_probe.files import replacing
from ckpt_probe.scheduling import Busy, made_once
from ckpt_probe.scheduling.claims import claimed

def double(number):
    return 2 * number

def process(number):
    return os.getpid()

def gated(item):
    """Write the number of this process to a file, then wait until the gate is open."""
    number, folder = item
    (Path(folder) / f"{number}-{os.getpid()}.began").touch()
    while not (Path(folder) / "open").exists():
        time.sleep(0.02)
    return 2 * number

def deadly(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number

def failing(number):
    if number == 1:
        raise DataError("row 7 is NaN")
    if number == 3:
        raise KeyError("of the program")
    return 2 * number

def busy_at_first(item):
    number, folder = item
    mark = Path(folder) / f"{number}.seen"
    if number == 0 and not mark.exists():
        mark.touch()
        return Busy("process 1 of elsewhere")
    return 2 * number

def relative(name):
    return Path(name).read_text()

def opened(name):
    """Return the contents of the first file that this process opened for its caller."""
    return made_once("opened", Path(name).read_text)

def writing(folder):
    """Write a file for a long time."""
    with claimed(Path(folder) / "out"), replacing(Path(folder) / "out"):
        (Path(folder) / "began").touch()
        time.sleep(10)

def interrupted(number):
    os.kill(os.getpid(), signal.SIGINT)
    return number

at_work = []

def overlapping(number):
    """Return the number of tasks that this process runs at the same time."""
    at_work.append(number)
    time.sleep(0.05)
    count = len(at_work)
    at_work.remove(number)
    return count
'''


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Return the tasks above as a module that processes started by the test can import."""
    (tmp_path / "tasks_of_a_test.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    import tasks_of_a_test

    yield tasks_of_a_test
    del sys.modules["tasks_of_a_test"]


@dataclass
class LoopbackCluster:
    """A scheduler and its workers, each in a separate process."""

    directory: Path
    commands: Any
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @staticmethod
    def until(done: Callable[[], object], seconds: float = 120) -> None:
        """Wait for a condition that will become true; the limit only ends the test if it does not."""
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)

    @property
    def scheduler_file(self) -> str:
        return str(self.directory / "scheduler.json")

    def start(self, workers: int, threads: int = 1, **environment: str) -> None:
        named = ["--scheduler-file", self.scheduler_file]
        self._start("scheduler", "dask_scheduler", "--port", "0", "--host", "127.0.0.1", *named, **environment)
        self.until(Path(self.scheduler_file).exists)
        for number in range(workers):
            self.join(f"worker-{number}", threads, **environment)

    def join(self, name: str, threads: int = 1, **environment: str) -> None:
        options = ["--nthreads", str(threads), "--no-nanny"]
        self._start(name, "dask_worker", *options, "--scheduler-file", self.scheduler_file, **environment)

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def stop(self) -> None:
        for name in self.processes:
            self.kill(name)

    def kill_process(self, process: int) -> None:
        """Kill the process that runs a task, and wait until it has ended."""
        running = self.running()
        os.kill(process, signal.SIGKILL)
        self.until(lambda: self.running() < running)

    def running(self) -> int:
        return [process.poll() for process in self.processes.values()].count(None)

    def _start(self, name: str, program: str, *arguments: str, **environment: str) -> None:
        """Start a program of Dask; if `environment` has a PYTHONPATH, in a separate Python process."""
        code = f"from distributed.cli.{program} import main; main()"
        words = [*arguments, "--no-dashboard"]
        separate = "PYTHONPATH" in environment
        with (self.directory / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-c", code, *words] if separate else self.commands.python(code, *words),
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**os.environ, **environment},
            )


@pytest.fixture
def cluster(tmp_path: Path, commands: Any) -> Iterator[LoopbackCluster]:
    """Return a cluster that is not started yet; its processes are killed at the end."""
    loopback = LoopbackCluster(tmp_path, commands)
    yield loopback
    loopback.stop()
