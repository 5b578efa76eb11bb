"""The kill harness: each command killed with -9 at a random moment, then run again: the same files, and nothing left.

    python tests/reliability/kills.py --kills 200 --seed 0

A moment is either an audit event of Python's (a file opened, renamed, removed, a directory made) or a share of the time
that the command takes: the first is the same on every machine, the second also falls between such events. The cluster's
scheduler and its two workers outlive the command that is killed, and serve the one that is run again.
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
"""Modules that no command imports, or that are programs."""
EVENTS = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"})


def import_all() -> None:
    """Import what commands import, so that every copy has it, and no event is the reading of a module."""
    import_module("torch._dynamo")
    for module in pkgutil.walk_packages(ckpt_probe.__path__, "ckpt_probe."):
        if not APART.match(module.name):
            import_module(module.name)


def in_a_copy(where: Path, words: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    """Run a command in a copy of this process, in a directory; its exit code, negative for a signal."""
    child = os.fork()
    if not child:
        os.chdir(where)
        output = os.open(where / ".said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        prepare()
        code = 99
        with suppress(BaseException):
            code = run(words)
        sys.stdout.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def counting(into: Path) -> Callable[[], None]:
    """Have the copy leave the number of its events in a file."""

    def prepare() -> None:
        seen = [0]

        def hook(event: str, arguments: object) -> None:
            if event in EVENTS:
                seen[0] += 1
                descriptor = os.dup(keep)
                os.pwrite(descriptor, b"%9d" % seen[0], 0)
                os.close(descriptor)

        keep = os.open(into, os.O_WRONLY | os.O_CREAT)
        sys.addaudithook(hook)

    return prepare


def killed_at_event(number: int) -> Callable[[], None]:
    """Have the copy kill itself at one of its events."""

    def prepare() -> None:
        left = [number]

        def hook(event: str, arguments: object) -> None:
            if event in EVENTS:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return prepare


def killed_after(seconds: float) -> Callable[[], None]:
    """Have the copy kill itself after a time."""

    def prepare() -> None:
        def kill() -> None:
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()

    return prepare


def contents(where: Path) -> dict[str, object]:
    """Every file by its name: its numbers and text, without what tells the time."""
    found: dict[str, object] = {}
    for path in sorted(where.rglob("*")):
        if path.is_dir() or path.name == ".said":
            continue
        name = str(path.relative_to(where))
        if path.suffix == ".h5":
            found[name] = [str(record) for record in analyze(path)]
        elif path.suffix in {".safetensors", ".toml"} and path.name != "state.safetensors":
            found[name] = path.read_bytes()
        elif path.suffix == ".html" or path.name == "state.safetensors":
            found[name] = len(path.read_bytes()) > 100
        else:
            found[name] = re.sub(r'"(seconds|time|date|written)": *("[^"]*"|[\d.e+-]+)', "", path.read_text())
    return found


class Harness:
    """Where every command starts from, and what each leaves when nothing comes between."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.start = folder / "start"
        self.start.mkdir()
        (self.start / "a.toml").write_text(CONFIG)
        for words in ("train a.toml -o run", "extract run -o dumps --split test"):
            self._must(self.start, words.split())
        self._whole: dict[str, tuple[dict[str, object], int, float]] = {}
        self._cluster: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Harness":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._cluster:
            process.kill()
            process.wait()

    def words(self, name: str) -> list[str]:
        """The command; where it needs a cluster, that is started with the first of them."""
        if "SCHEDULER" in COMMANDS[name] and not self._cluster:
            import_module("distributed")
            self._start("dask_scheduler", "--port", "0", "--host", "127.0.0.1")
            for _ in range(2):
                self._start("dask_worker", "--nthreads", "1", "--no-nanny")
        return COMMANDS[name].replace("SCHEDULER", str(self._folder / "scheduler.json")).split()

    def whole(self, name: str) -> tuple[dict[str, object], int, float]:
        """What is there after a command that nothing interrupted, its events, and its seconds."""
        if name not in self._whole:
            # Of the same name as later: some files name others by their whole path.
            where = shutil.copytree(self.start, self._folder / "work")
            began = time.monotonic()
            self._must(where, self.words(name), counting(self._folder / f"{name}.events"))
            taken = time.monotonic() - began
            events = int((self._folder / f"{name}.events").read_text())
            self._whole[name] = contents(where), events, taken
            shutil.rmtree(where)
        return self._whole[name]

    def kill(self, name: str, random: np.random.Generator, *, by_time: bool) -> str:
        """Kill a command once and run it again: "same", or what is wrong."""
        right, events, seconds = self.whole(name)
        where = shutil.copytree(self.start, self._folder / "work")
        try:
            when = killed_after(random.uniform(0, seconds)) if by_time else killed_at_event(random.integers(events) + 1)
            words = self.words(name)
            code = in_a_copy(where, words, when)
            if code not in {0, -signal.SIGKILL}:
                return f"ended with {code}: {(where / '.said').read_text()[-300:]}"
            if name == "train" and (where / "out").exists():
                words.append("--resume")
            if code and self._again(where, words) not in {0, 2}:
                return f"the second run failed: {(where / '.said').read_text()[-300:]}"
            return _difference(contents(where), right)
        finally:
            shutil.rmtree(where)

    def _again(self, where: Path, words: list[str]) -> int:
        code = in_a_copy(where, words)
        said = (where / ".said").read_text()
        # The kill came when the file had its name, and the second run refuses to replace it; or before there was a run.
        return (
            code if code != 2 or "exists already" in said else in_a_copy(where, [w for w in words if w != "--resume"])
        )

    def _start(self, program: str, *arguments: str) -> None:
        named = ["--scheduler-file", str(self._folder / "scheduler.json"), "--no-dashboard"]
        with (self._folder / f"cluster-{len(self._cluster)}.log").open("wb") as log:
            command = [sys.executable, "-m", f"distributed.cli.{program}", *arguments, *named]
            self._cluster.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder))

    def _must(self, where: Path, words: list[str], prepare: Callable[[], None] = lambda: None) -> None:
        if in_a_copy(where, words, prepare):
            raise RuntimeError(f"{' '.join(words)}: {(where / '.said').read_text()}")


def _difference(found: dict[str, object], right: dict[str, object]) -> str:
    for what, names in (("left", found.keys() - right.keys()), ("missing", right.keys() - found.keys())):
        if names:
            return f"{what}: {sorted(names)}"
    return next((f"other contents: {name}" for name in right if found[name] != right[name]), "same")


def main() -> int:
    """Kill so often, over all commands in turn; exit 1 where one did not end in the same files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first kill, to go on where one stopped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--events-only", action="store_true")
    asked = parser.parse_args()
    import_all()
    gc.freeze()
    torch.set_num_threads(1)
    ends: Counter = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Harness(Path(folder)) as harness:
        for number in range(asked.first, asked.first + asked.kills):
            name = list(COMMANDS)[number % len(COMMANDS)]
            random = np.random.default_rng([asked.seed, number])
            by_time = not asked.events_only and bool(random.integers(2))
            end = harness.kill(name, random, by_time=by_time)
            ends[name, end == "same"] += 1
            if end != "same":
                print(f"kill {number}, {name}, by {'time' if by_time else 'event'}: {end}", flush=True)
            if time.monotonic() - began > asked.seconds:
                print(f"stopped by --seconds; the next kill is {number + 1}")
                break
    for name in COMMANDS:
        print(f"{name:17} {ends[name, True]} the same, {ends[name, False]} not")
    wrong = sum(count for (_, same), count in ends.items() if not same)
    print(f"{sum(ends.values())} kills, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
