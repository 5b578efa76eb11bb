"""From class moments to the record: every metric at sample, class and within-class level, and why one is missing."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics import collapse
from ckpt_probe.metrics.entropy import entropy_of_gram
from ckpt_probe.metrics.gram import directions, require_directions, smaller_gram
from ckpt_probe.metrics.information import Entropies, joint_entropies
from ckpt_probe.metrics.scatter import Scatter
from ckpt_probe.metrics.theory import reference_values
from ckpt_probe.metrics.unit_moments import DENSE_LIMIT, UnitMoments

Value = float | int | str | None

NO_WEIGHTS = "there are no classifier weights"
ZERO_ENTROPY = "an entropy it divides by is zero"


@dataclass
class Record:
    """Named values, and the reason for each that is None."""

    values: dict[str, Value] = field(default_factory=dict)
    reasons: dict[str, list[str]] = field(default_factory=dict)

    def put(self, name: str, value: Value | Tensor, reason: str = "undefined here") -> None:
        """Set one value; None is put down with its reason."""
        self.values[name] = float(value) if isinstance(value, Tensor) else value
        if value is None:
            self.reasons.setdefault(reason, []).append(name)

    def miss(self, names: Iterable[str], reason: str) -> None:
        """Put several names down as missing for one reason."""
        for name in names:
            self.put(name, None, reason)

    def finished(self) -> dict[str, Value]:
        """The values with `missing`: what is None and why, or None where nothing is."""
        told = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in self.reasons.items())
        return {**self.values, "missing": told or None}


def read_out(classes: int, scatter: Scatter, unit: UnitMoments, weights: Tensor | None) -> dict[str, Value]:
    """Every metric of `Moments.compute`; weights (C, D) float64 or None."""
    record = Record()
    present = torch.tensor(sorted(scatter.means))
    means = torch.stack([scatter.means[label] for label in present.tolist()])
    heads = None if weights is None else weights[present.to(weights.device)]
    record.put("samples", sum(scatter.counts.values()))
    record.put("features", scatter.features)
    record.put("classes", classes)
    _sample_level(record, unit, weights)
    _within_level(record, unit)
    if len(means) < 2:
        _one_class(record, classes)
        return record.finished()
    M = means - means.mean(dim=0)
    _class_level(record, classes, M, heads, 1e-12 * float(means.abs().max()))
    _neural_collapse(record, scatter, means, M, heads)
    for name, value in reference_values(len(means)).items():
        record.put(name, value, "with two classes its entropies are zero")
    return record.finished()


CLASS_LEVEL = ("class.mutual_information", "class.mir", "class.hdr")
SAMPLE_LEVEL = ("sample.mutual_information", "sample.mir", "sample.mir_stderr", "sample.hdr")


def _class_level(record: Record, classes: int, M: Tensor, heads: Tensor | None, rounding: float) -> None:
    directed = _directed(M, rounding)
    if heads is not None:
        directed &= _directed(heads)
    used = int(directed.sum())
    record.put("classes_left_out", classes - used)
    require_directions(len(M) - used, len(M), "class means and classifier weights")
    record.put("class.entropy_means", entropy_of_gram(smaller_gram(directions(M[directed])[0]), n=used))
    if heads is None:
        record.miss(("class.entropy_weights", *CLASS_LEVEL), NO_WEIGHTS)
        return
    record.put("class.entropy_weights", entropy_of_gram(smaller_gram(directions(heads[directed])[0]), n=used))
    if min(used, M.shape[1] ** 2) > DENSE_LIMIT:
        record.miss(CLASS_LEVEL, f"{used} classes are over the limit of {DENSE_LIMIT} for an exact joint entropy")
        return
    entropies = joint_entropies(M[directed], heads[directed])
    record.put("class.mutual_information", entropies.mutual_information)
    record.put("class.mir", entropies.mir, ZERO_ENTROPY)
    record.put("class.hdr", entropies.hdr, ZERO_ENTROPY)


def _sample_level(record: Record, unit: UnitMoments, weights: Tensor | None) -> None:
    counts = dict(sorted(unit.counts.items()))
    silent = 0
    if weights is not None:
        with_direction = _directed(weights).tolist()
        silent = sum(count for label, count in counts.items() if not with_direction[label])
        counts = {label: count for label, count in counts.items() if with_direction[label]}
    samples = sum(counts.values())
    record.put("samples_left_out", unit.left_out + silent)
    require_directions(
        unit.left_out + silent, samples + unit.left_out + silent, "features and their classifier weights"
    )
    if silent and unit.kind == "total":
        raise DataError(f"{silent} samples belong to classes whose weights have zero length, and cannot be told apart")
    features = entropy_of_gram(_feature_gram(unit, counts), n=samples)
    record.put("sample.entropy_features", features)
    record.put("sample.effective_rank", features.exp())
    if weights is None:
        record.miss(("sample.entropy_weights", "sample.entropy_joint", *SAMPLE_LEVEL), NO_WEIGHTS)
        record.put("route", None, NO_WEIGHTS)
        return
    shares = torch.tensor(list(counts.values()), dtype=torch.float64, device=weights.device) / samples
    heads, _ = directions(weights[list(counts)])
    second = entropy_of_gram(smaller_gram(shares.sqrt()[:, None] * heads), n=1)
    record.put("sample.entropy_weights", second)
    route, joint, reason = _joint(unit, counts, heads)
    record.put("route", route, reason)
    record.put("sample.entropy_joint", joint, reason)
    if joint is None:
        record.miss(SAMPLE_LEVEL, reason)
        return
    entropies = Entropies(features, second, joint)
    record.put("sample.mutual_information", entropies.mutual_information)
    record.put("sample.mir", entropies.mir, ZERO_ENTROPY)
    record.put("sample.mir_stderr", 0.0 if entropies.mir is not None else None, ZERO_ENTROPY)
    record.put("sample.hdr", entropies.hdr, ZERO_ENTROPY)


def _feature_gram(unit: UnitMoments, counts: dict[int, int]) -> Tensor:
    if unit.kind == "rows":
        return smaller_gram(torch.cat([unit.of_class(label) for label in counts]))
    if unit.total is not None:
        return unit.total
    total = torch.zeros_like(next(iter(unit.second.values())))
    for label in counts:
        total += unit.second[label]
    return total


def _joint(unit: UnitMoments, counts: dict[int, int], heads: Tensor) -> tuple[str | None, Tensor | None, str]:
    """The route taken, the joint entropy in nats, and the reason where there is neither.

    With S_c = Σ ẑẑᵀ over class c and V Vᵀ = Ŵ Ŵᵀ, the joint matrix K1 ⊙ K2 (N × N) has the non-zero eigenvalues of
    Σ_c S_c ⊗ v_c v_cᵀ (D·r × D·r): whichever is smaller is formed.
    """
    samples = sum(counts.values())
    if unit.kind == "total":
        size = unit.needed() / 2**30
        return None, None, f"the classes' second moments would take {size:.1f} GiB, over the memory budget"
    V = _factor(heads)
    features = unit.second[next(iter(counts))].shape[0] if unit.second else unit.of_class(next(iter(counts))).shape[1]
    side = features * V.shape[1]
    if unit.kind == "rows" and samples <= side:
        rows = torch.cat([unit.of_class(label) for label in counts])
        classes = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(list(counts.values())))
        classes = classes.to(rows.device)
        similarity = heads @ heads.T
        return "dense-gram", entropy_of_gram((rows @ rows.T) * similarity[classes][:, classes], n=samples), ""
    if side > DENSE_LIMIT:
        return None, None, f"{samples} samples and D·r = {side} are both over {DENSE_LIMIT}, the limit of an exact one"
    return "dense-moments", entropy_of_gram(_joint_moment(unit, list(counts), V), n=samples), ""


def _factor(heads: Tensor) -> Tensor:
    if heads.shape[0] > heads.shape[1]:
        return heads
    values, vectors = torch.linalg.eigh(heads @ heads.T)
    present = values > len(values) * torch.finfo(values.dtype).eps * values.max()
    return vectors[:, present] * values[present].sqrt()


def _joint_moment(unit: UnitMoments, labels: list[int], V: Tensor) -> Tensor:
    if unit.kind == "rows":
        second = torch.stack([unit.of_class(label).T @ unit.of_class(label) for label in labels])
    else:
        second = torch.stack([unit.second[label] for label in labels])
    features, rank = second.shape[1], V.shape[1]
    joint = torch.empty(rank, features, rank, features, dtype=second.dtype, device=second.device)
    flat = second.reshape(len(labels), -1)
    for a in range(rank):
        for b in range(a + 1):
            block = ((V[:, a] * V[:, b]) @ flat).reshape(features, features)
            joint[a, :, b, :] = block
            joint[b, :, a, :] = block
    return joint.reshape(rank * features, rank * features)


def _within_level(record: Record, unit: UnitMoments) -> None:
    names = ("within.entropy_mean", "within.entropy_max")
    if unit.kind == "total":
        record.miss(names, "only the total second moment fits the memory budget")
        return
    entropies = torch.stack([_within(unit, label) for label in unit.counts])
    record.put(names[0], entropies.mean())
    record.put(names[1], entropies.max())


def _within(unit: UnitMoments, label: int) -> Tensor:
    if unit.kind == "rows":
        return entropy_of_gram(smaller_gram(unit.of_class(label)), n=unit.counts[label])
    return entropy_of_gram(unit.second[label], n=unit.counts[label])


def _neural_collapse(record: Record, scatter: Scatter, means: Tensor, M: Tensor, heads: Tensor | None) -> None:
    labels = sorted(scatter.means)
    counts = torch.tensor([scatter.counts[label] for label in labels], dtype=means.dtype, device=means.device)
    squares = torch.tensor([scatter.squares[label] for label in labels], dtype=means.dtype, device=means.device)
    assert scatter.within is not None
    coincide = "class means coincide"
    record.put(
        "nc1.pinv", collapse.nc1_pinv(scatter.within / counts.sum(), M, magnitude=float(means.abs().max())), coincide
    )
    record.put("nc1.cdnv", collapse.cdnv(squares / counts, means), coincide)
    record.put("nc2.equinorm_means", collapse.equinorm(M), coincide)
    record.put("nc2.equiangular_means", collapse.equiangular(M), coincide)
    record.put("nc2.etf", collapse.etf_distance(M), coincide)
    if heads is None:
        record.miss(("nc2.equinorm_weights", "nc2.equiangular_weights", "nc3.duality"), NO_WEIGHTS)
        return
    zero = "a row of classifier weights has zero length"
    record.put("nc2.equinorm_weights", collapse.equinorm(heads), zero)
    record.put("nc2.equiangular_weights", collapse.equiangular(heads), zero)
    record.put("nc3.duality", collapse.duality(heads, M), zero)


def _one_class(record: Record, classes: int) -> None:
    record.put("classes_left_out", classes - 1)
    names = ("class.entropy_means", "class.entropy_weights", *CLASS_LEVEL, "nc1.pinv", "nc1.cdnv", "nc2.equinorm_means")
    more = ("nc2.equinorm_weights", "nc2.equiangular_means", "nc2.equiangular_weights", "nc2.etf", "nc3.duality")
    references = ("reference.mir", "reference.hdr", "reference.entropy")
    record.miss((*names, *more, *references), "only one class has samples")


def _directed(rows: Tensor, smallest: float = 0.0) -> Tensor:
    return rows.abs().amax(dim=1) > smallest
