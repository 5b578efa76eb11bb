"""Speed and memory of audit and motion against reading a series once, and time of the spectra of a ResNet-50.

    python benchmarks/weight_series.py [--checkpoints 20] [--megabytes 100] [--directory DIR]

Writes a series of random tensors without hashes, reads it once by plain reads, then measures it. docs/commands.md has
memory and time of 50 checkpoints of 1 GiB.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import ckpt_probe as cp
from ckpt_probe.trajectories.spectra import spectrum_of

TENSOR = 2048
BUFFER = 2**22


def write(directory: Path, checkpoints: int, megabytes: int) -> int:
    """Write checkpoints of square matrices that move a little each time; return their size in bytes."""
    count = max(1, megabytes * 10**6 // (4 * TENSOR * TENSOR))
    state = {f"layers.{i}.weight": torch.randn(TENSOR, TENSOR) for i in range(count)}
    size = 0
    for step in range(checkpoints):
        for tensor in state.values():
            tensor.add_(0.01 * torch.randn(TENSOR, 1))
        file = directory / f"step-{step}.safetensors"
        save_file(state, file)
        size += file.stat().st_size
    return size


def read(directory: Path) -> None:
    """Read every file once."""
    buffer = bytearray(BUFFER)
    for file in sorted(directory.iterdir()):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def seconds(work) -> float:
    """Return the time that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def resnet_50() -> list[tuple[int, ...]]:
    """Return the shapes of the convolutions and the classifier of a ResNet-50."""
    shapes, inside = [(64, 3, 7, 7)], 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            shapes += [(width, inside, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            shapes += [(4 * width, inside, 1, 1)] if block == 0 else []
            inside = 4 * width
    return [*shapes, (1000, 2048)]


def main() -> None:
    """Print speeds, memory and the time of spectra."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        size = write(directory, options.checkpoints, options.megabytes)
        read(directory)
        plain = seconds(lambda: read(directory))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        measured = seconds(lambda: list(cp.weights(directory, only="audit,motion")))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        again = seconds(lambda: list(cp.weights(directory, only="audit,motion", sketch=True)))
    speeds = [f"{size / duration / 1e9:.2f} GB/s" for duration in (plain, measured, again)]
    print(f"{size / 1e9:.1f} GB: reading {speeds[0]}, audit and motion {speeds[1]}, by sketches {speeds[2]}")
    print(f"audit and motion at {plain / measured:.2f} of the speed of reading")
    print(f"memory: {after / 1024:.0f} MiB at most, {(after - before) / 1024:.0f} MiB more than before")
    random, shapes = np.random.default_rng(0), resnet_50()
    matrices = [random.normal(size=shape).astype(np.float32) for shape in shapes]
    first = [random.normal(size=shape).astype(np.float32) for shape in shapes]
    duration = seconds(lambda: [spectrum_of(*pair) for pair in zip(matrices, first, strict=True)])
    print(f"spectra of {len(shapes)} matrices, and of their changes: {duration:.1f} s")


if __name__ == "__main__":
    main()
