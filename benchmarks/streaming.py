"""Throughput of `Moments.update` relative to a blocked X.T @ X in float64 over the same rows.

60,000 float32 rows of 512 features, 10 classes, blocks of 4,096 rows; alternating runs in one process, the median of
each. The product is the least that second moments can cost.

Run: python benchmarks/streaming.py [--repeats 5]
"""

import argparse
import os
import statistics
import time

import torch
from torch import Tensor

from ckpt_probe.moments import Moments

SAMPLES, FEATURES, CLASSES, ROWS = 60_000, 512, 10, 4096


def bare(features: Tensor, _labels: Tensor) -> None:
    """Sum x xᵀ over blocks."""
    total = torch.zeros(FEATURES, FEATURES, dtype=torch.float64)
    for block in features.split(ROWS):
        double = block.double()
        total.addmm_(double.T, double)


def ours(features: Tensor, labels: Tensor) -> None:
    """Accumulate counts, means, centred scatter and second moments of unit rows by class over the same blocks."""
    moments = Moments(CLASSES)
    for block, numbers in zip(features.split(ROWS), labels.split(ROWS), strict=True):
        moments.update(block, numbers)


def main() -> None:
    """Time both in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(SAMPLES, FEATURES, generator=generator)
    labels = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    spent = {bare: [], ours: []}
    for _ in range(repeats + 1):
        for function, times in spent.items():
            started = time.perf_counter()
            function(features, labels)
            times.append(time.perf_counter() - started)
    # The first round warms up.
    least, mine = (statistics.median(times[1:]) for times in spent.values())
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads; N {SAMPLES:,} D {FEATURES} C {CLASSES}")
    print(f"bare X.T @ X {least:.3f} s   Moments.update {mine:.3f} s   throughput ratio {least / mine:.2f}")


if __name__ == "__main__":
    main()
