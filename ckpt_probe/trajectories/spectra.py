"""Spectra of weight matrices: norms and ranks, the power law of the tail, and the eigenvalues beyond the random bulk.

For a matrix W (m, n) with m ≤ n, the eigenvalues are those of W Wᵀ / n. A convolution (out, in, k, …) is the matrix
(out, in · k · …). Spectra of a checkpoint are cached.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ckpt_probe.checkpoints import Checkpoint, Member, quantised
from ckpt_probe.checkpoints.statistics import FLOATING
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.scheduling import Workers, results
from ckpt_probe.series import natural
from ckpt_probe.trajectories.layout import BUFFER, is_matrix
from ckpt_probe.trajectories.measure import cached, identity_of
from ckpt_probe.trajectories.stream import Opening
from ckpt_probe.trajectories.tails import FEWEST, LEAST_P, edge_of, fit_tail, goodness

EXACT_SIDE = 4096
"""Largest smaller side of a matrix all of whose eigenvalues are computed."""
BLOCK_VECTORS, DEPTH = 16, 16
"""Vectors of the block Krylov space that the leading eigenvalues of larger matrices are sought in, and its powers."""
PROBES, NODES = 16, 60
"""Random vectors and quadrature nodes of each, for the bulk of larger matrices."""
SPREAD = 1e-6
"""Largest relative residual, squared, of a leading eigenvalue."""
NAMES = (
    "norm", "stable_rank", "effective_rank", "mean_log", "alpha", "alpha_stderr", "alpha_distance", "tail", "spikes",
    "spike_share", "change_spikes", "change_spike_share",
)  # fmt: skip
"""Names of the numbers of a matrix, without their prefix."""
SUMS, LARGEST = frozenset({"spikes", "tail", "change_spikes"}), frozenset({"norm"})
"""Numbers of which a group of matrices has the sum, or the largest; of the others it has the mean."""


@dataclass(frozen=True)
class Spectrum:
    """Spectrum of one matrix.

    Attributes:
        numbers: Numbers by name without prefix; None for an absent one.
        missing: Reasons for absent numbers.
        values: Eigenvalues in descending order, (m,); of a large matrix those after the leading ones are quantiles.
        edge: Edge of the bulk; None if unknown.
        start: Smallest eigenvalue of the tail; None without a tail.
        exact: Whether all eigenvalues were computed.
    """

    numbers: dict[str, float | None]
    missing: tuple[str, ...] = ()
    values: tuple[float, ...] = field(default=(), repr=False)
    edge: float | None = None
    start: float | None = None
    exact: bool = True


def spectrum_of(weights: np.ndarray, first: np.ndarray | None = None, bootstrap: int = 0) -> Spectrum:
    """Compute the spectrum of a matrix or a convolution.

    Args:
        weights: Matrix (out, …); floating-point numbers of any precision.
        first: The same tensor at the first checkpoint, for the spectrum of the change since then; None for none.
        bootstrap: Number of synthetic spectra for the goodness of fit; 0 leaves it out.
    """
    matrix = _oriented(weights)
    m, n = matrix.shape
    numbers: dict[str, float | None] = dict.fromkeys([*NAMES, *(["alpha_p"] if bootstrap else [])])
    squares = float(np.einsum("ij,ij->", matrix, matrix))
    if not math.isfinite(squares):
        return Spectrum(numbers, ("spectrum.*: NaN or infinite weights",))
    if squares == 0:
        return Spectrum(numbers, ("spectrum.*: all entries are zero",))
    exact = m <= EXACT_SIDE
    values, bulk = (_eigenvalues(matrix), None) if exact else _leading(matrix, squares)
    reasons: list[str] = []
    numbers["norm"] = math.sqrt(values[0] * n)
    numbers["stable_rank"] = squares / (values[0] * n)
    numbers["effective_rank"] = _effective_rank(values, bulk, squares / n, m)
    numbers["mean_log"] = _mean_log(matrix, values[0]) if bulk is None else bulk.mean_log
    if numbers["mean_log"] is None:
        reasons.append("spectrum.mean_log: a singular value is zero within rounding")
    values = values if bulk is None else bulk.with_leading(values)
    start = _add_tail(numbers, reasons, values, bootstrap)
    edge = _add_edge(numbers, reasons, values, m, n, squares / n)
    if first is not None:
        change = matrix - _oriented(first)
        _add_change(numbers, reasons, change)
    else:
        reasons.append("spectrum.change_spikes: the first checkpoint")
    return Spectrum(numbers, tuple(reasons), tuple(map(float, values)), edge, start, exact)


def group_numbers(spectra: Sequence[Spectrum]) -> dict[str, float | None]:
    """Compute the numbers of a group of matrices: sums of counts, the largest norm, and the mean of every other.

    The standard error of a mean exponent is √Σ se² / count; the group of one matrix has its own numbers.
    """
    names = dict.fromkeys(name for spectrum in spectra for name in spectrum.numbers)
    result: dict[str, float | None] = {}
    for name in names:
        present = [value for spectrum in spectra if (value := spectrum.numbers.get(name)) is not None]
        if not present:
            result[name] = None
        elif name in LARGEST:
            result[name] = max(present)
        elif name in SUMS:
            result[name] = sum(present)
        elif name == "alpha_stderr":
            result[name] = math.sqrt(sum(value**2 for value in present)) / len(present)
        else:
            result[name] = sum(present) / len(present)
    return result


Spectra = dict[str, Spectrum]
"""Spectra by the name of the tensor."""


def spectra_of_series(
    members: Sequence[Member],
    first: Member,
    opening: Opening,
    *,
    bootstrap: int,
    workers: Workers,
    cache: bool,
    progress: Progress,
) -> Iterator[tuple[Member, Spectra]]:
    """Yield checkpoints in order, each with the spectra of its matrices and of their changes since the first.

    Args:
        members: Checkpoints in order.
        first: First checkpoint of the series.
        opening: How they are opened.
        bootstrap: Number of synthetic spectra for the goodness of fit of each tail; 0 leaves it out.
        workers: Workers that take one checkpoint each.
        cache: Whether to use the cache.
        progress: Receives messages.
    """
    work, names = _Task(first, opening, bootstrap, cache), [member.name for member in members]
    ready: dict[int, Spectra] = {}
    following = 0
    for index, spectra in results(work, list(members), names=names, workers=workers, say=progress.message):
        ready[index] = spectra
        while following in ready:
            yield members[following], ready.pop(following)
            following += 1


def matrices_of(checkpoint: Checkpoint) -> list[str]:
    """Return the names of the floating-point matrices and convolutions of a checkpoint, in natural order."""
    codes = quantised(checkpoint.layout)
    return sorted(
        (
            name
            for name, (dtype, shape) in checkpoint.layout.items()
            if dtype in FLOATING and is_matrix(shape) and name not in codes and not BUFFER.search(name)
        ),
        key=natural,
    )


@dataclass(frozen=True)
class _Task:
    """Computes the spectra of one checkpoint, in this process or in a worker."""

    first: Member
    opening: Opening
    bootstrap: int
    cache: bool

    def __call__(self, member: Member) -> Spectra:
        alone = member.path == self.first.path

        def compute() -> dict[str, np.ndarray]:
            spectra = self._compute(member)
            numbers = {
                name: {**vars(replace(spectrum, values=())), "count": len(spectrum.values)}
                for name, spectrum in spectra.items()
            }
            values = [np.array(spectrum.values) for spectrum in spectra.values()]
            return {"numbers": np.array(json.dumps(numbers)), "values": np.concatenate([np.zeros(0), *values])}

        identity = (
            [identity_of(m, self.opening) for m in ([member] if alone else [member, self.first])] if self.cache else []
        )
        stored = cached("spectra", [identity, self.bootstrap], self.cache, compute, NullProgress())
        spectra, start = {}, 0
        for name, fields in json.loads(str(stored["numbers"])).items():
            count = fields.pop("count")
            values = tuple(stored["values"][start : start + count].tolist())
            spectra[name] = Spectrum(**{**fields, "missing": tuple(fields["missing"]), "values": values})
            start += count
        return spectra

    def _compute(self, member: Member) -> Spectra:
        with ExitStack() as stack:
            checkpoint = self.opening.open(member.path, stack)
            first = None if member.path == self.first.path else self.opening.open(self.first.path, stack)
            spectra = {}
            for name in matrices_of(checkpoint):
                same = first is not None and name in first and first.shape(name) == checkpoint.shape(name)
                before = _numbers(first, name) if first is not None and same else None
                spectra[name] = spectrum_of(_numbers(checkpoint, name), before, self.bootstrap)
            return spectra


def _numbers(checkpoint: Checkpoint, name: str) -> np.ndarray:
    return checkpoint.read(name).detach().double().numpy()


def _oriented(weights: np.ndarray) -> np.ndarray:
    """Return a matrix in float64 with no more rows than columns."""
    matrix = np.asarray(weights, dtype=np.float64).reshape(len(weights), -1)
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _eigenvalues(matrix: np.ndarray) -> np.ndarray:
    """Compute the eigenvalues of W Wᵀ / n in descending order; those below the rounding of the largest are zero."""
    from scipy.linalg import eigvalsh

    values = eigvalsh(matrix @ matrix.T / matrix.shape[1], check_finite=False)[::-1]
    return np.where(values > np.finfo(float).eps * len(values) * values[0], values, 0.0)


def _mean_log(matrix: np.ndarray, largest: float) -> float | None:
    """Compute the mean of log λ from the triangle of a QR decomposition, which keeps the digits of small values.

    The product of the triangle's diagonal is that of the singular values. None if a singular value is rounding.
    """
    n = matrix.shape[1]
    diagonal = np.abs(np.diag(np.linalg.qr(matrix.T, mode="r")))
    if diagonal.min() <= np.finfo(float).eps * n * math.sqrt(largest * n):
        return None
    return float(2 * np.log(diagonal).mean() - math.log(n))


def _effective_rank(values: np.ndarray, bulk: "_Bulk | None", total: float, m: int) -> float:
    if bulk is not None:
        return math.exp(math.log(total) - m * bulk.mean_product / total)
    shares = values[values > 0] / values.sum()
    return math.exp(float(-(shares * np.log(shares)).sum()))


def _add_tail(numbers: dict[str, Any], reasons: list[str], values: np.ndarray, bootstrap: int) -> float | None:
    tail = fit_tail(values)
    if tail is None:
        count = int((values > 0).sum())
        reasons.append(f"spectrum.alpha: {count} different eigenvalues above zero, fewer than {FEWEST} in the tail")
        return None
    numbers |= {"alpha_distance": tail.distance, "tail": tail.count}
    if bootstrap:
        numbers["alpha_p"] = goodness(values, tail, bootstrap)
        if numbers["alpha_p"] < LEAST_P:
            reasons.append(f"spectrum.alpha: no power law: p = {numbers['alpha_p']:.3g}, less than {LEAST_P}")
            return None
    numbers |= {"alpha": tail.alpha, "alpha_stderr": tail.stderr}
    return tail.start


def _add_edge(
    numbers: dict[str, Any], reasons: list[str], values: np.ndarray, m: int, n: int, total: float, prefix: str = ""
) -> float | None:
    edge = edge_of(values, m, n, total)
    if edge is None:
        cause = f"{m} eigenvalues, fewer than {FEWEST}" if m < FEWEST else "half of the eigenvalues are zero"
        reasons.append(f"spectrum.{prefix}spikes: {cause}")
        return None
    numbers |= {f"{prefix}spikes": edge.spikes, f"{prefix}spike_share": edge.share}
    return edge.value


def _add_change(numbers: dict[str, Any], reasons: list[str], change: np.ndarray) -> None:
    m, n = change.shape
    squares = float(np.einsum("ij,ij->", change, change))
    if not math.isfinite(squares):
        reasons.append("spectrum.change_spikes: NaN or infinite weights in the first checkpoint")
    elif squares == 0:
        reasons.append("spectrum.change_spikes: no change since the first checkpoint")
    else:
        values, bulk = (_eigenvalues(change), None) if m <= EXACT_SIDE else _leading(change, squares)
        values = values if bulk is None else bulk.with_leading(values)
        _add_edge(numbers, reasons, values, m, n, squares / n, "change_")


@dataclass(frozen=True)
class _Bulk:
    """Eigenvalues of a large matrix below the leading ones, estimated from random vectors, and means over all.

    Attributes:
        quantiles: As many equally likely eigenvalues as there are below the leading ones, in descending order.
        mean_log: Mean of log λ.
        mean_product: Mean of λ log λ.
    """

    quantiles: np.ndarray
    mean_log: float
    mean_product: float

    def with_leading(self, values: np.ndarray) -> np.ndarray:
        """Return the leading eigenvalues followed by the quantiles of the others."""
        return np.concatenate([values, np.minimum(self.quantiles, values[-1])])


def _leading(matrix: np.ndarray, squares: float) -> tuple[np.ndarray, _Bulk]:
    """Compute the leading eigenvalues of W Wᵀ / n by a block Krylov space, and the density of all by Lanczos rules."""
    import torch

    from ckpt_probe.metrics.lanczos import Lanczos, leading_eigenpairs

    m, n = matrix.shape
    tensor = torch.from_numpy(np.ascontiguousarray(matrix))
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
    nodes = rules.nodes[0].flatten().numpy().clip(np.finfo(float).tiny)
    weights = rules.weights[0].flatten().numpy() / PROBES
    order = np.argsort(nodes)
    mass = np.cumsum(weights[order])
    quantiles = np.interp((np.arange(others)[::-1] + 0.5) / others, mass, nodes[order])
    logs, leading_logs = np.log(nodes), np.log(leading)
    mean_log = (float(leading_logs.sum()) + others * float(weights @ logs)) / m
    mean_product = (float(leading @ leading_logs) + others * float(weights @ (nodes * logs))) / m
    return leading, _Bulk(quantiles, mean_log, mean_product)
