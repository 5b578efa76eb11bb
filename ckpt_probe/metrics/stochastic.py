"""Estimate the joint entropy without its matrix, by Lanczos quadrature on random probes, with an error bar.

For a symmetric A ⪰ 0 of N rows and a random direction x of unit length, N · E[xᵀ f(A) x] = tr f(A) (Ubaru, Chen and
Saad 2017). The quadratures of all probes estimate the distribution of A's eigenvalues λ, and with it the straight line
that f(λ) is closest to. The line's own trace is known exactly, since tr A = 1 and tr 1 = N: only what f differs from
the line by is sampled (a control variate). Its variance, 2 N² / (N + 2) times the mean square of these differences,
comes from the quadratures too, and so is known better than from the scatter of a few values distributed like squares.

Where the fewest probes do not suffice, leading eigenvectors are computed and only their complement is sampled (Hutch++,
Meyer et al. 2021): near collapse a few eigenvalues make up most of the entropy.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.metrics.lanczos import Eigenpairs, Lanczos, Operator, Rules, leading_eigenpairs, spectral
from ckpt_probe.metrics.rows import EPSILON

PROBES = 8
"""Number of probes in one batch, with one Lanczos recurrence each."""

FEWEST = 16
"""Smallest number of probes for an error bar."""

MOST = 20_000
"""Default of the largest number of probes."""

STEPS = (4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160)
"""Lengths of the recurrence, which are tried in this order."""

SETTLED = 0.25
"""Largest error of the quadrature, as a share of the requested error bar."""

DEPTH = 8
"""Largest number of powers of A in the Krylov space for eigenvectors."""

COPIES = 5
"""Number of arrays of the size of that space's basis that its computation needs."""

MARGIN = 1.2
"""Factor on the sampling error, with which two error bars contain the exact value in 98 % instead of 95 % of runs."""

RESOLVED = 0.1
"""Relative error of tr A^α up to which its logarithm, a Rényi entropy, has an error bar."""


@dataclass(frozen=True)
class Sampling:
    """When sampling stops.

    Attributes:
        tolerance: Relative standard error of MIR at which it stops.
        budget: Seconds after which it stops; None for no limit.
        seed: Seed of the random probes.
        probes: Largest number of probes, since no tolerance is reached if MIR is nearly zero.
    """

    tolerance: float = 1e-3
    budget: float | None = None
    seed: int = 0
    probes: int = MOST

    def __post_init__(self) -> None:
        if not (self.tolerance > 0 and math.isfinite(self.tolerance)):
            raise UsageError(f"tolerance: expected a positive number, found {self.tolerance}")
        if self.probes < FEWEST:
            raise UsageError(f"probes: expected at least {FEWEST}, found {self.probes}")
        if self.budget is not None and not self.budget > 0:
            raise UsageError(f"budget: expected a positive number of seconds, found {self.budget}")


@dataclass(frozen=True)
class Estimate:
    """Entropies (nats) and their standard errors by Rényi order, and the work that they took.

    Orders that sampling does not resolve are absent. The estimate averages `probes` probes of `steps` Lanczos steps
    each; the share of `leading` eigenvectors is computed and not sampled.
    """

    entropies: dict[float, float]
    stderrs: dict[float, float]
    probes: int
    steps: int
    leading: int
    seed: int
    reached: bool


def estimate_entropies(
    operator: Operator,
    size: int,
    *,
    known: float,
    orders: Sequence[float] = (),
    sampling: Sampling | None = None,
    memory: int = 2**30,
    device: torch.device | None = None,
) -> Estimate:
    """Estimate entropies of a symmetric A ⪰ 0 of trace 1 that is only ever applied to vectors.

    Args:
        operator: The matrix A, (size, size).
        size: Its number of rows.
        known: Sum of the two other entropies of a mutual information, whose relative error is to meet the tolerance.
        orders: Rényi's, beside 1.
        sampling: When to stop, and the seed.
        memory: Bytes that the computation of eigenvectors may take.
        device: Where the vectors are.

    Raises:
        DataError: If the budget is over before the fewest probes are done.
    """
    sampling = sampling or Sampling()
    began = time.monotonic()
    generator = torch.Generator().manual_seed(sampling.seed)

    def draw(count: int) -> Tensor:
        return torch.randn(size, count, generator=generator, dtype=torch.float64).to(device)

    nothing = torch.zeros(0, dtype=torch.float64, device=device)
    samples = _Samples(operator, Eigenpairs(nothing, nothing, nothing.new_zeros(size, 0)), orders, known, sampling)
    estimate, deflated = None, False
    while True:
        samples.add(draw(min(PROBES, sampling.probes - samples.count)))
        spent = time.monotonic() - began
        over = sampling.budget is not None and spent > sampling.budget
        if samples.count >= FEWEST:
            estimate = samples.estimate()
        if over and estimate is not None:
            return estimate
        if over:
            raise DataError(
                f"the time budget of {sampling.budget:g} s ran out after {samples.count} probes ({spent:.1f} s); "
                f"a standard error needs {FEWEST}: raise the budget"
            )
        if samples.count < FEWEST or estimate is None:
            continue
        complete = estimate.reached and len(estimate.entropies) == len(samples.orders)
        depth = min(DEPTH, memory // (COPIES * 8 * PROBES * size))
        if depth and not (complete or deflated):
            deflated = True
            spread = SETTLED * samples.wanted(estimate.entropies[1.0])
            pairs = leading_eigenpairs(operator, draw(PROBES), depth, spread)
            if len(pairs.values):
                samples = _Samples(operator, pairs, orders, known, sampling)
                continue
        if estimate.reached or samples.count >= sampling.probes or samples.stuck():
            return estimate


@dataclass(frozen=True)
class _Trace:
    """Estimate of tr f(A), and its errors from sampling, quadrature and rounding."""

    value: float
    sampled: float
    quadrature: float
    rounding: float

    @property
    def stderr(self) -> float:
        """Return the total error."""
        return math.hypot(self.sampled, self.quadrature) + self.rounding


class _Samples:
    """Quadratures of probes in the complement of leading eigenvectors, and the traces that follow from both."""

    def __init__(
        self, operator: Operator, leading: Eigenpairs, orders: Sequence[float], known: float, sampling: Sampling
    ) -> None:
        self.orders = (1.0, *(order for order in orders if order != 1))
        self._operator = operator
        self._leading = leading
        self._known = known
        self._sampling = sampling
        self._size = len(leading.vectors)
        self._left = self._size - len(leading.values)
        self._parts: list[Rules] = []
        self._steps = 0

    @property
    def count(self) -> int:
        """Number of probes."""
        return sum(part.nodes.shape[1] for part in self._parts)

    def wanted(self, entropy: float) -> float:
        """Return the error bar that the tolerance asks for, given the joint entropy."""
        return self._sampling.tolerance * abs(self._known - entropy)

    def add(self, probes: Tensor) -> None:
        """Add probes (N, b); the first ones take as many steps as their quadrature needs, all others as many."""
        growing = Lanczos(self._operator, self._leading.remove(probes))
        if self._parts:
            self._parts.append(growing.run(self._steps))
            return
        for steps in STEPS:
            self._parts = [growing.run(steps)]
            self._steps = growing.steps
            if growing.steps < steps or all(self._settled(order) for order in self.orders):
                return

    def stuck(self) -> bool:
        """Return whether more probes would not help: the error of the quadrature exceeds the wanted error bar."""
        trace = self._trace(1.0)
        return trace.quadrature + trace.rounding > self.wanted(trace.value)

    def estimate(self) -> Estimate:
        """Return the entropies of all probes so far."""
        entropies, stderrs = {}, {}
        for order in self.orders:
            trace = self._trace(order)
            if order == 1:
                entropies[order], stderrs[order] = trace.value, trace.stderr
            elif trace.stderr <= RESOLVED * trace.value:
                entropies[order] = (math.log(trace.value) + order * math.log(self._largest())) / (1 - order)
                stderrs[order] = trace.stderr / trace.value / abs(1 - order)
        reached = stderrs[1.0] <= self.wanted(entropies[1.0])
        leading = len(self._leading.values)
        return Estimate(entropies, stderrs, self.count, self._steps, leading, self._sampling.seed, reached)

    def _settled(self, order: float) -> bool:
        trace = self._trace(order)
        wanted = self.wanted(trace.value) if order == 1 else self._sampling.tolerance * trace.value
        return trace.quadrature <= SETTLED * wanted

    def _largest(self) -> float:
        return max(float(values.max()) for values in (self._leading.values, self._parts[0].nodes[0]) if len(values))

    def _trace(self, order: float) -> _Trace:
        """Compute tr f(A), of A over its largest eigenvalue where the order is not 1: its powers may underflow."""
        rules, largest = Rules.join(self._parts), self._largest()
        scale = 1.0 if order == 1 else largest
        # Eigenvalues up to this size count as zero by definition, and each eigenvalue is known up to this error.
        rounding = self._size * EPSILON * largest / scale
        x = rules.nodes / scale
        x = torch.where(x > rounding, x, 0.0)
        values = spectral(x, order)
        shifted = spectral(torch.where(x > 0, x + rounding, 0.0), order)
        computed = self._leading.values.cpu() / scale
        upper, spreads = spectral(computed, order), 1 + self._leading.spreads.cpu()
        lower = spectral(computed * spreads, order) / spreads

        shares = rules.weights / (2 * rules.weights.shape[1])
        mean, mean_value = float((shares * x).sum()), float((shares * values).sum())
        away = x - mean
        variance = float((shares * away.square()).sum())
        slope = float((shares * away * values).sum()) / variance if variance > 0 else 0.0
        rest = values - mean_value - slope * away
        farthest = max(float(rest.abs().max()), torch.finfo(rest.dtype).tiny)
        squares = (rest / farthest).square()
        second, fourth = float((shares * squares).sum()), float((shares * squares.square()).sum())

        left = self._left
        of_complement = left * (mean_value - slope * mean) + slope * (1 / scale - float(computed.sum()))
        from scipy.special import ndtr, stdtrit  # a heavy import that most records do without

        # Student's quantile in place of the normal one: as many degrees of freedom as the variance behaves like.
        freedom = max(self.count * left * second**2 / fourth, 1.0) if fourth > 0 else math.inf
        quantile = stdtrit(freedom, ndtr(2)) / 2 if freedom < math.inf else 1.0
        sampled = MARGIN * quantile * farthest * math.sqrt(2 * left**2 / (left + 2) * second / self.count)
        ends = (rules.weights * values).sum(dim=2).mean(dim=1)
        return _Trace(
            of_complement + float((upper + lower).sum()) / 2,
            sampled,
            (left * abs(float(ends[0] - ends[1])) + float((upper - lower).abs().sum())) / 2,
            left * float((shares * (shifted - values).abs()).sum())
            + float((spectral(computed + rounding, order) - upper).abs().sum()),
        )
