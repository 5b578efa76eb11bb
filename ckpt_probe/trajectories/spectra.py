"""Spectra of weight matrices: norms and ranks, the power law of the tail, and the eigenvalues beyond the random bulk.

For a matrix W (m, n) with m ≤ n, the eigenvalues are those of W Wᵀ / n. A convolution (out, in, k, …) is the matrix
(out, in · k · …). Spectra of a checkpoint are cached; those of a tensor that does not change are computed once.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ckpt_probe.checkpoints import Checkpoint, Member, quantised
from ckpt_probe.checkpoints.statistics import FLOATING
from ckpt_probe.errors import DataError
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.scheduling import Failed, Workers, in_turn, results
from ckpt_probe.series import natural
from ckpt_probe.trajectories.layout import BUFFER, is_matrix
from ckpt_probe.trajectories.measure import cached, identity_of
from ckpt_probe.trajectories.stream import Opening
from ckpt_probe.trajectories.tails import FEWEST, LEAST_P, edge_of, fit_tail, goodness

if TYPE_CHECKING:
    from torch import Tensor

EXACT_SIDE = 4096
"""Largest smaller side of a matrix all of whose eigenvalues are computed."""
PANEL = 2**23
"""Number of entries of a matrix that are in memory in double precision at once."""
MEAN_LOG_ERROR = 1e-9
"""Largest error of the mean logarithm of the eigenvalues that the rounding of a Gram matrix may cause."""
MOST_VALUES = 2**22
"""Number of eigenvalues of the latest tensors that a process keeps in memory, for tensors that do not change."""
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
    values, bulk, squares = _eigenvalues(matrix)
    if not math.isfinite(squares):
        return Spectrum(numbers, ("spectrum.*: NaN or infinite weights",))
    if squares == 0:
        return Spectrum(numbers, ("spectrum.*: all entries are zero",))
    reasons: list[str] = []
    numbers["norm"] = math.sqrt(values[0] * n)
    numbers["stable_rank"] = squares / (values[0] * n)
    numbers["effective_rank"] = _effective_rank(values, bulk, squares / n, m)
    numbers["mean_log"] = _mean_log(matrix, values) if bulk is None else bulk.mean_log
    if numbers["mean_log"] is None:
        reasons.append("spectrum.mean_log: a singular value is zero within rounding")
    start = _add_tail(numbers, reasons, values, bootstrap)
    edge = _add_edge(numbers, reasons, values, m, n, squares / n)
    if first is not None:
        _add_change(numbers, reasons, matrix, _oriented(first))
    return Spectrum(numbers, tuple(reasons), tuple(map(float, values)), edge, start, bulk is None)


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
    """Return checkpoints in order, each with the spectra of its matrices and of their changes since the first.

    One whose tensors cannot be read is left out; its error is raised after the last.

    Args:
        members: Checkpoints in order.
        first: First checkpoint of the series.
        opening: How they are opened.
        bootstrap: Number of synthetic spectra for the goodness of fit of each tail; 0 leaves it out.
        workers: Workers that take one checkpoint each.
        cache: Whether to use the cache.
        progress: Receives messages.
    """
    work, names = partial(_spectra, first, opening, bootstrap, cache), [member.name for member in members]
    return in_turn(results(work, members, names=names, workers=workers, say=progress.message))


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


def _spectra(
    first: Member, opening: Opening, bootstrap: int, cache: bool, member: Member
) -> tuple[Member, Spectra] | Failed:
    """Return the spectra of a checkpoint, from the cache if they are there."""
    alone = member.path == first.path

    def compute() -> dict[str, np.ndarray]:
        spectra = _computed(member, None if alone else first, opening, bootstrap)
        numbers = {
            name: {**vars(replace(spectrum, values=())), "count": len(spectrum.values)}
            for name, spectrum in spectra.items()
        }
        values = [np.array(spectrum.values) for spectrum in spectra.values()]
        return {"numbers": np.array(json.dumps(numbers)), "values": np.concatenate([np.zeros(0), *values])}

    identity = [identity_of(m, opening) for m in ([member] if alone else [member, first])] if cache else []
    try:
        stored = cached("spectra", [identity, bootstrap], cache, compute, NullProgress())
    except DataError as error:
        return Failed(str(error), ours=True)
    spectra, start = {}, 0
    for name, fields in json.loads(str(stored["numbers"])).items():
        count = fields.pop("count")
        values = tuple(stored["values"][start : start + count].tolist())
        spectra[name] = Spectrum(**{**fields, "missing": tuple(fields["missing"]), "values": values})
        start += count
    return member, spectra


def _computed(member: Member, first: Member | None, opening: Opening, bootstrap: int) -> Spectra:
    with ExitStack() as stack:
        checkpoint = opening.open(member.path, stack)
        before = None if first is None else opening.open(first.path, stack)
        spectra = {}
        for name in matrices_of(checkpoint):
            shape = None if before is None or name not in before else before.shape(name)
            alone = "the first checkpoint"
            if before is not None:
                alone += " has no such tensor" if shape is None else f" has the shape {shape}"
            tensor = before.read(name) if before is not None and shape == checkpoint.shape(name) else None
            spectra[name] = _latest(checkpoint.read(name), tensor, bootstrap, alone)
        return spectra


def _latest(tensor: "Tensor", before: "Tensor | None", bootstrap: int, alone: str) -> Spectrum:
    """Return the spectrum of a tensor, from memory if this process computed that of an equal one not long ago.

    Args:
        tensor: The tensor.
        before: That of the first checkpoint; None for none.
        bootstrap: Number of synthetic spectra.
        alone: Reason why there is no change if `before` is None.
    """
    content, other = _content(tensor), None if before is None else _content(before)
    if content == other:
        before, other, alone = None, None, "no change since the first checkpoint"
    key = content, other, bootstrap
    if key not in _LATEST:
        _LATEST[key] = spectrum_of(_numbers(tensor), None if before is None else _numbers(before), bootstrap)
    _LATEST[key] = spectrum = _LATEST.pop(key)
    while sum(len(each.values) for each in _LATEST.values()) > MOST_VALUES and len(_LATEST) > 1:
        del _LATEST[next(iter(_LATEST))]
    if before is not None or any(reason.startswith("spectrum.*") for reason in spectrum.missing):
        return spectrum
    return replace(spectrum, missing=(*spectrum.missing, f"spectrum.change_spikes: {alone}"))


_LATEST: dict[tuple[str, str | None, int], Spectrum] = {}
"""Spectra of the latest tensors by their content, the longest unused one first."""


def _content(tensor: "Tensor") -> str:
    import torch

    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.blake2b(data.data).hexdigest()}"


def _numbers(tensor: "Tensor") -> np.ndarray:
    """Return the entries of a tensor; numpy has no bfloat16."""
    return (tensor if tensor.element_size() > 2 else tensor.float()).detach().numpy()


def _oriented(weights: np.ndarray) -> np.ndarray:
    """Return a matrix with no more rows than columns."""
    matrix = np.asarray(weights).reshape(len(weights), -1)
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _panels(matrix: np.ndarray, first: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yield some columns after another of a matrix, or of its difference from another one, in double precision."""
    width = max(1, PANEL // len(matrix))
    for start in range(0, matrix.shape[1], width):
        panel = matrix[:, start : start + width].astype(np.float64)
        yield panel if first is None else panel - first[:, start : start + width]


def _eigenvalues(matrix: np.ndarray, first: np.ndarray | None = None) -> tuple[np.ndarray, "_Bulk | None", float]:
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


def _mean_log(matrix: np.ndarray, values: np.ndarray) -> float | None:
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


def _add_change(numbers: dict[str, Any], reasons: list[str], matrix: np.ndarray, first: np.ndarray) -> None:
    m, n = matrix.shape
    values, _, squares = _eigenvalues(matrix, first)
    if not math.isfinite(squares):
        reasons.append("spectrum.change_spikes: NaN or infinite weights in the first checkpoint")
    elif squares == 0:
        reasons.append("spectrum.change_spikes: no change since the first checkpoint")
    else:
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


def _leading(matrix: np.ndarray) -> tuple[np.ndarray, _Bulk]:
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
    nodes = rules.nodes[0].flatten().numpy().clip(np.finfo(float).tiny)
    weights = rules.weights[0].flatten().numpy() / PROBES
    order = np.argsort(nodes)
    mass = np.cumsum(weights[order])
    quantiles = np.interp((np.arange(others)[::-1] + 0.5) / others, mass, nodes[order])
    logs, leading_logs = np.log(nodes), np.log(leading)
    mean_log = (float(leading_logs.sum()) + others * float(weights @ logs)) / m
    mean_product = (float(leading @ leading_logs) + others * float(weights @ (nodes * logs))) / m
    return leading, _Bulk(quantiles, mean_log, mean_product)
