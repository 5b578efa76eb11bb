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

from ckpt_probe.checkpoints import Checkpoint, Member
from ckpt_probe.errors import DataError
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.scheduling import Failed, in_turn, results
from ckpt_probe.series import natural
from ckpt_probe.trajectories.eigenvalues import (
    FEWEST,
    LEAST_P,
    edge_of,
    effective_rank_of,
    eigenvalues_of,
    fit_tail,
    goodness,
    mean_log_of,
)
from ckpt_probe.trajectories.layout import BUFFER, WeightOptions, floating, is_matrix
from ckpt_probe.trajectories.measure import cached, identity_of

if TYPE_CHECKING:
    from torch import Tensor

MOST_VALUES = 2**22
"""Number of eigenvalues of the latest tensors that a process keeps in memory, for tensors that do not change."""
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
    values, bulk, squares = eigenvalues_of(matrix)
    if not math.isfinite(squares):
        return Spectrum(numbers, ("spectrum.*: NaN or infinite weights",))
    if squares == 0:
        return Spectrum(numbers, ("spectrum.*: all entries are zero",))
    reasons: list[str] = []
    numbers["norm"] = math.sqrt(values[0] * n)
    numbers["stable_rank"] = squares / (values[0] * n)
    numbers["effective_rank"] = effective_rank_of(values, bulk, squares / n, m)
    numbers["mean_log"] = mean_log_of(matrix, values) if bulk is None else bulk.mean_log
    if numbers["mean_log"] is None:
        reasons.append("spectrum.mean_log: a singular value is zero within rounding")
    start = _add_tail(numbers, reasons, values, bootstrap)
    edge = _add_edge(numbers, reasons, values, m, n, squares / n)
    if first is not None:
        changes, _, squares = eigenvalues_of(matrix, _oriented(first))
        if not math.isfinite(squares):
            reasons.append("spectrum.change_spikes: NaN or infinite weights in the first checkpoint")
        elif squares == 0:
            reasons.append("spectrum.change_spikes: no change since the first checkpoint")
        else:
            _add_edge(numbers, reasons, changes, m, n, squares / n, "change_")
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
    members: Sequence[Member], first: Member, options: WeightOptions, progress: Progress
) -> Iterator[tuple[Member, Spectra]]:
    """Return checkpoints in order, each with the spectra of its matrices and of their changes since the first.

    One whose tensors cannot be read is left out; its error is raised after the last.

    Args:
        members: Checkpoints in order.
        first: First checkpoint of the series.
        options: Options, whose workers take one checkpoint each.
        progress: Receives messages.
    """
    work, names = partial(_spectra, first, options), [member.name for member in members]
    return in_turn(results(work, members, names=names, workers=options.workers, say=progress.message))


def matrices_of(checkpoint: Checkpoint) -> list[str]:
    """Return the names of the floating-point matrices and convolutions of a checkpoint, in natural order."""
    tensors = floating(checkpoint.layout).items()
    return sorted((name for name, shape in tensors if is_matrix(shape) and not BUFFER.search(name)), key=natural)


def _spectra(first: Member, options: WeightOptions, member: Member) -> tuple[Member, Spectra] | Failed:
    """Return the spectra of a checkpoint, from the cache if they are there."""
    alone = member.path == first.path

    def compute() -> dict[str, np.ndarray]:
        spectra = _computed(member, None if alone else first, options)
        numbers = {name: vars(replace(spectrum, values=())) for name, spectrum in spectra.items()}
        # The name of a tensor may be too long for a member of an archive, or end there at a zero byte.
        values = {f"values {number}": np.array(spectrum.values) for number, spectrum in enumerate(spectra.values())}
        return {"numbers": np.array(json.dumps(numbers)), **values}

    def identity() -> list[Any]:
        return [[identity_of(m, options) for m in ([member] if alone else [member, first])], options.bootstrap]

    try:
        stored = cached("spectra", options, identity, compute, NullProgress())
    except DataError as error:
        return Failed(str(error), ours=True)
    spectra = {}
    for number, (name, fields) in enumerate(json.loads(str(stored["numbers"])).items()):
        values = tuple(stored[f"values {number}"].tolist())
        spectra[name] = Spectrum(**{**fields, "missing": tuple(fields["missing"]), "values": values})
    return member, spectra


def _computed(member: Member, first: Member | None, options: WeightOptions) -> Spectra:
    with ExitStack() as stack:
        checkpoint = options.open(member, stack)
        before = None if first is None else options.open(first, stack)
        spectra = {}
        for name in matrices_of(checkpoint):
            shape = None if before is None or name not in before else before.shape(name)
            alone = "the first checkpoint"
            if before is not None:
                alone += " has no such tensor" if shape is None else f" has the shape {shape}"
            tensor = before.read(name) if before is not None and shape == checkpoint.shape(name) else None
            spectra[name] = _latest(checkpoint.read(name), tensor, options.bootstrap, alone)
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


def _add_tail(numbers: dict[str, Any], reasons: list[str], values: np.ndarray, bootstrap: int) -> float | None:
    tail = fit_tail(values)
    if tail is None:
        count = int((values > 0).sum())
        few = f"{count} different eigenvalues above zero, fewer than {FEWEST} in the tail"
        reasons.append(f"spectrum.alpha: {few if count < FEWEST else 'the eigenvalues are equal up to rounding'}")
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
