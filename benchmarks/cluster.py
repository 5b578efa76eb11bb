"""Costs and gains of many workers: overhead per task, two workers against one, and the limit of a scheduler.

overhead: tasks that do nothing, in turn in this process, in two processes, and through a Dask scheduler on loopback.
speedup: extraction of 8 checkpoints and analysis of 16 dumps (D 384) with --workers 1 and 2, one thread each.
saturation: 10,000 tasks that only sleep, on a real scheduler with 64 threads: the ideal time divided by the measured
one, by the length of a task.
many: extraction and analysis of 250, 500 and 1,000 small checkpoints: seconds of each, and the largest memory.

Run: python benchmarks/cluster.py [overhead] [speedup] [saturation] [many]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scaling import write

if TYPE_CHECKING:
    from ckpt_probe.scheduling import Workers

PARTS = ("overhead", "speedup", "saturation", "many")
THREADS = 64
LENGTHS = (1.0, 0.3, 0.1, 0.03)
STAND_INS = 10_000
CHECKPOINTS, DUMPS = 8, 16
MANY = (250, 500, 1000)
RUNNER = """
import sys
from pathlib import Path
from ckpt_probe.cli.app import run
code = run(sys.argv[1:])
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024)
sys.exit(code)
"""


@contextmanager
def cluster(folder: Path, *, threads: int, processes: int = 1) -> Iterator[str]:
    """Start a Dask scheduler and worker processes on loopback, as `dask scheduler` and `dask worker` do."""
    scheduler_file = folder / "scheduler.json"
    named = ["--scheduler-file", str(scheduler_file), "--no-dashboard"]
    started = [_program("dask_scheduler", "--port", "0", "--host", "127.0.0.1", *named)]
    while not scheduler_file.exists():
        time.sleep(0.05)
    worker = ("dask_worker", "--nthreads", str(threads), "--no-nanny", *named)
    started += [_program(*worker) for _ in range(processes)]
    try:
        yield str(scheduler_file)
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


def _program(name: str, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"distributed.cli.{name}", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def seconds_of(lengths: Sequence[float], workers: "Workers") -> float:
    """Return the seconds of tasks that sleep for the given lengths, without the start of the workers."""
    from ckpt_probe.scheduling import Team, results

    def quiet(_message: str) -> None: ...

    with Team(workers, quiet) as team:
        warm = [0.0] * 2 * THREADS
        for _ in results(time.sleep, warm, names=["warm"] * len(warm), workers=team, say=quiet):
            pass
        started = time.perf_counter()
        for _ in results(time.sleep, lengths, names=["task"] * len(lengths), workers=team, say=quiet):
            pass
        return time.perf_counter() - started


def overhead(folder: Path) -> None:
    """Print the milliseconds of a task that does nothing."""
    from ckpt_probe.scheduling import Workers

    nothing = [0.0] * 2000
    print(f"overhead here: {seconds_of(nothing, Workers()) / 2:.3f} ms a task")
    print(f"overhead in 2 processes: {seconds_of(nothing, Workers(2)) / 2:.3f} ms a task")
    with cluster(folder, threads=1, processes=2) as address:
        print(f"overhead on Dask, 2 workers: {seconds_of(nothing, Workers(1, address)) / 2:.3f} ms a task (limit 20)")


def saturation(folder: Path) -> None:
    """Print the efficiency for sleeping tasks of several lengths."""
    from ckpt_probe.scheduling import Workers

    with cluster(folder, threads=THREADS) as address:
        for length in LENGTHS:
            duration = seconds_of([length] * STAND_INS, Workers(1, address))
            ideal = STAND_INS * length / THREADS
            print(
                f"saturation: {STAND_INS:,} tasks of {length:g} s on {THREADS} threads: {duration:.1f} s, "
                f"ideal {ideal:.1f} s, {ideal / duration:.2f}; {STAND_INS / duration:.0f} tasks a second",
                flush=True,
            )


def ours(*words: object) -> tuple[float, int]:
    """Return the seconds and MiB of a ckpt-probe command in a separate process with one thread."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, *map(str, words)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return time.perf_counter() - started, int(done.stdout.splitlines()[-1])


def checkpoints(folder: Path, count: int, name: str, side: int) -> Path:
    """Write untrained checkpoints of a built-in model for images of `side` × `side` pixels."""
    import torch
    from safetensors.torch import save_file

    from ckpt_probe.models import build_model

    folder.mkdir()
    for number in range(count):
        torch.manual_seed(number)
        weights = build_model(name, shape(side)).state_dict()
        save_file(weights, folder / f"step-{number:06d}.safetensors")
    return folder


def shape(side: int) -> dict[str, object]:
    """Return the arguments of a built-in model for images of `side` × `side` pixels."""
    return {"input_shape": [1, side, side], "classes": 10}


def subject(folder: Path, name: str, samples: int, side: int) -> list[str]:
    """Return the words that name a built-in model and random images of ten classes."""
    draw, file = np.random.default_rng(0), folder / f"{side}.npz"
    images = draw.random((samples, 1, side, side), dtype=np.float32)
    np.savez(file, x_test=images, y_test=np.arange(samples) % 10)
    model = ["--model", name, "--model-argument", json.dumps(shape(side))]
    return [*model, "--data", f"npz:{file}", "--device", "cpu"]


def speedup(folder: Path) -> None:
    """Print the speed of two workers of one thread each against one."""
    run, model = checkpoints(folder / "series", CHECKPOINTS, "resnet", 28), subject(folder, "resnet", 12_000, 28)
    rows = folder / "rows"
    rows.mkdir()
    for number in range(DUMPS):
        write(rows / f"step-{number:06d}.h5", 20_000, 384, 10)
    seconds_of_command: dict[str, list[float]] = {"extract": [], "analyze": []}
    for workers in (1, 2):
        staff = ("--workers", workers)
        seconds_of_command["extract"].append(ours("extract", run, "-o", folder / f"dumps-{workers}", *model, *staff)[0])
        seconds_of_command["analyze"].append(
            ours("analyze", rows, "--set", "cache=false", *staff, "-o", folder / f"{workers}.jsonl")[0]
        )
    same = (folder / "1.jsonl").read_bytes() == (folder / "2.jsonl").read_bytes()
    for command, (first, second) in seconds_of_command.items():
        print(f"speedup of {command}: {first:.1f} s with 1 worker, {second:.1f} s with 2: {first / second:.2f} ×")
    print(f"records of both are the same bytes: {same}")


def many(folder: Path) -> None:
    """Print times and memory for a growing number of small checkpoints."""
    model = subject(folder, "mlp", 200, 8)
    for count in MANY:
        run = checkpoints(folder / f"many-{count}", count, "mlp", 8)
        out = folder / f"many-dumps-{count}"
        extracted, first = ours("extract", run, "-o", out, *model)
        analyzed, second = ours("analyze", out, "-o", folder / f"many-{count}.jsonl", "--set", "cache=false")
        texts = [f"{duration:.1f} s ({1e3 * duration / count:.0f} ms each" for duration in (extracted, analyzed)]
        print(
            f"many: {count:5,} checkpoints: extract {texts[0]}, {first} MiB), analyze {texts[1]}, {second} MiB)",
            flush=True,
        )


def main() -> None:
    """Run the requested parts, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parts = parser.parse_args().parts or PARTS
    print(f"{os.cpu_count()} cores")
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            {"overhead": overhead, "speedup": speedup, "saturation": saturation, "many": many}[part](Path(folder))


if __name__ == "__main__":
    main()
