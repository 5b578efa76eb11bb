"""Shape of a spectrum: the power law of its largest eigenvalues, and those above the edge of a random matrix."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

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
        value: Edge σ²(1 + √(m/n))² of the Marchenko–Pastur law.
        variance: σ², from the median of the eigenvalues.
        spikes: Number of eigenvalues beyond the edge and the fluctuation of the largest one of a random matrix.
        share: Sum of these divided by the sum of all.
    """

    value: float
    variance: float
    spikes: int
    share: float


def fit_tail(values: np.ndarray) -> Tail | None:
    """Fit a continuous power law to the largest values (Clauset, Shalizi and Newman 2009, sections 3.1 and 3.3).

    The tail starts at the value for which the Kolmogorov distance is smallest, among tails of at least `FEWEST` values.
    The error (alpha − 1)/√count holds for a start that is known; the spread over starts with at most `NEAR` times this
    distance is added to its square.

    Args:
        values: Eigenvalues (m,).

    Returns:
        The tail; None with fewer than `FEWEST` values above zero, or if all of them are equal.
    """
    largest = np.sort(values[values > 0])[::-1]
    if len(largest) < FEWEST or largest[0] == largest[-1]:
        return None
    logs = np.log(largest)
    sums = np.cumsum(logs)
    counts, exponents, distances = [], [], []
    for count in range(FEWEST, len(largest) + 1):
        if count < len(largest) and logs[count] == logs[count - 1]:
            continue
        total = sums[count - 1] - count * logs[count - 1]
        if total <= 0:
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


def goodness(values: np.ndarray, tail: Tail, draws: int, seed: int = 0) -> float:
    """Compute the share of synthetic spectra that are as far from their own law as the spectrum from its law.

    Synthetic spectra draw values below the tail from those of the spectrum, and the others from the law
    (semi-parametric bootstrap; Clauset, Shalizi and Newman 2009, section 4.1).

    Args:
        values: Eigenvalues (m,).
        tail: Their tail.
        draws: Number of synthetic spectra.
        seed: Seed of the draws.

    Returns:
        The share p.
    """
    random = np.random.default_rng(seed)
    positive = values[values > 0]
    below, size = positive[positive < tail.start], len(positive)
    further = 0
    for _ in range(draws):
        count = random.binomial(size, tail.count / size) if len(below) else size
        drawn = tail.start * random.uniform(size=count) ** (-1 / (tail.alpha - 1))
        refit = fit_tail(np.concatenate([drawn, random.choice(below, size - count)]) if len(below) else drawn)
        further += refit is None or refit.distance >= tail.distance
    return further / draws


def edge_of(values: np.ndarray, m: int, n: int, total: float | None = None) -> Edge | None:
    """Compute the edge of the bulk of a spectrum and the eigenvalues beyond it.

    The entries of a random matrix (m, n) with variance σ² give eigenvalues of W Wᵀ / n of the Marchenko–Pastur law. σ²
    follows from the median. The largest eigenvalue exceeds the edge by a multiple of Johnstone's scale (2001), whose
    0.999 quantile is the limit here.

    Args:
        values: Squared singular values divided by n, shape (m,).
        m: Smaller side.
        n: Larger side.
        total: Sum of the eigenvalues; that of `values` if None.

    Returns:
        The edge; None for fewer than `FEWEST` values, or if half of them are zero.
    """
    if len(values) < FEWEST:
        return None
    variance = float(np.median(values)) / median_of_bulk(m / n)
    if variance <= 0:
        return None
    sides = math.sqrt(n - 1 if n > 1 else 1) + math.sqrt(m)
    scale = sides * (1 / math.sqrt(max(n - 1, 1)) + 1 / math.sqrt(m)) ** (1 / 3)
    beyond = values[values > variance * (sides**2 + TRACY_WIDOM * scale) / n]
    share = float(beyond.sum()) / (float(values.sum()) if total is None else total)
    return Edge(variance * (1 + math.sqrt(m / n)) ** 2, variance, len(beyond), share)


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
