"""The sampled joint entropy: time and error by tolerance where no exact algorithm fits, and error bars for small sizes.

Large: features of N = 50,000 rows, D = 2,048, C = 1,000 (ImageNet's validation set under a ResNet-50): the complete
record of `Moments` with its samples, in multiples of one `Z.T @ Z` in float64 over the same rows, with the peak memory
of the process above the features.

Small: several kinds of features with N = 1,000 or 20,000, whose exact value follows from the definition: how often it
lies within two standard errors over many seeds, for orders 1, 0.1, 0.5 and 2 (at the first tolerance; else for order
1).

Run: python benchmarks/stochastic.py [--part large|small] [--runs 100] [--tolerance 1e-3 ...]
"""

import argparse
import math
import os
import resource
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ckpt_probe.metrics.stochastic import Estimate, Sampling, estimate_entropies
from ckpt_probe.moments import Moments
from ckpt_probe.moments.class_sums import group
from ckpt_probe.moments.entropies.sampling import JointOperator, MomentsOperator
from ckpt_probe.moments.entropies.spectra import factor
from ckpt_probe.moments.unit_moments import UnitMoments

LARGE = (50_000, 2_048, 1_000)
TOLERANCES = (1e-2, 1e-3)
ORDERS = (1.0, 0.1, 0.5, 2.0)
ROWS = 4096
MOST = 96
"""Number of probes after which a run of the small part stops, even if it has not reached its tolerance."""

GIB = 2**30


@dataclass(frozen=True)
class Regime:
    """Rows around the weights of their labels, or around a simplex.

    Attributes:
        heads: "random", "simplex" (also for the class means), or "rank one" up to a tenth of noise.
        zipf: Whether class sizes follow Zipf's law.
        noise: Length of the noise relative to a unit class mean.
        tail: Rate at which the noise decreases from feature to feature.
        shared: Length of a direction that all rows have in common.
    """

    samples: int
    features: int
    classes: int
    heads: str = "random"
    noise: float = 1.0
    zipf: bool = False
    tail: float = 0.0
    shared: float = 0.0


REGIMES = {
    "plain": Regime(1000, 48, 50, noise=2.0),
    "near collapse, C 50": Regime(1000, 64, 50, "simplex", 0.1),
    "near collapse, C 10": Regime(1000, 64, 10, "simplex", 0.1),
    "near collapse, C 3": Regime(1000, 64, 3, "simplex", 0.1),
    "exact collapse, C 50": Regime(1000, 64, 50, "simplex", 0.0),
    "exact collapse, C 10": Regime(1000, 64, 10, "simplex", 0.0),
    "near collapse, Zipf": Regime(1000, 64, 50, "simplex", 0.1, zipf=True),
    "exact collapse, Zipf": Regime(1000, 64, 50, "simplex", 0.0, zipf=True),
    "many classes": Regime(1000, 32, 500),
    "Zipf class sizes": Regime(1000, 48, 200, noise=0.5, zipf=True),
    "heavy tails": Regime(1000, 48, 20, tail=0.3),
    "a shared direction": Regime(1000, 48, 20, shared=10.0),
    "N far above the side": Regime(20_000, 16, 5, noise=0.3),
    "heads of nearly rank one": Regime(1000, 48, 20, "rank one"),
}


def rows_of(regime: Regime) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (N, D), labels (N,) and weights (C, D)."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    samples, features, classes = regime.samples, regime.features, regime.classes
    means = weights = normal(classes, features) / math.sqrt(features)
    if regime.heads == "simplex":
        means = weights = torch.nn.functional.normalize(torch.eye(classes, features).double() - 1 / classes)
        means = weights = means * (torch.arange(features) < classes)
    if regime.heads == "rank one":
        weights = normal(classes, 1).sign() * normal(1, features) + 0.1 * normal(classes, features)
    labels = torch.arange(samples) % classes
    if regime.zipf:
        shares = 1 / (torch.arange(classes) + 2.0)
        drawn = torch.multinomial(shares, samples - classes, replacement=True, generator=generator)
        labels = torch.cat([torch.arange(classes), drawn])
    noise = normal(samples, features) * torch.exp(-regime.tail * torch.arange(features)) / math.sqrt(features)
    shared = torch.nn.functional.normalize(normal(1, features))
    return means[labels] + regime.noise * noise + regime.shared * shared, labels, weights


def labelled_features(size: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return float32 features (N, D) around the weights (C, D) of their labels (N,)."""
    samples, features, classes = size
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(classes, features, generator=generator)
    labels = torch.arange(samples) % classes
    rows = torch.randn(samples, features, generator=generator).mul_(2)
    for start in range(0, samples, ROWS):
        rows[start : start + ROWS] += weights[labels[start : start + ROWS]]
    return rows, labels, weights


def peak() -> float:
    """Return the peak memory of this process so far in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def large(tolerances: list[float]) -> None:
    """Print the complete record's time and error at ImageNet's size, by tolerance."""
    rows, labels, weights = labelled_features(LARGE)
    memory_before = peak()

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
        f"N {LARGE[0]:,} D {LARGE[1]:,} C {LARGE[2]:,}: Z.T @ Z {unit:.2f} s; features held: {memory_before:.2f} GiB",
        flush=True,
    )
    for tolerance in tolerances:
        started = time.perf_counter()
        moments = Moments(LARGE[2])
        for block in blocks():
            moments.update(*block)
        record = moments.compute(weights, rows=blocks, sampling=Sampling(tolerance))
        spent = time.perf_counter() - started
        mir, error = float(record["sample.mir"] or 0), float(record["sample.mir_computing_error"] or 0)
        print(
            f"tolerance {tolerance:.0e}: MIR {mir:.6f} relative s.e. {error / mir:.1e}  "
            f"probes {record['sample.probes']:4}  {spent:6.1f} s = {spent / unit:5.1f} × Z.T @ Z  "
            f"peak above the features {peak() - memory_before:.2f} GiB"
            f"  [{record['route']}]",
            flush=True,
        )


def small(name: str, runs: int, tolerance: float, orders: tuple[float, ...]) -> None:
    """Print errors and error bars against the exact values, over seeds."""
    rows, labels, weights = rows_of(REGIMES[name])
    unit, heads = torch.nn.functional.normalize(rows), torch.nn.functional.normalize(weights)
    counts = torch.bincount(labels, minlength=len(heads))
    present = counts.nonzero().squeeze(1)
    V = factor(heads)
    first, second = eigenvalues(unit), eigenvalues(V[labels])
    products = unit[:, :, None] * V[labels][:, None, :]
    joint = eigenvalues(products.flatten(1)) if products[0].numel() < len(rows) else by_gram(unit, heads[labels])
    known = entropy(first, 1.0) + entropy(second, 1.0)
    exact = {order: entropy(joint, order) for order in orders}
    if len(rows) > products[0].numel():
        moments = UnitMoments(rows.shape[1], len(heads), GIB, torch.device("cpu"))
        moments.update(group(rows, labels))
        operator = MomentsOperator(moments, present, V)
    else:
        operator = JointOperator(lambda: [(rows, labels)], heads, counts, memory=GIB)
    started = time.process_time()
    estimates = [
        estimate_entropies(
            operator,
            operator.size,
            known=known,
            orders=orders[1:],
            sampling=Sampling(tolerance, seed=seed, probes=MOST),
        )
        for seed in range(runs)
    ]
    spent = (time.process_time() - started) / runs
    errors = torch.tensor([e.entropies[1.0] - exact[1.0] for e in estimates], dtype=torch.float64) / (
        known - exact[1.0]
    )
    reached = sum(e.reached for e in estimates) / runs
    print(
        f"{name:25} {tolerance:.0e}: "
        + "; ".join(f"α {order:g} {calibration(estimates, order, exact[order])}" for order in orders)
        + f"; relative error of MIR {float(errors.square().mean().sqrt()):.1e}; reached {reached:.0%}, probes "
        f"{sum(e.probes for e in estimates) / runs:.0f} of {sum(e.steps for e in estimates) / runs:.0f} steps, "
        f"{sum(e.leading for e in estimates) / runs:.0f} eigenvectors, {1000 * spent:.0f} ms of processor time",
        flush=True,
    )


def calibration(estimates: list[Estimate], order: float, exact: float) -> str:
    """Return the share of runs with the exact value within two standard errors, and the largest standardised error."""
    errors = [abs(e.entropies[order] - exact) / e.stderrs[order] for e in estimates if order in e.entropies]
    missing = f" ({len(estimates) - len(errors)} missing)" if len(errors) < len(estimates) else ""
    return (
        f"{sum(z <= 2 for z in errors) / len(errors):.0%} (worst {max(errors):.1f}){missing}" if errors else "missing"
    )


def eigenvalues(rows: Tensor) -> Tensor:
    """Return the eigenvalues of the Gram matrix of rows (n, d), d < n, divided by n."""
    return torch.linalg.eigvalsh(rows.T @ rows / len(rows))


def by_gram(first: Tensor, second: Tensor) -> Tensor:
    """Return the eigenvalues of the joint matrix by its definition."""
    return torch.linalg.eigvalsh((first @ first.T) * (second @ second.T) / len(first))


def entropy(values: Tensor, order: float) -> float:
    """Return the entropy of eigenvalues that sum to 1, in nats."""
    values = values[values > len(values) * torch.finfo(values.dtype).eps * values.max()]
    return float(-(values * values.log()).sum() if order == 1 else values.pow(order).sum().log() / (1 - order))


def main() -> None:
    """Measure the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["large", "small"])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--tolerance", type=float, action="append")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    if arguments.part != "large":
        for name in REGIMES:
            for i, tolerance in enumerate(arguments.tolerance or TOLERANCES):
                small(name, arguments.runs, tolerance, ORDERS[:1] if i else ORDERS)
    if arguments.part != "small":
        large(arguments.tolerance or list(TOLERANCES))


if __name__ == "__main__":
    main()
