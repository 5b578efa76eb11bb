"""Eigenvalues of a weight matrix, and their shape: the power law of the largest, and those beyond a random bulk."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

EXACT_SIDE = 4096
"""Largest smaller side of a matrix all of whose eigenvalues are computed."""
PANEL = 2**23
"""Number of entries of a matrix that are in memory in double precision at once."""
MEAN_LOG_ERROR = 1e-9
"""Largest error of the mean logarithm of the eigenvalues that the rounding of a Gram matrix may cause."""
BLOCK_VECTORS, DEPTH = 16, 16
"""Vectors of the block Krylov space that the leading eigenvalues of larger matrices are sought in, and its powers."""
PROBES, NODES = 16, 60
"""Random vectors and quadrature nodes of each, for the bulk of larger matrices."""
SPREAD = 1e-6
"""Largest relative residual, squared, of a leading eigenvalue."""
EQUAL = 2.0**-8
"""Mean log λ/λ_min of a tail whose values are equal up to the rounding of weights in bfloat16."""
FEWEST = 20
"""Smallest number of eigenvalues in a tail whose exponent is stated, and of a spectrum whose bulk is fitted."""
LEAST_P = 0.1
"""Goodness of fit below which an exponent is not stated (Clauset, Shalizi and Newman 2009, section 4.1)."""
NEAR = 2.0
"""Multiple of the smallest Kolmogorov distance up to which the start of a tail could be another one. With it, 95 % of
the exponents of draws of power laws are within two standard errors (benchmarks/tail_errors.py)."""
TRACY_WIDOM = 3.2724
"""Quantile 0.999 of the Tracy–Widom law of order 1, to which the largest eigenvalue of a random matrix converges."""


@dataclass(frozen=True)
class Bulk:
    """Eigenvalues of a large matrix below the leading ones, estimated from random vectors, and means over all.

    Attributes:
        quantiles: As many equally likely eigenvalues as there are below the leading ones, in descending order.
        mean_log: Mean of log λ; None if an eigenvalue is zero within rounding.
        mean_product: Mean of λ log λ.
    """

    quantiles: np.ndarray
    mean_log: float | None
    mean_product: float


@dataclass(frozen=True)
class Tail:
    """A power law p(λ) ∝ λ^(−alpha) of the eigenvalues from `start` on.

    Attributes:
        alpha: Exponent by maximum likelihood.
        stderr: Its standard error: the root of (alpha − 1)²/count and the mean squared difference from the exponents
            of other starts that fit nearly as well.
        distance: Kolmogorov distance between the law and the tail.
        count: Number of eigenvalues in the tail.
        start: Smallest eigenvalue of the tail.
    """

    alpha: float
    stderr: float
    distance: float
    count: int
    start: float


@dataclass(frozen=True)
class Edge:
    """Largest eigenvalue of a random matrix with the bulk of a spectrum, and the eigenvalues beyond it.

    Attributes:
        value: Edge σ²(1 + √(m/n))² of the Marchenko–Pastur law, σ² from the median of the eigenvalues.
        spikes: Number of eigenvalues beyond the edge and the fluctuation of the largest one of a random matrix.
        share: Sum of these divided by the sum of all.
    """

    value: float
    spikes: int
    share: float


def eigenvalues_of(matrix: np.ndarray, first: np.ndarray | None = None) -> tuple[np.ndarray, Bulk | None, float]:
    """Compute the eigenvalues of W Wᵀ / n in descending order, W a matrix or its difference from another one.

    Those below the rounding of the largest are zero.

    Returns:
        The eigenvalues, of a large matrix the leading ones and quantiles of the others; the estimate that the quantiles
        are from, None if all were computed; and ‖W‖_F². There are no eigenvalues if that is zero or not finite.
    """
    import torch

    m, n = matrix.shape
    gram = np.zeros((m, m) if m <= EXACT_SIDE else ())
    with np.errstate(over="ignore", invalid="ignore"):
        for panel in _panels(matrix, first):
            gram += panel @ panel.T if gram.ndim else np.einsum("ij,ij->", panel, panel)
    squares = float(np.trace(gram) if gram.ndim else gram)
    if squares == 0 or not math.isfinite(squares):
        return np.zeros(0), None, squares
    if not gram.ndim:
        leading, bulk = _leading(np.concatenate([*_panels(matrix, first)], axis=1))
        return np.concatenate([leading, np.minimum(bulk.quantiles, leading[-1])]), bulk, squares
    # Twice as fast as scipy's.
    values = torch.linalg.eigvalsh(torch.from_numpy(gram)).flip(0).numpy() / n
    return np.where(values > np.finfo(float).eps * m * values[0], values, 0.0), None, squares


def mean_log_of(matrix: np.ndarray, values: np.ndarray) -> float | None:
    """Compute the mean of log λ; None if a singular value is zero within rounding.

    Where rounding of the Gram matrix could change it, it comes from the triangle of a QR decomposition, which keeps the
    digits of small values: the product of its diagonal is that of the singular values.

    Args:
        matrix: Matrix (m, n), m ≤ n.
        values: Its eigenvalues (m,).
    """
    m, n = matrix.shape
    rounding = np.finfo(float).eps * math.sqrt(m) * values[0]
    if values[-1] > 0 and rounding * float((1 / values).mean()) < MEAN_LOG_ERROR:
        return float(np.log(values).mean())
    triangle = np.zeros((0, m))
    for panel in _panels(matrix):
        triangle = np.linalg.qr(np.concatenate([triangle, panel.T]), mode="r")
    diagonal = np.abs(np.diag(triangle))
    if diagonal.min() <= np.finfo(float).eps * n * math.sqrt(values[0] * n):
        return None
    return float(2 * np.log(diagonal).mean() - math.log(n))


def effective_rank_of(values: np.ndarray, bulk: Bulk | None, total: float, m: int) -> float:
    """Compute exp of the entropy of the eigenvalues as shares of their sum `total`; m is their number."""
    if bulk is not None:
        return math.exp(math.log(total) - m * bulk.mean_product / total)
    shares = values[values > 0] / values.sum()
    return math.exp(float(-(shares * np.log(shares)).sum()))


def fit_tail(values: np.ndarray) -> Tail | None:
    """Fit a continuous power law to the largest values (Clauset, Shalizi and Newman 2009, sections 3.1 and 3.3).

    The tail starts at the value for which the Kolmogorov distance is smallest, among tails of at least `FEWEST` values.
    The error (alpha − 1)/√count holds for a start that is known; the spread over starts with at most `NEAR` times this
    distance is added to its square.

    Args:
        values: Eigenvalues (m,).

    Returns:
        The tail; None with fewer than `FEWEST` values above zero, or if they are equal up to `EQUAL`.
    """
    largest = np.sort(values[values > 0])[::-1]
    logs = np.log(largest)
    sums = np.cumsum(logs)
    counts, exponents, distances = [], [], []
    for count in range(FEWEST, len(largest) + 1):
        if count < len(largest) and logs[count] == logs[count - 1]:
            continue
        total = sums[count - 1] - count * logs[count - 1]
        if total <= EQUAL * count:
            continue
        exponent = count / total
        # The survival function (λ/λ_min)^(−exponent) at each value, against the shares on both sides of its step.
        survival = np.exp(-exponent * (logs[:count] - logs[count - 1]))
        ranks = np.arange(count + 1) / count
        counts.append(count)
        exponents.append(float(exponent))
        distances.append(float(max(np.max(survival - ranks[:-1]), np.max(ranks[1:] - survival))))
    if not counts:
        return None
    best = int(np.argmin(distances))
    count, exponent = counts[best], exponents[best]
    near = np.array(distances) <= NEAR * distances[best]
    choice = float(np.square(np.array(exponents)[near] - exponent).mean())
    error = math.sqrt(exponent**2 / count + choice)
    return Tail(1 + exponent, error, distances[best], count, float(largest[count - 1]))


def goodness(values: np.ndarray, tail: Tail, draws: int) -> float:
    """Compute the share of synthetic spectra that are as far from their own law as the spectrum from its law.

    Synthetic spectra draw values below the tail from those of the spectrum, and the others from the law
    (semi-parametric bootstrap; Clauset, Shalizi and Newman 2009, section 4.1).

    Args:
        values: Eigenvalues (m,).
        tail: Their tail.
        draws: Number of synthetic spectra.

    Returns:
        The share p.
    """
    random = np.random.default_rng(0)
    positive = values[values > 0]
    below, size = positive[positive < tail.start], len(positive)
    further = 0
    for _ in range(draws):
        count = random.binomial(size, tail.count / size) if len(below) else size
        drawn = tail.start * random.uniform(size=count) ** (-1 / (tail.alpha - 1))
        refit = fit_tail(np.concatenate([drawn, random.choice(below, size - count)]) if len(below) else drawn)
        further += refit is None or refit.distance >= tail.distance
    return further / draws


def edge_of(values: np.ndarray, m: int, n: int, total: float) -> Edge | None:
    """Compute the edge of the bulk of a spectrum and the eigenvalues beyond it.

    The entries of a random matrix (m, n) with variance σ² give eigenvalues of W Wᵀ / n of the Marchenko–Pastur law. σ²
    follows from the median. The largest eigenvalue exceeds the edge by a multiple of Johnstone's scale (2001), whose
    0.999 quantile is the limit here.

    Args:
        values: Squared singular values divided by n, shape (m,).
        m: Smaller side.
        n: Larger side.
        total: Sum of the eigenvalues.

    Returns:
        The edge; None for fewer than `FEWEST` values, or if half of them are zero.
    """
    if len(values) < FEWEST or 2 * np.count_nonzero(values) <= len(values):
        return None
    variance = float(np.median(values)) / median_of_bulk(m / n)
    sides = math.sqrt(n - 1 if n > 1 else 1) + math.sqrt(m)
    scale = sides * (1 / math.sqrt(max(n - 1, 1)) + 1 / math.sqrt(m)) ** (1 / 3)
    beyond = values[values > variance * (sides**2 + TRACY_WIDOM * scale) / n]
    return Edge(variance * (1 + math.sqrt(m / n)) ** 2, len(beyond), float(beyond.sum()) / total)


@cache
def median_of_bulk(ratio: float) -> float:
    """Compute the median of the Marchenko–Pastur law with σ² = 1.

    Args:
        ratio: m/n, at most 1.
    """
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    # λ = c − r cos φ turns the density into a smooth function of φ, whose integral a fine grid gives to 1e-8.
    angles = (np.arange(20_000) + 0.5) * math.pi / 20_000
    points = (low + high) / 2 - (high - low) / 2 * np.cos(angles)
    mass = np.cumsum(np.sin(angles) ** 2 / points)
    return float(np.interp(0.5, mass / mass[-1], points))


def _panels(matrix: np.ndarray, first: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yield some columns after another of a matrix, or of its difference from another one, in double precision."""
    width = max(1, PANEL // len(matrix))
    for start in range(0, matrix.shape[1], width):
        panel = matrix[:, start : start + width].astype(np.float64)
        yield panel if first is None else panel - first[:, start : start + width]


def _leading(matrix: np.ndarray) -> tuple[np.ndarray, Bulk]:
    """Compute the leading eigenvalues of W Wᵀ / n by a block Krylov space, and the density of all by Lanczos rules."""
    import torch

    from ckpt_probe.metrics.lanczos import Lanczos, leading_eigenpairs

    m, n = matrix.shape
    tensor = torch.from_numpy(matrix)
    generator = torch.Generator().manual_seed(0)

    def operator(x: "torch.Tensor") -> "torch.Tensor":
        return tensor @ (tensor.T @ x) / n

    start = torch.randn(m, BLOCK_VECTORS, generator=generator, dtype=torch.float64)
    pairs = leading_eigenpairs(operator, start, DEPTH, SPREAD)
    leading = pairs.values.flip(0).numpy()
    # Random vectors without their part along the leading ones see only the others.
    probes = pairs.remove(torch.randn(m, PROBES, generator=generator, dtype=torch.float64))
    rules = Lanczos(operator, probes).run(NODES)
    others = m - len(leading)
    nodes = rules.nodes[0].flatten().numpy()
    nodes = np.where(nodes > np.finfo(float).eps * m * leading[0], nodes, 0.0)
    weights = rules.weights[0].flatten().numpy() / PROBES
    order = np.argsort(nodes)
    mass = np.cumsum(weights[order])
    quantiles = np.interp((np.arange(others)[::-1] + 0.5) / others, mass, nodes[order])
    logs, leading_logs = np.log(np.where(nodes > 0, nodes, 1.0)), np.log(leading)
    singular = others > 0 and float(weights[nodes == 0].sum()) * others > 0.5
    mean_log = None if singular else (float(leading_logs.sum()) + others * float(weights @ logs)) / m
    mean_product = (float(leading @ leading_logs) + others * float(weights @ (nodes * logs))) / m
    return leading, Bulk(quantiles, mean_log, mean_product)
