"""The joint entropy without its matrix: Lanczos quadrature on random probes, with an error bar.

For a symmetric A ⪰ 0 of trace 1 and a probe x of independent signs, E[xᵀ f(A) x] = tr f(A); xᵀ f(A) x is a Gauss
quadrature of the Lanczos recurrence from x (Ubaru, Chen and Saad 2017). tr A = 1 is known exactly, so that every
probe's own xᵀ A x is a control variate: its regression, fitted on the other probes, is taken off. What many
steps add to few is nearly the same for every probe, so that few probes say it and all others stop early (Hallman and
Troester 2022: multilevel estimates of traces). What one probe's recurrence finds of A's leading eigenvectors q is of
use to all others: E[(qᵀx)²] = |q|² is known too, and f(λ) ((qᵀx)² − |q|²) is what x lays on q by chance (the deflation
of Hutch++, Meyer et al. 2021, by control variates).
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.metrics.lanczos import Eigenpairs, Lanczos, Operator, Recurrence, spectral

PROBES = 8
"""Probes that run together, one Lanczos recurrence each."""

FEWEST = 16
"""Probes before an error bar is believed."""

CERTAIN = 2.2
"""How far below what is wanted the error bar of the first probes has to lie: one in 25 is so much too small."""

LEADING = 64
"""Eigenvectors at most of which the other probes' shares are taken off."""

MOST = 20_000
"""Probes after which sampling gives up, where a caller names no other number."""

DEEP = 1
"""Probes whose recurrences at first go on until the quadrature has settled."""

STEPS = (4, 6, 8, 10, 14, 20, 24, 28, 34, 40, 48, 56, 64, 72, 80, 96, 112, 136, 160)
"""Lengths of the recurrence that are tried in turn."""

LEAST = 14
"""Steps below which how the additions fall tells nothing yet."""

CUT = 0.71
"""A length is judged beside this share of it, and beside this share of that: half of it."""

AGREED, SETTLED = 0.45, 0.5
"""Shares of the wanted error bar: of what the probes differ in, at which most of them stop, and of what is missing."""

LARGEST_PART = 0.7
"""Share of the error bar from which on what the probes differ in is made smaller, and not what is sampled."""


@dataclass(frozen=True)
class Sampling:
    """When to stop: at a relative standard error of MIR of `tolerance`, or after `budget` seconds (None: never).

    probes: how many are taken at most, as a tolerance is out of reach where MIR is nearly zero.
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
class Depths:
    """Steps of most recurrences, and of those that correct them."""

    short: int
    long: int


@dataclass(frozen=True)
class Estimate:
    """Entropies (nats) by Rényi order, their standard errors, and what they cost.

    probes took the few steps of `depths`, `deep` of them the many. The first one is not among those that are averaged:
    its recurrence gives the directions that the others are corrected by.
    """

    entropies: dict[float, float]
    stderrs: dict[float, float]
    probes: int
    depths: Depths
    deep: int
    seed: int
    reached: bool


def estimate_entropies(
    operator: Operator,
    size: int,
    *,
    known: float,
    orders: Sequence[float] = (),
    sampling: Sampling | None = None,
    device: torch.device | None = None,
) -> Estimate:
    """Entropies of a symmetric A ⪰ 0 of trace 1, (size, size), that is only ever applied to vectors.

    known: the sum of the two other entropies of a mutual information, whose relative error is to meet the tolerance.
    orders: Rényi's, beside 1. Raises DataError where the budget is over before the fewest probes are done.
    """
    sampling = sampling or Sampling()
    began = time.monotonic()
    signs = _signs(size, sampling.seed, device)
    first = next(signs)
    growing = Lanczos(operator, first)
    pilot = _Pilot(growing, (1.0, *(order for order in orders if order != 1)), known, sampling)
    samples = _Samples(pilot.orders, pilot.depths, growing.leading(LEADING))
    samples.add(pilot.short.part(slice(1, None)), first[:, 1:])
    samples.add_deep(pilot.long)
    del growing, pilot, first
    while True:
        entropy, stderr = samples.entropy(1.0, 1 if samples.count >= FEWEST else CERTAIN)
        wanted = sampling.tolerance * abs(known - entropy)
        reached = stderr <= wanted
        spent = time.monotonic() - began
        over = sampling.budget is not None and spent > sampling.budget
        if over and samples.count < FEWEST:
            raise DataError(
                f"the time budget of {sampling.budget:g} s ran out after {samples.count} probes ({spent:.1f} s); "
                f"a standard error needs {FEWEST}: raise the budget"
            )
        # More probes do not help where what the recurrences lack is most of the error bar.
        unsure = abs(samples.missing(1.0)) / 2
        stuck = unsure > max(SETTLED * wanted, stderr / 2)
        done = reached or over or samples.count >= sampling.probes
        if done or (stuck and not samples.lengthen(size) and samples.count >= FEWEST):
            return samples.estimate(sampling.seed, reached)
        probes = next(signs)
        run = Lanczos(operator, probes)
        samples.add(run.after(samples.depths.short), probes)
        if not samples.deep or samples.disagreement(1.0) > LARGEST_PART * max(wanted, stderr):
            run.keep(DEEP)
            samples.add_deep(run.after(samples.depths.long))


def _signs(size: int, seed: int, device: torch.device | None) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(0, 2, (size, PROBES), generator=generator).double().mul_(2).sub_(1).to(device)


class _Pilot:
    """The first probes: all of them for as long as they differ, then a few until their quadrature has settled.

    short, long: the recurrences of all, and of the few.
    """

    def __init__(self, growing: Lanczos, orders: Sequence[float], known: float, sampling: Sampling) -> None:
        self.orders = orders
        short, offsets = None, dict.fromkeys(orders, 0.0)
        for steps in STEPS:
            run = growing.after(steps)
            ends = _ends(run, orders)
            means = {order: float(values[0].mean()) + offsets[order] for order, values in ends.items()}
            if short is None:
                means = {order: controlled(values[0], run.traces - 1)[0] for order, values in ends.items()}
            whole = {order: mean + missing_of(ends[order].mean(dim=1)) / 2 for order, mean in means.items()}
            small = {o: abs(known - mean) if o == 1 else mean * abs(1 - o) for o, mean in whole.items()}
            wanted = {order: sampling.tolerance * value for order, value in small.items()}
            if short is None and self.agreed(ends, wanted):
                short = run
                growing.keep(DEEP)
                ends = {order: values[:, :DEEP] for order, values in ends.items()}
                offsets = {order: means[order] - float(values[0].mean()) for order, values in ends.items()}
            if run.steps < steps or (steps >= LEAST and self.settled(ends, wanted)):
                break
        self.long = growing.after(run.steps)
        self.short = short or run
        self.depths = Depths(self.short.steps, self.long.steps)

    @staticmethod
    def settled(ends: Mapping[float, Tensor], wanted: Mapping[float, float]) -> bool:
        """Whether more steps would add little beside the error bar, by order."""
        return all(abs(missing_of(ends[o].mean(dim=1))) <= SETTLED * wanted[o] for o in ends)

    @staticmethod
    def agreed(ends: Mapping[float, Tensor], wanted: Mapping[float, float]) -> bool:
        """Whether a few probes are enough to say what more steps add, by order."""
        return all(_spread(ends[o]) / math.sqrt(DEEP) <= AGREED * wanted[o] for o in ends)


def _ends(run: Recurrence, orders: Sequence[float], steps: int | None = None) -> dict[float, Tensor]:
    """By order, quadratures (3, b) of all or `steps` steps, of a share of them, and of a share of these."""
    steps = steps or run.steps
    lengths = (steps, max(1, round(CUT * steps)), max(1, round(CUT**2 * steps)))
    found = [run.quadratures(length) for length in lengths]
    return {order: torch.stack([one.integrate(order) for one in found]) for order in orders}


def _spread(ends: Tensor) -> float:
    """How much probes differ in what the last steps add, and so at most in what more of them would."""
    return float((ends[0] - ends[1]).std(correction=1))


def missing_of(ends: Tensor) -> float:
    """What the quadratures (3,) of lengths that grow by one factor lack of their limit.

    What each adds falls by a factor as well, where the quadrature converges like a power of its length; it is taken to
    be a half at least, as later ones fall faster.
    """
    last, before = float(ends[0] - ends[1]), float(ends[1] - ends[2])
    factor = min(max(last / before if before else 0.0, 0.5), 0.9)
    return last * factor / (1 - factor)


class _Samples:
    """What the probes said: xᵀ f(A) x for each f after few steps, and xᵀ A x beside it, whose mean is known.

    From both is taken off what a probe lays on the leading eigenvectors by chance. What more steps add is the mean over
    those probes that took them (`add_deep`), and half of what they still miss: the other half is unsure.
    """

    def __init__(self, orders: Sequence[float], depths: Depths, leading: Eigenpairs) -> None:
        self.depths = depths
        self._leading = leading
        self._values: dict[float, list[Tensor]] = {order: [] for order in orders}
        self._last: dict[float, list[Tensor]] = {order: [] for order in orders}
        self._deep: dict[float, list[Tensor]] = {order: [] for order in orders}
        self._traces: list[Tensor] = []

    @property
    def count(self) -> int:
        return 1 + sum(len(traces) for traces in self._traces)

    @property
    def deep(self) -> int:
        return sum(values.shape[1] for values in self._deep[1.0])

    def add(self, run: Recurrence, probes: Tensor) -> None:
        values = self._leading.values
        chance = self._leading.chance(probes)
        self._traces.append(run.traces - values @ chance)
        for order, ends in _ends(run, list(self._values)).items():
            self._values[order].append(ends[0] - spectral(values, order) @ chance)
            self._last[order].append(ends[:2])

    def add_deep(self, run: Recurrence) -> None:
        """Probes that were added before, after more steps."""
        few = run.quadratures(min(self.depths.short, run.steps))
        for order, ends in _ends(run, list(self._deep)).items():
            self._deep[order].append(ends - few.integrate(order))

    def lengthen(self, size: int) -> bool:
        """Have the next probes take more steps than any before; whether they can, for a matrix of that side."""
        longer = next((steps for steps in STEPS if self.depths.long < steps), None)
        if longer is None or self.depths.long >= size:
            return False
        self.depths = replace(self.depths, long=min(longer, size))
        for values in self._deep.values():
            values.clear()
        return True

    def disagreement(self, order: float) -> float:
        """The standard error of what more steps add."""
        if not self.deep:
            return math.inf
        return _spread(torch.cat(self._last[order], dim=1)) / math.sqrt(self.deep)

    def missing(self, order: float) -> float:
        """What even the most steps lack, with its sign."""
        return missing_of(torch.cat(self._deep[order], dim=1).mean(dim=1)) if self.deep else 0.0

    def entropy(self, order: float, factor: float = 1) -> tuple[float, float]:
        """The entropy of an order and its standard error, with what comes from sampling `factor` times as large."""
        if not self.deep:
            return 0.0, math.inf
        mean, stderr = controlled(torch.cat(self._values[order]), torch.cat(self._traces) - 1)
        half = self.missing(order) / 2
        mean += float(torch.cat(self._deep[order], dim=1)[0].mean()) + half
        stderr = math.hypot(factor * stderr, self.disagreement(order), half)
        return (mean, stderr) if order == 1 else (math.log(mean) / (1 - order), stderr / mean / abs(1 - order))

    def estimate(self, seed: int, reached: bool) -> Estimate:
        both = {order: self.entropy(order) for order in self._values}
        values, errors = ({order: pair[i] for order, pair in both.items()} for i in (0, 1))
        return Estimate(values, errors, self.count, self.depths, self.deep, seed, reached)


def controlled(values: Tensor, control: Tensor) -> tuple[float, float]:
    """Mean of values (n,) with a control variate (n,) of mean zero regressed out, and its standard error.

    The slope for each value is fitted on all the others, so that neither the mean nor the error bar is biased by it.
    """
    n = len(values)
    if n < 4:
        return float(values.mean()), math.inf
    x, y = control - control.mean(), values - values.mean()
    # What leaving one out does to the sums of squares about the mean, in closed form.
    share = n / (n - 1)
    sxx = (x * x).sum() - share * x * x
    sxy = (x * y).sum() - share * x * y
    slope = torch.where(sxx > 0, sxy / sxx, 0.0)
    corrected = values - slope * control
    return float(corrected.mean()), float(corrected.std(correction=1) / math.sqrt(n))
