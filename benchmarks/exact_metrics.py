"""The direct N × N computation at sample level against class moments: equal numbers, and the ratio of times.

Direct: three Gram matrices and their eigenvalues in float64. Ours: `Moments`, which gives the complete record. Both run
in one process on the same rows, one after the other; ours is the median of five runs, since it is short.

Run: python benchmarks/exact_metrics.py [--case N,D,C ...]
"""

import argparse
import os
import statistics
import time

import torch
from torch import Tensor

from ckpt_probe.moments import Moments

CASES = ("4000,128,10", "6000,512,10", "10000,128,10")
TOLERANCE = 1e-9
NAMES = ("entropy_features", "entropy_weights", "entropy_joint", "mir", "hdr")


def labelled_features(samples: int, features: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (N, D) around the weights (C, D) of their labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    labels = torch.arange(samples) % classes
    noise = torch.randn(samples, features, generator=generator, dtype=torch.float64)
    return weights[labels] + 2 * noise, labels, weights


def direct(Z: Tensor, labels: Tensor, weights: Tensor) -> list[float]:
    """Compute the definition directly: entropies of two N × N Gram matrices and of their elementwise product."""
    unit = torch.nn.functional.normalize(Z)
    heads = torch.nn.functional.normalize(weights)[labels]
    K1, K2 = unit @ unit.T, heads @ heads.T
    first, second, joint = entropy(K1), entropy(K2), entropy(K1 * K2)
    return [
        first,
        second,
        joint,
        (first + second - joint) / min(first, second),
        abs(first - second) / max(first, second),
    ]


def entropy(K: Tensor) -> float:
    """Return the matrix entropy of a Gram matrix in nats."""
    values = torch.linalg.eigvalsh(K / len(K))
    values = values[values > len(K) * torch.finfo(K.dtype).eps * values.max()]
    return float(-(values * values.log()).sum())


def ours(Z: Tensor, labels: Tensor, weights: Tensor) -> list[float]:
    """Compute the same numbers from class moments."""
    moments = Moments(len(weights))
    moments.update(Z, labels)
    record = moments.compute(weights)
    return [float(record[f"sample.{name}"] or 0) for name in NAMES]


def measure(case: str) -> None:
    """Print both times of a case, their ratio, and the largest relative difference."""
    samples, features, classes = map(int, case.split(","))
    rows = labelled_features(samples, features, classes)
    ours(*rows)
    times, results = [], []
    for function, repeats in ((ours, 5), (direct, 1)):
        spent = []
        for _ in range(repeats):
            started = time.perf_counter()
            numbers = function(*rows)
            spent.append(time.perf_counter() - started)
        times.append(statistics.median(spent))
        results.append(numbers)
    worst = max(abs(a - b) / abs(b) for a, b in zip(*results, strict=True))
    verdict = "same numbers" if worst <= TOLERANCE else "DIFFERENT"
    times_text = f"ours {times[0]:8.3f} s   direct {times[1]:8.2f} s   ratio {times[1] / times[0]:7.1f}"
    print(f"N {samples:6} D {features:4} C {classes:4}   {times_text}   {verdict} (relative {worst:.0e})", flush=True)


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", help="N,D,C; may be repeated")
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    for case in parser.parse_args().case or CASES:
        measure(case)


if __name__ == "__main__":
    main()
