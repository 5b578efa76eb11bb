"""The sampled joint entropy: time and error against tolerance at a size that has no exact route; calibration at one
that has.

Large: features of N = 50,000 rows, D = 2,048, C = 1,000 (ImageNet's validation set under a ResNet-50): the whole record
of `Moments` in one pass and its samples, in multiples of one `Z.T @ Z` in float64 over the same rows, with the peak
memory of the process above the features themselves.

Small: N = 4,000, D = 256, C = 100, where the exact value is known: over many seeds, how often it lies within two
standard errors, and whether the mean error is consistent with none.

Run: python benchmarks/stochastic.py [--part large|small] [--runs 200] [--tolerance 1e-3 ...]
"""

import argparse
import math
import os
import resource
import time

import torch
from torch import Tensor

from ckpt_probe.metrics.stochastic import Sampling, estimate_entropies
from ckpt_probe.moments import Moments
from ckpt_probe.moments.grouping import group
from ckpt_probe.moments.levels.joint_operator import JointOperator
from ckpt_probe.moments.levels.spectra import of_joint_gram

LARGE, SMALL = (50_000, 2_048, 1_000), (4_000, 256, 100)
TOLERANCES = (1e-2, 1e-3, 1e-4)
SHAPES = {"plain": (1.0, 2.0, 0.0), "collapsed": (1.0, 0.5, 0.0), "offset": (1.0, 1.0, 3.0)}
"""Scale of the class's own direction, of the noise, and of a direction that all features share."""
ROWS = 4096
GIB = 2**30


def labelled_features(size: tuple[int, int, int], shape: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N, D) around the weights (C, D) of their labels (N,)."""
    samples, features, classes = size
    own, noise, shared = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(classes, features, generator=generator, dtype=dtype)
    labels = torch.arange(samples) % classes
    rows = torch.randn(samples, features, generator=generator, dtype=dtype).mul_(noise)
    rows += shared * torch.randn(features, generator=generator, dtype=dtype)
    for start in range(0, samples, ROWS):
        rows[start : start + ROWS] += own * weights[labels[start : start + ROWS]]
    return rows, labels, weights


def peak() -> float:
    """Largest memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def large(tolerances: list[float]) -> None:
    """The whole record at ImageNet's size, by tolerance."""
    rows, labels, weights = labelled_features(LARGE, "plain", torch.float32)
    held = peak()

    def blocks():
        for start in range(0, len(rows), ROWS):
            yield rows[start : start + ROWS], labels[start : start + ROWS]

    def product() -> float:
        started = time.perf_counter()
        total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        for block, _ in blocks():
            double = block.double()
            total.addmm_(double.T, double)
        return time.perf_counter() - started

    unit = min(product(), product())
    print(
        f"N {LARGE[0]:,} D {LARGE[1]:,} C {LARGE[2]:,}: Z.T @ Z {unit:.2f} s; features held: {held:.2f} GiB", flush=True
    )
    for tolerance in tolerances:
        started = time.perf_counter()
        moments = Moments(LARGE[2])
        for block in blocks():
            moments.update(*block)
        record = moments.compute(weights, rows=blocks, sampling=Sampling(tolerance))
        spent = time.perf_counter() - started
        mir, error = float(record["sample.mir"] or 0), float(record["sample.mir_stderr"] or 0)
        print(
            f"tolerance {tolerance:.0e}: MIR {mir:.6f} relative s.e. {error / mir:.1e}  "
            f"probes {record['sample.probes']:4}  {spent:6.1f} s = {spent / unit:5.1f} × Z.T @ Z  "
            f"peak above the features {peak() - held:.2f} GiB"
            f"  [{record['route']}]",
            flush=True,
        )


def small(shape: str, runs: int, tolerances: list[float]) -> None:
    """Error and error bar against the exact value, over seeds."""
    rows, labels, weights = labelled_features(SMALL, shape, torch.float64)
    heads = torch.nn.functional.normalize(weights)
    unit = torch.nn.functional.normalize(rows)
    exact = entropy(of_joint_gram(group(unit, labels), heads))
    first = entropy(torch.linalg.eigvalsh(unit.T @ unit / len(unit)))
    roots = (torch.bincount(labels) / len(labels)).sqrt()
    known = first + entropy(torch.linalg.eigvalsh(heads @ heads.T * roots.outer(roots)))
    operator = JointOperator(lambda: [(rows, labels)], heads, torch.bincount(labels), memory=GIB)
    for tolerance in tolerances:
        started = time.perf_counter()
        found = [
            estimate_entropies(operator, operator.size, known=known, sampling=Sampling(tolerance, seed=seed))
            for seed in range(runs)
        ]
        spent = (time.perf_counter() - started) / runs
        errors = torch.tensor([e.entropies[1.0] - exact for e in found], dtype=torch.float64) / (known - exact)
        bars = torch.tensor([e.stderrs[1.0] for e in found], dtype=torch.float64) / (known - exact)
        covered = float((errors.abs() <= 2 * bars).double().mean())
        print(
            f"{shape:9} tolerance {tolerance:.0e}: within 2 s.e. {covered:.1%} of {runs}; relative error of MIR: "
            f"rms {float(errors.square().mean().sqrt()):.1e}, mean {float(errors.mean()):+.1e} "
            f"± {float(errors.std() / math.sqrt(runs)):.1e}; probes {sum(e.probes for e in found) / runs:.0f} of "
            f"{found[0].depths.short} and {found[0].depths.long} steps ({found[0].deep} of these), {spent:.2f} s",
            flush=True,
        )


def entropy(values: Tensor) -> float:
    """Matrix entropy from eigenvalues that sum to 1, nats."""
    values = values[values > len(values) * torch.finfo(values.dtype).eps * values.max()]
    return float(-(values * values.log()).sum())


def main() -> None:
    """Measure the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["large", "small"])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--tolerance", type=float, action="append")
    asked = parser.parse_args()
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    if asked.part != "large":
        for shape in SHAPES:
            small(shape, asked.runs, asked.tolerance or list(TOLERANCES[:2]))
    if asked.part != "small":
        large(asked.tolerance or list(TOLERANCES))


if __name__ == "__main__":
    main()
