"""The joint entropy without its matrix: Lanczos quadrature on random probes, with an error bar.

For a symmetric A ⪰ 0 of trace 1 and a probe x of independent signs, E[xᵀ f(A) x] = tr f(A); xᵀ f(A) x is a Gauss
quadrature of the Lanczos recurrence from x (Ubaru, Chen and Saad 2017). tr A = 1 is known exactly, so that every
probe's own xᵀ A x is a control variate: its regression, fitted on the other probes, is taken off. Where a few
directions Q dominate, tr f(A) = tr Qᵀ f(A) Q + tr P f(A) P with P = I − Q Qᵀ: the first is computed from Q's columns,
only the second is sampled (as Hutch++, Meyer et al. 2021, does for the trace).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.metrics.deflation import leading_subspace, worthwhile_rank

PROBES = 8
"""Probes that run together, one Lanczos recurrence each."""

FEWEST = 16
"""Probes before an error bar is believed."""

MOST = 20_000
"""Probes after which sampling gives up, where a caller names no other number."""

STEPS = (10, 14, 20, 28, 40, 56, 80)
"""Lengths of the recurrence, tried in turn until the quadrature's own error is small beside the error bar."""

BLOCK = 16
"""Vectors of a probe's basis that are kept together; fixed, so that no sum depends on where a recurrence was left."""

Operator = Callable[[Tensor], Tensor]
"""x (N, b) float64 → A x."""


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
class Estimate:
    """Entropies (nats) by Rényi order, their standard errors, and what they cost.

    probes of `steps` Lanczos steps each; `deflated`: dimension of the leading subspace whose part is not sampled.
    """

    entropies: dict[float, float]
    stderrs: dict[float, float]
    probes: int
    steps: int
    deflated: int
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
    chosen = (1.0, *(order for order in orders if order != 1))
    steps, pilot, unsure = _deep_enough(operator, first, chosen, known, sampling)
    wanted = sampling.tolerance * abs(known - float(pilot.integrate(1.0).mean()))
    rank = worthwhile_rank(pilot.nodes, size * pilot.weights, wanted, steps, FEWEST)
    samples = _Samples(unsure)
    basis = leading_subspace(operator, first, rank) if rank else first[:, :0]
    for columns in basis.split(PROBES, dim=1) if rank else ():
        samples.add_exact(lanczos(operator, columns, steps))
    if not rank:
        samples.add(pilot)
    while True:
        entropy, stderr = samples.entropy(1.0)
        reached = samples.count >= FEWEST and stderr <= sampling.tolerance * abs(known - entropy)
        spent = time.monotonic() - began
        over = sampling.budget is not None and spent > sampling.budget
        if over and samples.count < FEWEST:
            raise DataError(
                f"the time budget of {sampling.budget:g} s ran out after {samples.count} probes ({spent:.1f} s); "
                f"a standard error needs {FEWEST}: raise the budget"
            )
        if reached or over or samples.count >= sampling.probes:
            return samples.estimate(steps, rank, sampling.seed, reached)
        probes = next(signs)
        samples.add(lanczos(operator, probes - basis @ (basis.T @ probes), steps))


@dataclass(frozen=True)
class Quadratures:
    """For each of b probes: nodes (b, m) and weights (b, m) that sum to 1, its squared length, and xᵀ A x, (b,)."""

    nodes: Tensor
    weights: Tensor
    lengths: Tensor
    traces: Tensor

    def integrate(self, order: float) -> Tensor:
        """xᵀ f(A) x of each probe, (b,): f(λ) = −λ log λ for order 1, else λ^order."""
        nodes = self.nodes.clamp_min(0)
        values = -torch.xlogy(nodes, nodes) if order == 1 else nodes.pow(order)
        return self.lengths * (self.weights * values).sum(dim=1)


@dataclass(frozen=True)
class Recurrence:
    """A Lanczos recurrence from each of b vectors: diagonals (b, m), offdiagonals (b, m − 1), squared lengths (b,)."""

    alphas: Tensor
    betas: Tensor
    lengths: Tensor

    def quadratures(self, steps: int | None = None) -> Quadratures:
        """What its first `steps` give, all where None."""
        steps = steps or self.alphas.shape[1]
        alphas, betas = self.alphas[:, :steps], self.betas[:, : steps - 1]
        tridiagonal = torch.diag_embed(alphas) + torch.diag_embed(betas, 1) + torch.diag_embed(betas, -1)
        nodes, vectors = torch.linalg.eigh(tridiagonal)
        return Quadratures(nodes, vectors[:, 0].square(), self.lengths, self.lengths * alphas[:, 0])


def lanczos(operator: Operator, probes: Tensor, steps: int) -> Quadratures:
    """Gauss quadratures of A from each column of probes (N, b), after `steps` steps of the Lanczos recurrence."""
    return Lanczos(operator, probes).after(steps).quadratures()


class Lanczos:
    """The Lanczos recurrence of A from each column of probes (N, b), which goes on from where it was left.

    Reorthogonalised against the whole basis, twice; a recurrence that ends early is padded with weight zero.
    """

    def __init__(self, operator: Operator, probes: Tensor) -> None:
        self._operator = operator
        self._lengths = probes.square().sum(dim=0)
        # (b, BLOCK, N) each, so that a product takes many earlier vectors of a probe.
        self._basis: list[Tensor] = []
        self._last = probes / self._lengths.sqrt()
        self._alphas: list[Tensor] = []
        self._betas: list[Tensor] = []
        self._alive = torch.ones_like(self._lengths, dtype=torch.bool)

    def after(self, steps: int) -> Recurrence:
        """The recurrence after `steps` steps, at most N."""
        while len(self._alphas) < min(steps, len(self._last)):
            if self._alphas:
                self._extend()
            place = len(self._alphas) % BLOCK
            if place == 0:
                self._basis.append(self._last.new_empty(self._last.shape[1], BLOCK, len(self._last)))
            self._basis[-1][:, place] = self._last.T
            self._image = self._operator(self._last)
            self._alphas.append(torch.where(self._alive, (self._last * self._image).sum(dim=0), 0.0))
        alphas = torch.stack(self._alphas, dim=1)
        return Recurrence(alphas, torch.stack(self._betas, dim=1) if self._betas else alphas[:, :0], self._lengths)

    def _extend(self) -> None:
        image = self._image.T.contiguous()[:, :, None]
        filled = (len(self._alphas) - 1) % BLOCK + 1
        for _ in range(2):
            for earlier in (*self._basis[:-1], self._basis[-1][:, :filled]):
                image = torch.baddbmm(image, earlier.mT, torch.bmm(earlier, image), alpha=-1)
        image = image[:, :, 0].T
        beta = torch.linalg.vector_norm(image, dim=0)
        self._alive = self._alive & (beta > 1e-10 * self._alphas[0].abs().max())
        self._betas.append(torch.where(self._alive, beta, 0.0))
        self._last = torch.where(self._alive, image / beta.clamp_min(torch.finfo(beta.dtype).tiny), 0.0).contiguous()


def _signs(size: int, seed: int, device: torch.device | None) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(0, 2, (size, PROBES), generator=generator).double().mul_(2).sub_(1).to(device)


def _deep_enough(
    operator: Operator, probes: Tensor, orders: Sequence[float], known: float, sampling: Sampling
) -> tuple[int, Quadratures, dict[float, float]]:
    """How many steps leave errors of the quadrature far below the error bar, their result, and those errors by order.

    Seen by taking two steps fewer; of orders other than 1, whose powers converge slowly at zero, by taking half.
    """
    growing = Lanczos(operator, probes)
    for steps in STEPS:
        run = growing.after(steps)
        whole = {order: float(run.quadratures().integrate(order).mean()) for order in orders}
        cuts = {order: max(1, steps - 2 if order == 1 else steps // 2) for order in orders}
        errors = {o: abs(whole[o] - float(run.quadratures(cuts[o]).integrate(o).mean())) for o in orders}
        small = {o: abs(known - value) if o == 1 else value * abs(1 - o) for o, value in whole.items()}
        if steps in (STEPS[-1], probes.shape[0]) or all(
            errors[o] <= 0.1 * sampling.tolerance * small[o] for o in orders
        ):
            break
    return steps, run.quadratures(), errors


class _Samples:
    """What the probes said: xᵀ f(A) x for each f, and xᵀ A x beside it, whose mean is known.

    Of a deflated part the traces are known (`add_exact`); the probes are those of the rest. unsure: by order, the error
    of a quadrature of xᵀ f(A) x itself, which the error bars of orders other than 1 include.
    """

    def __init__(self, unsure: Mapping[float, float]) -> None:
        self._values: dict[float, list[Tensor]] = {order: [] for order in unsure}
        self._traces: list[Tensor] = []
        self._exact = dict.fromkeys(unsure, 0.0)
        self._unsure = unsure
        self._rest = 1.0

    @property
    def count(self) -> int:
        return sum(len(traces) for traces in self._traces)

    def add(self, quadratures: Quadratures) -> None:
        self._traces.append(quadratures.traces)
        for order, values in self._values.items():
            values.append(quadratures.integrate(order))

    def add_exact(self, quadratures: Quadratures) -> None:
        self._rest -= float(quadratures.traces.sum())
        for order in self._exact:
            self._exact[order] += float(quadratures.integrate(order).sum())

    def entropy(self, order: float) -> tuple[float, float]:
        """The entropy of an order and its standard error."""
        if not self._traces:
            return 0.0, math.inf
        mean, stderr = controlled(torch.cat(self._values[order]), torch.cat(self._traces) - self._rest)
        mean += self._exact[order]
        if order == 1:
            return mean, stderr
        return math.log(mean) / (1 - order), math.hypot(stderr, self._unsure[order]) / mean / abs(1 - order)

    def estimate(self, steps: int, rank: int, seed: int, reached: bool) -> Estimate:
        both = {order: self.entropy(order) for order in self._values}
        values, errors = ({order: pair[i] for order, pair in both.items()} for i in (0, 1))
        return Estimate(values, errors, self.count, steps, rank, seed, reached)


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
