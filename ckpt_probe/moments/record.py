"""From class moments to the record: every metric at sample, class and within-class level, and why one is missing."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ckpt_probe.metrics import collapse
from ckpt_probe.metrics.theory import reference_values
from ckpt_probe.moments.entropies import Level, Options, Within, class_level, sample_level, within_level
from ckpt_probe.moments.grouping import Rows
from ckpt_probe.moments.scatter import Scatter
from ckpt_probe.moments.unit_moments import UnitMoments

Value = float | int | str | None

NO_WEIGHTS = "no classifier weights"
ZERO_ENTROPY = "the entropy in its denominator is zero"
ONE_CLASS = "only one class has samples"
RATIOS = ("mutual_information", "mir", "hdr")
ENTROPIES = {
    "sample": ("entropy_features", "entropy_weights", "entropy_joint"),
    "class": ("entropy_means", "entropy_weights"),
}
WITHIN = ("entropy_mean", "entropy_max")
COLLAPSE_OF_MEANS = ("nc1.pinv", "nc1.cdnv", "nc2.equinorm_means", "nc2.equiangular_means", "nc2.etf")
COLLAPSE_OF_WEIGHTS = ("nc2.equinorm_weights", "nc2.equiangular_weights", "nc3.duality")


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


@dataclass(frozen=True)
class Reading:
    """A record, the eigenvalues behind it by name, and one record for each class that has a sample."""

    record: dict[str, Value]
    spectra: dict[str, Tensor]
    per_class: list[dict[str, Value]]


def read_out(
    classes: int,
    scatter: Scatter,
    unit: UnitMoments,
    weights: Tensor | None,
    *,
    rows: Rows | None = None,
    options: Options | None = None,
    details: bool = False,
) -> Reading:
    """Every metric of `Moments.compute`; weights (C, D) float64 or None. `details` fills spectra and per_class."""
    options = options or Options()
    record = Record()
    present = scatter.present
    means, squares = scatter.means[present], scatter.squares[present] / scatter.counts[present]
    heads = None if weights is None else weights[present]
    record.put("samples", int(scatter.counts.sum()))
    record.put("features", means.shape[1])
    record.put("classes", classes)
    levels = {"sample": sample_level(unit, weights, rows, options)}
    record.put("samples_left_out", levels["sample"].left_out)
    _put_level(record, "sample", levels["sample"], options)
    within = within_level(unit, rows, options, keep=details)
    _put_within(record, within, options)
    if len(means) < 2:
        record.put("classes_left_out", classes - 1)
        record.miss(_class_names(options), ONE_CLASS)
    else:
        M = means - means.mean(dim=0)
        rounding = 1e-12 * float(means.abs().max())
        levels["class"] = class_level(M, heads, rounding, options)
        record.put("classes_left_out", classes - len(means) + levels["class"].left_out)
        _put_level(record, "class", levels["class"], options)
        _put_collapse(record, scatter, M, heads)
        for name, value in reference_values(len(means)).items():
            record.put(name, value, "with two classes the entropies are zero")
    if not details:
        return Reading(record.finished(), {}, [])
    found = {f"{level}.{name}": values for level, held in levels.items() for name, values in held.eigenvalues.items()}
    found |= {f"within.{label}": values for label, values in (within.eigenvalues.items() if within else ())}
    return Reading(record.finished(), found, _per_class(present, scatter, means, squares, within))


def _put_level(record: Record, name: str, level: Level, options: Options) -> None:
    for order in options.all_orders:
        prefix = name if order == 1 else f"renyi_{order:g}.{name}"
        _put_order(record, prefix, name, level, order)
    if name == "sample":
        record.put("sample.effective_rank", level.entropies[1.0][0].exp())
        record.put("route", level.route.name if level.route else None, _reason(level))
        record.put("route_reason", _told(level) if level.route else None, _reason(level))
    if level.estimate is not None:
        record.put(f"{name}.entropy_joint_stderr", level.estimate.stderrs[1.0])
        record.put(f"{name}.probes", level.estimate.probes)
        record.put(f"{name}.seed", level.estimate.seed)
    stderr = _mir_stderr(level)
    if name == "sample" or level.estimate is not None:
        record.put(f"{name}.mir_stderr", stderr, _why_no_ratio(level))


def _put_order(record: Record, prefix: str, name: str, level: Level, order: float) -> None:
    reason = _reason(level)
    for entropy, value in zip(ENTROPIES[name], level.entropies[order], strict=False):
        record.put(f"{prefix}.{entropy}", value, reason)
    information = level.information(order)
    if information is None:
        record.miss((f"{prefix}.{ratio}" for ratio in RATIOS), reason)
        return
    record.put(f"{prefix}.mutual_information", information.mutual_information)
    record.put(f"{prefix}.mir", information.mir, ZERO_ENTROPY)
    record.put(f"{prefix}.hdr", information.hdr, ZERO_ENTROPY)


def _mir_stderr(level: Level) -> float | None:
    information = level.information(1.0)
    if information is None or information.mir is None:
        return None
    smaller = min(float(information.first), float(information.second))
    return level.estimate.stderrs[1.0] / smaller if level.estimate else 0.0


def _why_no_ratio(level: Level) -> str:
    return ZERO_ENTROPY if level.information(1.0) is not None else _reason(level)


def _reason(level: Level) -> str:
    return level.route.reason if level.route else NO_WEIGHTS


def _told(level: Level) -> str:
    assert level.route is not None
    if level.estimate is None or level.estimate.reached:
        return level.route.reason
    return f"{level.route.reason}; sampling stopped before the tolerance was reached"


def _put_within(record: Record, within: Within | None, options: Options) -> None:
    for order in options.all_orders:
        prefix = "within" if order == 1 else f"renyi_{order:g}.within"
        if within is None:
            record.miss((f"{prefix}.{name}" for name in WITHIN), "second moments per class exceed the memory budget")
            continue
        record.put(f"{prefix}.entropy_mean", within.entropies[order].mean())
        record.put(f"{prefix}.entropy_max", within.entropies[order].max())


def _put_collapse(record: Record, scatter: Scatter, M: Tensor, heads: Tensor | None) -> None:
    present = scatter.present
    means, counts = scatter.means[present], scatter.counts[present]
    coincide = "class means coincide"
    within = scatter.covariance()
    record.put("nc1.pinv", collapse.nc1_pinv(within, M, magnitude=float(means.abs().max())), coincide)
    record.put("nc1.cdnv", collapse.cdnv(scatter.squares[present] / counts, means), coincide)
    record.put("nc2.equinorm_means", collapse.equinorm(M), coincide)
    record.put("nc2.equiangular_means", collapse.equiangular(M), coincide)
    record.put("nc2.etf", collapse.etf_distance(M), coincide)
    if heads is None:
        record.miss(COLLAPSE_OF_WEIGHTS, NO_WEIGHTS)
        return
    zero = "a row of classifier weights has zero length"
    record.put("nc2.equinorm_weights", collapse.equinorm(heads), zero)
    record.put("nc2.equiangular_weights", collapse.equiangular(heads), zero)
    record.put("nc3.duality", collapse.duality(heads, M), zero)


def _class_names(options: Options) -> list[str]:
    prefixes = ["class" if order == 1 else f"renyi_{order:g}.class" for order in options.all_orders]
    levels = [f"{prefix}.{name}" for prefix in prefixes for name in (*ENTROPIES["class"], *RATIOS)]
    return [*levels, *COLLAPSE_OF_MEANS, *COLLAPSE_OF_WEIGHTS, "reference.mir", "reference.hdr", "reference.entropy"]


def _per_class(
    present: Tensor, scatter: Scatter, means: Tensor, variances: Tensor, within: Within | None
) -> list[dict[str, Value]]:
    entropies = {} if within is None else dict(zip(within.labels.tolist(), within.entropies[1.0].tolist(), strict=True))
    lengths = torch.linalg.vector_norm(means, dim=1)
    columns = zip(present.tolist(), scatter.counts[present].tolist(), lengths.tolist(), variances.tolist(), strict=True)
    return [
        {"class": label, "samples": count, "mean_norm": length, "variance": v, "within.entropy": entropies.get(label)}
        for label, count, length, v in columns
    ]
