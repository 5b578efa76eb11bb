"""Fixtures for all tests: the environment, commands, progress that interrupts an evaluation, and a simulated device.

Tensors of the simulated device are stored on the CPU but follow the rules of a real device as far as Python code can
observe them: an operation that mixes them with CPU tensors fails, only `.cpu()` makes them available to numpy, and
MPS accepts neither float64 nor an asynchronous copy. Speed and kernels cannot be tested with it; tests marked `gpu`
need a real device.
"""

# ruff: noqa: E402 (the environment must be prepared before torch is imported)
import gc
import os
import runpy
from pathlib import Path

# Searches for unreachable cycles take a quarter of the time of all tests, since the imported modules are millions of
# objects: these are exempt once the tests are collected, and new objects are searched less often.
gc.set_threshold(100_000, 20, 20)

ENVIRONMENT = Path(__file__).parent / "environment"
# Processes that tests start import its sitecustomize at startup; this one has started already and imports torch next.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ENVIRONMENT), os.environ.get("PYTHONPATH")]))
# The declared operators exist only while this reference to their library exists.
DECLARATIONS = runpy.run_path(str(ENVIRONMENT / "sitecustomize.py"))
# Set before torch is imported: with one thread results are equal bit for bit, and two test processes share two cores.
os.environ["OMP_NUM_THREADS"] = "1"

import atexit
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
# No test reads records that another test or an earlier run has cached.
os.environ["CKPT_PROBE_CACHE"] = str(Path(tempfile.gettempdir(), f"ckpt-probe-tests-{os.getpid()}"))
atexit.register(shutil.rmtree, os.environ["CKPT_PROBE_CACHE"], ignore_errors=True)
VARIABLES = sorted(set(os.environ) - {"PYTEST_CURRENT_TEST"})
"""Names of the environment variables before the first test; libraries set more when they are imported."""


def pytest_collection_finish() -> None:
    """Exempt all objects that exist before the first test from searches for unreachable cycles."""
    gc.freeze()


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set and return the path of the user's cache for this test: a directory that does not exist yet."""
    directory = tmp_path_factory.getbasetemp() / f"cache-{uuid4().hex}"
    monkeypatch.setenv("CKPT_PROBE_CACHE", str(directory))
    return directory


def pytest_fixture_setup() -> None:
    """Seed all generators, so that the random numbers of a fixture do not depend on what ran before it."""
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Seed all generators before each test."""
    _seed()


def _seed() -> None:
    # torch.manual_seed formats a traceback for each device that is not initialised.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)


@pytest.fixture(autouse=True)
def _global_state_is_restored() -> Iterator[None]:
    """Fail a test that changes global state on which a later test might depend."""
    before = _global_state()
    yield
    after = _global_state()
    assert {name: value for name, value in after.items() if value != before[name]} == {}


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Return a function that returns a directory by name, built by the first worker that needs it; read only."""
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
    """Return a function that trains a network on the digits, with checkpoints at some steps, and returns its directory.

    The training ends at the last of the steps. Further keywords replace sections of the configuration by name.
    """
    from ckpt_probe.config import TrainingConfig
    from ckpt_probe.training import train

    def run(directory: Path, steps: Sequence[int] = (1,), hidden: Sequence[int] = (16,), **sections: object) -> Path:
        settings: dict[str, object] = {
            "data": {"name": "digits"},
            "model": {"name": "mlp", "arguments": {"hidden": list(hidden)}},
            "training": {"steps": steps[-1]},
            "checkpoints": {"steps": list(steps[:-1])},
        }
        train(TrainingConfig.model_validate(settings | sections), directory, device="cpu")
        return directory

    return run


@pytest.fixture(scope="session")
def demo(commands: "Commands", built_once: Callable[..., Path]) -> Path:
    """Return a directory with the files of `ckpt-probe demo`, its output in stdout.txt, and its cache; read only."""

    def build(directory: Path) -> None:
        environment = {**os.environ, "COLUMNS": "120", "CKPT_PROBE_CACHE": str(directory / "cache")}
        words = commands.ckpt_probe("demo")
        done = subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr
        (directory / "stdout.txt").write_text(done.stdout)

    return built_once("demo", build)


STUDIES = Path(__file__).parents[1] / "sample_configs"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that names a study's function as users do; changes of `sys.path` by loading it are reverted."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return lambda function: f"{STUDIES}/{function}"


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt, also if the tests run in the background, where shells ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _global_state() -> dict[str, object]:
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
    """Command lines that run in a fork of a Python process that has imported torch already (a new process on macOS).

    Tests of killed processes, of the environment and of imports start a new Python process instead.

    Attributes:
        path: Directory with the program `ckpt-probe`, to be put first in PATH.
        start: Words that start Python.
    """

    path: Path
    start: tuple[str, ...]

    def ckpt_probe(self, *words: object) -> list[str]:
        """Return the command line that runs `ckpt-probe` with these arguments."""
        return [str(self.path / "ckpt-probe"), *map(str, words)]

    def python(self, code: str, *words: object) -> list[str]:
        """Return the command line that runs Python code with these arguments."""
        return [*self.start, "-c", code, *map(str, words)]

    def script(self, file: Path, *words: object) -> list[str]:
        """Return the command line that runs a Python file with these arguments."""
        return [str(self.path / "python"), str(file), *map(str, words)]


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Yield the command lines; the process that they fork ends with the tests."""
    with served(_shared(tmp_path_factory), (sys.executable, str(WARM))) as started:
        yield started


@pytest.fixture(scope="session", autouse=True)
def _workers_are_forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let worker processes that tests start be forks of the process of `commands`, from the first one on."""
    if sys.platform != "linux" or sys.version_info >= (3, 14):
        yield
        return
    from multiprocessing import forkserver

    start = forkserver.ensure_running
    with ExitStack() as open_until_the_end, pytest.MonkeyPatch.context() as patch:

        def ensure_running() -> None:
            patch.setattr(forkserver, "ensure_running", start)
            commands = open_until_the_end.enter_context(served(_shared(tmp_path_factory), (sys.executable, str(WARM))))
            address = f"{commands.path}/workers-{os.getpid()}"
            process = subprocess.Popen([*commands.start, "workers", address], stdin=subprocess.PIPE)
            while not Path(address).exists():
                assert process.poll() is None
                time.sleep(0.01)
            assert process.stdin is not None
            # What multiprocessing stores when it starts the server itself, which ends when the pipe is closed.
            server = forkserver._forkserver
            server._forkserver_address, server._forkserver_pid = address, process.pid
            with process.stdin:
                server._forkserver_alive_fd = os.dup(process.stdin.fileno())
            process.returncode = 0  # it ends after this process
            start()

        patch.setattr(forkserver, "ensure_running", ensure_running)
        yield


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
def framework_commands(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Yield command lines that run in a fork of a Python process that has also imported other frameworks."""
    with served(_shared(tmp_path_factory), commands.start, *FRAMEWORKS) as started:
        yield started


def _shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the temporary directory that all workers of this test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextmanager
def served(base: Path, start: tuple[str, ...], *modules: str) -> Iterator[Commands]:
    """Yield command lines that run in forks of one Python process for all workers, which imports these modules.

    Args:
        base: Directory that all workers share.
        start: Words that start the process: a new one, or a fork of another one of its kind.
        modules: Names of modules that the process imports too.
    """
    if sys.platform != "linux":
        yield Commands(Path(sys.executable).parent, (sys.executable,))
        return
    name = f"server-{len(modules)}"
    with FileLock(base / f"{name}.lock"):
        directory, alive = _joined(base / name)
        if alive is None:
            # The path of a socket must be short, so it is not in pytest's directory.
            directory = Path(tempfile.mkdtemp())
            os.mkfifo(directory / "alive")
            _write_programs(directory)
            server = [*start, "serve", str(directory), *modules]
            # The package sets this variable while it starts workers.
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
            process = subprocess.Popen(
                server, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
            )
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
    """Return the directory of a server and its open pipe, which keeps it running; None for the pipe if it has ended."""
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
        **{name: f'exec {command} {name} "$@"' for name in ("ckpt-probe", "dask")},
        "python": f'case "$1" in *.py) exec {command} python "$@";; *) exec {sys.executable} "$@";; esac',
    }
    for name, program in programs.items():
        (directory / name).write_text(f"#!/bin/sh\n{program}\n")
        (directory / name).chmod(0o755)


CPU = torch.device("cpu")
MIXED_OPERATIONS = {"copy_", "__getitem__", "__setitem__"}
"""Operations on a tensor of the device that accept CPU tensors: copies between devices, and indices."""


class DeviceTensor(Tensor):
    """A tensor whose `device` is the simulated one."""


class SimulatedDevice(TorchFunctionMode):
    """A context in which the simulated device is available."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)
        self.float64 = self.device.type != "mps"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not all(issubclass(kind, Tensor) for kind in types):
            # torch.fx passes a proxy, which records the call.
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return self._call(func, getattr(func, "__name__", ""), args, kwargs)

    def _call(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        tensors = list(_tensors([args, kwargs]))
        on_device = any(isinstance(tensor, DeviceTensor) for tensor in tensors)
        if func == Tensor.device.__get__:
            return self.device if on_device else CPU
        if func == Tensor.cpu or func == Tensor.to:
            return self._moved(args[0], args[1:] if func == Tensor.to else (CPU,), kwargs)
        if func is torch._has_compatible_shallow_copy_type:
            return isinstance(args[0], DeviceTensor) == isinstance(args[1], DeviceTensor)
        if func is torch._C._nn._parse_to:
            return func(*args, **kwargs)
        if name == "numpy" and on_device:
            raise TypeError(f"can't convert a tensor of {self.device} to numpy")
        if kwargs.get("device") is not None and torch.device(kwargs["device"]) == self.device:
            on_device, kwargs = True, {**kwargs, "device": CPU}
        elif (
            on_device
            and not (name in MIXED_OPERATIONS and isinstance(args[0], DeviceTensor))
            and any(map(_on_cpu, tensors))
        ):
            raise RuntimeError(f"{name}: expected all tensors on one device, found {self.device} and cpu")
        result = func(*args, **kwargs)
        return self._marked(result) if on_device else result

    def _moved(self, tensor: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
        if args and isinstance(args[0], Tensor):
            like = args[0]
            args = (self.device if isinstance(like, DeviceTensor) else CPU, like.dtype, *args[1:])
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        to_device = isinstance(tensor, DeviceTensor) if device is None else device.type == self.device.type
        if non_blocking and self.device.type == "mps" and to_device != isinstance(tensor, DeviceTensor):
            raise RuntimeError("an asynchronous copy to or from MPS may read memory that was freed")
        if dtype is not None and isinstance(tensor, DeviceTensor) and not to_device:
            tensor = self._marked(tensor.to(dtype)).as_subclass(Tensor)
        moved = tensor.as_subclass(Tensor).to(dtype=dtype or tensor.dtype)
        return self._marked(moved) if to_device else moved

    def _marked(self, result: Any) -> Any:
        if isinstance(result, Tensor):
            if result.dtype == torch.float64 and not self.float64:
                raise TypeError(f"{self.device} has no float64")
            return result if isinstance(result, DeviceTensor) else result.as_subclass(DeviceTensor)
        if isinstance(result, tuple | list):
            marked = [self._marked(part) for part in result]
            return type(result)(marked) if type(result) in {tuple, list} else type(result)(iter(marked))
        return result


def _on_cpu(tensor: Tensor) -> bool:
    # A 0-d tensor on the CPU may be combined with tensors of any device.
    return tensor.ndim > 0 and not isinstance(tensor, DeviceTensor)


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
    """Return a context by device: in `with pretended("mps"):` tensors can be made on this device and moved to it."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.zeros(1, dtype=torch.uint8))
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: None)
    return SimulatedDevice


class Interrupting(NullProgress):
    """Progress that raises KeyboardInterrupt after `left` evaluated splits, and collects messages."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.evaluated = 0
        self.messages: list[str] = []

    def task(self, name: str, total: int | None, unit: str = "") -> AbstractContextManager[Task]:
        self.evaluated += name in {"train", "test"}
        if self.evaluated > self.left:
            raise KeyboardInterrupt
        return super().task(name, total, unit)

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture
def interrupting() -> Callable[[int], Interrupting]:
    """Return a function that makes a progress which raises KeyboardInterrupt after a number of evaluated splits."""
    return Interrupting
