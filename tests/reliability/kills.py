"""Kill each command with signal 9 at a random moment, run it again, and compare the files with an uninterrupted run.

    python tests/reliability/kills.py --kills 200 --seed 0

The moment is either one of Python's audit events (a file opened, renamed or removed, a directory made) or a fraction of
the command's running time. Events are the same on every machine; times also fall between events. The scheduler and the
two workers of the cluster are not killed: they serve the command both times.
"""

import argparse
import gc
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

import ckpt_probe
from ckpt_probe.analysis import analyze
from ckpt_probe.cli.app import run

sys.path.insert(0, str(Path(__file__).parents[1] / "environment"))
from warm import serve_workers

CONFIG = """\
[data]
name = "digits"
[model]
name = "mlp"
arguments = { hidden = [8] }
[training]
steps = 60
[optimizer]
name = "sgd"
learning_rate = 0.01
[checkpoints]
every_steps = 20
"""
A, B, C = (f"run/checkpoints/step-0000{step}.safetensors" for step in ("00", "60", "20"))
COMMANDS = {
    "train": "train a.toml -o out",
    "extract": "extract run -o out --split test",
    "extract-moments": "extract run -o out --split test --store moments",
    "analyze": "analyze dumps --json -o out.jsonl",
    "interpolate": f"interpolate {A} {B} -o out --points 5 --split test",
    "midpoint": f"interpolate {A} {B} -o out --path bezier --set curve_epochs=1 --points 3 --split test",
    "interpolate-file": f"interpolate {A} {B} --alpha 0.3 --out out.safetensors",
    "plane": f"plane {A} {B} {C} -o out --grid 3 --split test",
    "prune": f"prune {B} --sparsity 0.5,0.9 -o out",
    "report": "report dumps -o out.html",
    "ranges": "extract run -o out --split test --workers 2 --set rows_per_task=128 --batch-size 64",
    "cluster": "extract run -o out --split test --workers SCHEDULER",
}
APART = re.compile(r"ckpt_probe\.(integrations|.*\.child|.*__main__)")
"""Modules that no command imports or that are programs of their own."""
EVENTS = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"})


def import_all() -> None:
    """Import every module that commands import, so that no audit event in a forked process comes from an import."""
    import_module("torch._dynamo")
    for module in pkgutil.walk_packages(ckpt_probe.__path__, "ckpt_probe."):
        if not APART.match(module.name):
            import_module(module.name)


def run_forked(directory: Path, words: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    """Run a command in a fork of this process, in a directory, and return its exit code (negative for a signal)."""
    child = os.fork()
    if not child:
        os.chdir(directory)
        output = os.open(directory / ".said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if "--workers" in words:
            serve_workers()
        prepare()
        code = 99
        with suppress(BaseException):
            code = run(words)
        sys.stdout.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_events(file: Path) -> Callable[[], None]:
    """Return a function that makes the fork write the number of its events to a file."""

    def prepare() -> None:
        events = [0]

        def hook(event: str, arguments: object) -> None:
            if event in EVENTS:
                events[0] += 1
                descriptor = os.dup(keep)
                os.pwrite(descriptor, b"%9d" % events[0], 0)
                os.close(descriptor)

        keep = os.open(file, os.O_WRONLY | os.O_CREAT)
        sys.addaudithook(hook)

    return prepare


def kill_at_event(number: int) -> Callable[[], None]:
    """Return a function that makes the fork kill itself at an event with a given number."""

    def prepare() -> None:
        remaining = [number]

        def hook(event: str, arguments: object) -> None:
            if event in EVENTS:
                remaining[0] -= 1
                if remaining[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return prepare


def kill_after(seconds: float) -> Callable[[], None]:
    """Return a function that makes the fork kill itself after a number of seconds."""

    def prepare() -> None:
        def kill() -> None:
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()

    return prepare


def contents(directory: Path) -> dict[str, object]:
    """Return the numbers and text of every file by its name, without times."""
    files: dict[str, object] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_dir() or path.name == ".said":
            continue
        name = str(path.relative_to(directory))
        if path.suffix == ".h5":
            files[name] = [str(record) for record in analyze(path)]
        elif path.suffix in {".safetensors", ".toml"} and path.name != "state.safetensors":
            files[name] = path.read_bytes()
        elif path.suffix == ".html" or path.name == "state.safetensors":
            files[name] = len(path.read_bytes()) > 100
        else:
            files[name] = re.sub(r'"(seconds|time|date|written)": *("[^"]*"|[\d.e+-]+)', "", path.read_text())
    return files


class Harness:
    """The state in which every command starts, and the files that each writes without an interruption."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.start = folder / "start"
        self.start.mkdir()
        (self.start / "a.toml").write_text(CONFIG)
        for words in ("train a.toml -o run", "extract run -o dumps --split test"):
            self.run_or_fail(self.start, words.split())
        self._whole: dict[str, tuple[dict[str, object], int, float]] = {}
        self._cluster: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Harness":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._cluster:
            process.kill()
            process.wait()

    def words(self, name: str) -> list[str]:
        """Return the words of a command; the first one that needs a cluster starts it."""
        if "SCHEDULER" in COMMANDS[name] and not self._cluster:
            import_module("distributed")
            self._start("dask_scheduler", "--port", "0", "--host", "127.0.0.1")
            for _ in range(2):
                self._start("dask_worker", "--nthreads", "1", "--no-nanny")
        return COMMANDS[name].replace("SCHEDULER", str(self._folder / "scheduler.json")).split()

    def uninterrupted(self, name: str) -> tuple[dict[str, object], int, float]:
        """Return the files of an uninterrupted command, the number of its events, and its seconds."""
        if name not in self._whole:
            # The directory is the one used later, since some files contain absolute paths.
            directory = shutil.copytree(self.start, self._folder / "work")
            began = time.monotonic()
            self.run_or_fail(directory, self.words(name), count_events(self._folder / f"{name}.events"))
            duration = time.monotonic() - began
            events = int((self._folder / f"{name}.events").read_text())
            self._whole[name] = contents(directory), events, duration
            shutil.rmtree(directory)
        return self._whole[name]

    def kill(self, name: str, random: np.random.Generator, *, by_time: bool) -> str:
        """Kill a command once, run it again, and return "same" or a description of the difference."""
        expected_files, events, seconds = self.uninterrupted(name)
        directory = shutil.copytree(self.start, self._folder / "work")
        try:
            prepare = kill_after(random.uniform(0, seconds)) if by_time else kill_at_event(random.integers(events) + 1)
            words = self.words(name)
            code = run_forked(directory, words, prepare)
            if code not in {0, -signal.SIGKILL}:
                return f"ended with {code}: {(directory / '.said').read_text()[-300:]}"
            if name == "train" and (directory / "out").exists():
                words.append("--resume")
            if code and self.run_again(directory, words) not in {0, 2}:
                return f"the second run failed: {(directory / '.said').read_text()[-300:]}"
            return _difference(contents(directory), expected_files)
        finally:
            shutil.rmtree(directory)

    def run_again(self, directory: Path, words: list[str]) -> int:
        code = run_forked(directory, words)
        output = (directory / ".said").read_text()
        # The killed run had renamed its file, which the second run refuses to replace, or had not begun to write.
        return (
            code
            if code != 2 or "exists already" in output
            else run_forked(directory, [w for w in words if w != "--resume"])
        )

    def _start(self, program: str, *arguments: str) -> None:
        named = ["--scheduler-file", str(self._folder / "scheduler.json"), "--no-dashboard"]
        with (self._folder / f"cluster-{len(self._cluster)}.log").open("wb") as log:
            command = [sys.executable, "-m", f"distributed.cli.{program}", *arguments, *named]
            self._cluster.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder))

    def run_or_fail(self, directory: Path, words: list[str], prepare: Callable[[], None] = lambda: None) -> None:
        if run_forked(directory, words, prepare):
            raise RuntimeError(f"{' '.join(words)}: {(directory / '.said').read_text()}")


def _difference(files: dict[str, object], expected: dict[str, object]) -> str:
    for problem, names in (("left", files.keys() - expected.keys()), ("missing", expected.keys() - files.keys())):
        if names:
            return f"{problem}: {sorted(names)}"
    return next((f"other contents: {name}" for name in expected if files[name] != expected[name]), "same")


def main() -> int:
    """Kill commands in turn, print the outcomes, and exit with 1 if the files of one differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first kill, to go on where one stopped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--events-only", action="store_true")
    arguments_given = parser.parse_args()
    import_all()
    gc.freeze()
    torch.set_num_threads(1)
    ends: Counter = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Harness(Path(folder)) as harness:
        for number in range(arguments_given.first, arguments_given.first + arguments_given.kills):
            name = list(COMMANDS)[number % len(COMMANDS)]
            random = np.random.default_rng([arguments_given.seed, number])
            by_time = not arguments_given.events_only and bool(random.integers(2))
            end = harness.kill(name, random, by_time=by_time)
            ends[name, end == "same"] += 1
            if end != "same":
                print(f"kill {number}, {name}, by {'time' if by_time else 'event'}: {end}", flush=True)
            if time.monotonic() - began > arguments_given.seconds:
                print(f"stopped by --seconds; the next kill is {number + 1}")
                break
    for name in COMMANDS:
        print(f"{name:17} {ends[name, True]} the same, {ends[name, False]} not")
    wrong = sum(count for (_, same), count in ends.items() if not same)
    print(f"{sum(ends.values())} kills, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
