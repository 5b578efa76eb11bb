"""What tests of every package share: an environment, commands, work that is interrupted, and a pretended device.

The device's tensors live on the CPU and obey the rules of a real device, as far as Python sees: they do not meet
tensors of the CPU, they become numpy only through `.cpu()`, and MPS takes no float64 and no copy that is not waited
for. No test of speed, nor of kernels; those marked `gpu` need the real thing.
"""

# ruff: noqa: E402, as the environment is prepared before torch is imported
import os
import runpy
from pathlib import Path

ENVIRONMENT = Path(__file__).parent / "environment"
# Processes that tests start find its sitecustomize by themselves; this one has started already, and imports torch next.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ENVIRONMENT), os.environ.get("PYTHONPATH")]))
# Kept, as what it declares is gone with the last of its names.
DECLARATIONS = runpy.run_path(str(ENVIRONMENT / "sitecustomize.py"))
# One thread each, before torch is imported: tests compare bit for bit, and two processes share two cores.
os.environ["OMP_NUM_THREADS"] = "1"

import atexit
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ckpt_probe.progress import NullProgress, Task

WARM = ENVIRONMENT / "warm.py"
# A test finds no records that another one, or an earlier run, has cached.
os.environ["CKPT_PROBE_CACHE"] = str(Path(tempfile.gettempdir(), f"ckpt-probe-tests-{os.getpid()}"))
atexit.register(shutil.rmtree, os.environ["CKPT_PROBE_CACHE"], ignore_errors=True)
VARIABLES = sorted(set(os.environ) - {"PYTEST_CURRENT_TEST"})
"""What the environment holds before any test; libraries add to it when they are imported."""


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the user in this test, a directory that does not exist yet."""
    directory = tmp_path_factory.getbasetemp() / f"cache-{uuid4().hex}"
    monkeypatch.setenv("CKPT_PROBE_CACHE", str(directory))
    return directory


def pytest_fixture_setup() -> None:
    """Every fixture, and every test, draws the same numbers whatever ran before it."""
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """As for fixtures."""
    _seed()


def _seed() -> None:
    # torch.manual_seed formats a traceback for each device that is not initialised.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """A test that leaves something behind on which a later one might depend fails itself."""
    before = _surroundings()
    yield
    after = _surroundings()
    assert {name: value for name, value in after.items() if value != before[name]} == {}


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Returns a directory by its name, which the first worker that needs it builds; all read it, none writes to it."""
    base = _shared(tmp_path_factory)
    before: dict[Path, dict[Path, tuple[int, int]]] = {}

    def build_once(name: str, build: Callable[[Path], None]) -> Path:
        directory, complete = base / "shared" / name, base / "shared" / f"{name}.complete"
        with FileLock(base / f"shared-{name}.lock"):
            if not complete.exists():
                shutil.rmtree(directory, ignore_errors=True)  # another worker may have failed to build it
                directory.mkdir(parents=True)
                build(directory)
                complete.touch()
        before.setdefault(directory, _sizes_and_times(directory))
        return directory

    yield build_once
    assert {directory: _sizes_and_times(directory) for directory in before} == before


def _sizes_and_times(directory: Path) -> dict[Path, tuple[int, int]]:
    states = {path: path.stat() for path in directory.rglob("*") if path.is_file()}
    return {path: (state.st_size, state.st_mtime_ns) for path, state in states.items()}


@pytest.fixture(scope="session")
def train_digits() -> Callable[..., Path]:
    """Trains a network on the digits in a directory, with checkpoints at some steps, and returns the directory.

    The last of the steps ends the training; sections of the configuration replace what they name.
    """
    from ckpt_probe.config import TrainingConfig
    from ckpt_probe.training import train

    def run(where: Path, steps: Sequence[int] = (1,), hidden: Sequence[int] = (16,), **sections: object) -> Path:
        settings: dict[str, object] = {
            "data": {"name": "digits"},
            "model": {"name": "mlp", "arguments": {"hidden": list(hidden)}},
            "training": {"steps": steps[-1]},
            "checkpoints": {"steps": list(steps[:-1])},
        }
        train(TrainingConfig.model_validate(settings | sections), where, device="cpu")
        return where

    return run


@pytest.fixture(scope="session")
def demo(commands: "Commands", built_once: Callable[..., Path]) -> Path:
    """A directory with the files of `ckpt-probe demo`, its output in stdout.txt, and its cache; read only."""

    def build(where: Path) -> None:
        environment = {**os.environ, "COLUMNS": "120", "CKPT_PROBE_CACHE": str(where / "cache")}
        words = commands.ckpt_probe("demo")
        done = subprocess.run(words, cwd=where, env=environment, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr
        (where / "stdout.txt").write_text(done.stdout)

    return built_once("demo", build)


STUDIES = Path(__file__).parents[1] / "sample_configs"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Returns the name of a study's function as users name it; loading it may change `sys.path`, which is restored."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return lambda function: f"{STUDIES}/{function}"


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, also where whoever runs the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _surroundings() -> dict[str, object]:
    threads = {thread.name for thread in threading.enumerate()} & {"batches_0"}
    return {
        "working directory": Path.cwd(),
        "sys.path": list(sys.path),
        "environment": {name: os.environ.get(name) for name in VARIABLES},
        "Ctrl-C": signal.getsignal(signal.SIGINT),
        "threads": threads,
        "torch's dtype": torch.get_default_dtype(),
        "torch's threads": torch.get_num_threads(),
        "torch's gradients": torch.is_grad_enabled(),
        "torch's algorithms": torch.are_deterministic_algorithms_enabled(),
        "numpy's errors": np.geterr(),
    }


@dataclass(frozen=True)
class Commands:
    """How tests start a command: a fork of a Python that has imported torch already, where the system has such.

    `path` is what PATH begins with, so that a shell finds `ckpt-probe`. Tests of a kill, of the environment or of what
    is imported start a Python of their own.
    """

    path: Path
    start: tuple[str, ...]

    def ckpt_probe(self, *words: object) -> list[str]:
        """The words that run `ckpt-probe` with these."""
        return [str(self.path / "ckpt-probe"), *map(str, words)]

    def python(self, code: str, *words: object) -> list[str]:
        """The words that run Python code, with these as its arguments."""
        return [*self.start, "-c", code, *map(str, words)]

    def script(self, file: Path, *words: object) -> list[str]:
        """The words that run a file of Python, with these as its arguments."""
        return [str(self.path / "python"), str(file), *map(str, words)]


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Starts commands; the server behind it ends with the tests."""
    with served(_shared(tmp_path_factory)) as started:
        yield started


FRAMEWORKS = (
    "lightning.pytorch",
    "peft",
    "timm",
    "torchmetrics",
    "torchvision",
    "transformers.models.auto.modeling_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.vit.modeling_vit",
    "transformers.trainer",
)


@pytest.fixture(scope="session")
def framework_commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Starts commands in a Python that has imported other frameworks beside torch."""
    with served(_shared(tmp_path_factory), *FRAMEWORKS) as started:
        yield started


def _shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary directory of all workers of this run of the tests."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextmanager
def served(base: Path, *modules: str) -> Iterator[Commands]:
    """Start commands in forks of a Python that has imported these modules too, the same for all workers."""
    if sys.platform != "linux":
        yield Commands(Path(sys.executable).parent, (sys.executable,))
        return
    name = f"server-{len(modules)}"
    with FileLock(base / f"{name}.lock"):
        directory, alive = _joined(base / name)
        if alive is None:
            # Not pytest's own directory: the name of a socket must be short.
            directory = Path(tempfile.mkdtemp())
            os.mkfifo(directory / "alive")
            _write_programs(directory)
            server = [sys.executable, str(WARM), "serve", str(directory), *modules]
            process = subprocess.Popen(server, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
            assert process.stdout is not None
            with process.stdout:
                assert process.stdout.readline() == b"listening\n"
            (base / name).write_text(str(directory))
            process.returncode = 0  # it outlives this process if another worker still needs it
            _, alive = _joined(base / name)
    assert alive is not None
    yield Commands(directory, _client(directory))
    os.close(alive)


def _joined(name: Path) -> tuple[Path, int | None]:
    """The directory of a server, and the pipe that keeps it running; None if it has ended."""
    directory = Path(name.read_text()) if name.exists() else name
    try:
        return directory, os.open(directory / "alive", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return directory, None


def _client(directory: Path) -> tuple[str, ...]:
    return (sys.executable, "-S", "-E", str(WARM), f"{directory}/socket")


def _write_programs(directory: Path) -> None:
    command = " ".join(_client(directory))
    programs = {
        "ckpt-probe": f'exec {command} ckpt-probe "$@"',
        "python": f'case "$1" in *.py) exec {command} python "$@";; *) exec {sys.executable} "$@";; esac',
    }
    for name, program in programs.items():
        (directory / name).write_text(f"#!/bin/sh\n{program}\n")
        (directory / name).chmod(0o755)


HOME = torch.device("cpu")
MAY_MEET = {"copy_", "__getitem__", "__setitem__"}
"""Copies between devices, and indices, which may be on the CPU."""


class Elsewhere(Tensor):
    """A tensor that says it is on the pretended device."""


class Pretended(TorchFunctionMode):
    """While entered, `device` is there."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)
        self.float64 = self.device.type != "mps"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not all(issubclass(kind, Tensor) for kind in types):
            # A proxy of torch.fx, which records the call.
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return self._call(func, getattr(func, "__name__", ""), args, kwargs)

    def _call(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        tensors = list(_tensors([args, kwargs]))
        here = any(isinstance(tensor, Elsewhere) for tensor in tensors)
        if func == Tensor.device.__get__:
            return self.device if here else HOME
        if func == Tensor.cpu or func == Tensor.to:
            return self._moved(args[0], args[1:] if func == Tensor.to else (HOME,), kwargs)
        if func is torch._has_compatible_shallow_copy_type:
            return isinstance(args[0], Elsewhere) == isinstance(args[1], Elsewhere)
        if func is torch._C._nn._parse_to:
            return func(*args, **kwargs)
        if name == "numpy" and here:
            raise TypeError(f"can't convert a tensor of {self.device} to numpy")
        if kwargs.get("device") is not None and torch.device(kwargs["device"]) == self.device:
            here, kwargs = True, {**kwargs, "device": HOME}
        elif here and not (name in MAY_MEET and isinstance(args[0], Elsewhere)) and any(map(_at_home, tensors)):
            raise RuntimeError(f"{name}: expected all tensors on one device, found {self.device} and cpu")
        result = func(*args, **kwargs)
        return self._claimed(result) if here else result

    def _moved(self, tensor: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
        if args and isinstance(args[0], Tensor):
            like = args[0]
            args = (self.device if isinstance(like, Elsewhere) else HOME, like.dtype, *args[1:])
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        there = isinstance(tensor, Elsewhere) if device is None else device.type == self.device.type
        if non_blocking and self.device.type == "mps" and there != isinstance(tensor, Elsewhere):
            raise RuntimeError("a copy to or from MPS that is not waited for may read what is gone")
        if dtype is not None and isinstance(tensor, Elsewhere) and not there:
            tensor = self._claimed(tensor.to(dtype)).as_subclass(Tensor)
        moved = tensor.as_subclass(Tensor).to(dtype=dtype or tensor.dtype)
        return self._claimed(moved) if there else moved

    def _claimed(self, result: Any) -> Any:
        if isinstance(result, Tensor):
            if result.dtype == torch.float64 and not self.float64:
                raise TypeError(f"{self.device} has no float64")
            return result if isinstance(result, Elsewhere) else result.as_subclass(Elsewhere)
        if isinstance(result, tuple | list):
            claimed = [self._claimed(part) for part in result]
            return type(result)(claimed) if type(result) in {tuple, list} else type(result)(iter(claimed))
        return result


def _at_home(tensor: Tensor) -> bool:
    # A number on the CPU may meet tensors anywhere.
    return tensor.ndim > 0 and not isinstance(tensor, Elsewhere)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """`with pretended("mps"):` or "cuda:0": the device is there, for tensors that are moved to it or made on it."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.zeros(1, dtype=torch.uint8))
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: None)
    return Pretended


class Interrupting(NullProgress):
    """Progress that interrupts the evaluation of a split that follows `left` others; keeps what is said."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.evaluated = 0
        self.said: list[str] = []

    def task(self, name: str, total: int | None, unit: str = "") -> AbstractContextManager[Task]:
        self.evaluated += name in {"train", "test"}
        if self.evaluated > self.left:
            raise KeyboardInterrupt
        return super().task(name, total, unit)

    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def interrupting() -> Callable[[int], Interrupting]:
    """Makes a progress that interrupts whoever shows it after so many evaluated splits."""
    return Interrupting
