"""The joint entropy without its matrix: Lanczos quadrature on random probes, with an error bar.

For a symmetric A ⪰ 0 of trace 1 and a probe x of independent signs, E[xᵀ f(A) x] = tr f(A); xᵀ f(A) x is a Gauss
quadrature of the Lanczos recurrence from x (Ubaru, Chen and Saad 2017). tr A = 1 is known exactly, so that every
probe's own xᵀ A x is a control variate: its regression, fitted on the other probes, is taken off.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ckpt_probe.errors import DataError, UsageError

PROBES = 8
"""Probes that run together, one Lanczos recurrence each."""

FEWEST = 16
"""Probes before an error bar is believed."""

STEPS = (10, 14, 20, 28, 40)
"""Lengths of the recurrence, tried in turn until the quadrature's own error is small beside the error bar."""

Operator = Callable[[Tensor], Tensor]
"""x (N, b) float64 → A x."""


@dataclass(frozen=True)
class Sampling:
    """When to stop: at a relative standard error of MIR of `tolerance`, or after `budget` seconds (None: never)."""

    tolerance: float = 1e-3
    budget: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.tolerance > 0 and math.isfinite(self.tolerance)):
            raise UsageError(f"tolerance: expected a positive number, found {self.tolerance}")
        if self.budget is not None and not self.budget > 0:
            raise UsageError(f"budget: expected a positive number of seconds, found {self.budget}")


@dataclass(frozen=True)
class Estimate:
    """Entropies (nats) by Rényi order, their standard errors, and what they cost."""

    entropies: dict[float, float]
    stderrs: dict[float, float]
    probes: int
    steps: int
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
    orders = (1.0, *(order for order in orders if order != 1))
    generator = torch.Generator().manual_seed(sampling.seed)
    began = time.monotonic()
    steps, samples = STEPS[0], _Samples(orders)
    while True:
        signs = torch.randint(0, 2, (size, PROBES), generator=generator).double().mul_(2).sub_(1).to(device)
        while True:
            quadratures = lanczos(operator, signs, min(steps, size))
            found = _Samples(orders)
            found.add(quadratures, size)
            deeper = next((s for s in STEPS if s > steps), None)
            # The recurrence is deepened on the first probes, before any of them counts.
            if samples.count or deeper is None or steps >= size or _converged(quadratures, size, known, sampling):
                break
            steps = deeper
        samples.join(found)
        entropy, stderr = samples.entropy(1.0)
        information = known - entropy
        reached = stderr <= sampling.tolerance * abs(information)
        spent = time.monotonic() - began
        over = sampling.budget is not None and spent > sampling.budget
        if over and samples.count < FEWEST:
            raise DataError(
                f"the budget of {sampling.budget:g} s is over after {samples.count} probes in {spent:.1f} s; "
                f"an error bar needs {FEWEST}"
            )
        if samples.count >= FEWEST and (reached or over):
            both = {order: samples.entropy(order) for order in orders}
            values, errors = ({o: pair[i] for o, pair in both.items()} for i in (0, 1))
            return Estimate(values, errors, samples.count, steps, sampling.seed, reached)


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

    def shorter(self, alphas: Tensor, betas: Tensor) -> "Quadratures":
        """The quadrature of a recurrence cut off earlier."""
        return Quadratures(*_nodes(alphas, betas), self.lengths, self.traces)


def lanczos(operator: Operator, probes: Tensor, steps: int) -> tuple[Quadratures, Quadratures]:
    """Gauss quadratures of A from each column of probes (N, b), after `steps` and after two steps fewer.

    Reorthogonalised against the whole basis, twice; a recurrence that ends early is padded with weight zero.
    """
    lengths = probes.square().sum(dim=0)
    basis = [probes / lengths.sqrt()]
    alphas, betas = [], []
    alive = torch.ones_like(lengths, dtype=torch.bool)
    for number in range(steps):
        image = operator(basis[-1])
        alphas.append(torch.where(alive, (basis[-1] * image).sum(dim=0), 0.0))
        if number == steps - 1:
            break
        for _ in range(2):
            for earlier in basis:
                image = image - earlier * (earlier * image).sum(dim=0)
        beta = torch.linalg.vector_norm(image, dim=0)
        alive = alive & (beta > 1e-10 * alphas[0].abs().max())
        betas.append(torch.where(alive, beta, 0.0))
        basis.append(torch.where(alive, image / beta.clamp_min(torch.finfo(beta.dtype).tiny), 0.0))
    a = torch.stack(alphas, dim=1)
    b = torch.stack(betas, dim=1) if betas else a[:, :0]
    whole = Quadratures(*_nodes(a, b), lengths, lengths * a[:, 0])
    cut = max(1, steps - 2)
    return whole, whole.shorter(a[:, :cut], b[:, : cut - 1])


def _nodes(alphas: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
    tridiagonal = torch.diag_embed(alphas) + torch.diag_embed(betas, 1) + torch.diag_embed(betas, -1)
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    return nodes, vectors[:, 0].square()


def _converged(quadratures: tuple[Quadratures, Quadratures], size: int, known: float, sampling: Sampling) -> bool:
    whole, cut = quadratures
    entropy = float(whole.integrate(1.0).mean())
    change = abs(entropy - float(cut.integrate(1.0).mean()))
    return change <= 0.1 * sampling.tolerance * abs(known - entropy)


class _Samples:
    """What the probes said: xᵀ f(A) x for each f, and xᵀ A x beside it, whose mean is known to be 1."""

    def __init__(self, orders: Sequence[float]) -> None:
        self._values: dict[float, list[Tensor]] = {order: [] for order in orders}
        self._traces: list[Tensor] = []

    @property
    def count(self) -> int:
        return sum(len(traces) for traces in self._traces)

    def add(self, quadratures: tuple[Quadratures, Quadratures], size: int) -> None:
        whole, _ = quadratures
        scale = size / whole.lengths
        self._traces.append(scale * whole.traces)
        for order, values in self._values.items():
            values.append(scale * whole.integrate(order))

    def join(self, other: "_Samples") -> None:
        self._traces += other._traces
        for order, values in self._values.items():
            values += other._values[order]

    def entropy(self, order: float) -> tuple[float, float]:
        """The entropy of an order and its standard error."""
        mean, stderr = controlled(torch.cat(self._values[order]), torch.cat(self._traces) - 1)
        if order == 1:
            return mean, stderr
        return math.log(mean) / (1 - order), stderr / mean / abs(1 - order)


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
