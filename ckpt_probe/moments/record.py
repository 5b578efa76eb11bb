"""From class moments to the record: every metric at sample, class and within-class level, and why one is missing."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from ckpt_probe.metrics import collapse, pairs
from ckpt_probe.metrics.entropy import renyi_name
from ckpt_probe.metrics.rounding import row_lengths
from ckpt_probe.metrics.theory import reference_values, simplex_exists, uniformity_reference, without_simplex
from ckpt_probe.moments.geometry import COINCIDE, Geometry, spreads
from ckpt_probe.moments.grouping import Rows
from ckpt_probe.moments.levels.entropies import Level, Options, Within, class_level, sample_level, within_level
from ckpt_probe.moments.portrait import Portrait, portrait_of
from ckpt_probe.moments.scatter import Scatter
from ckpt_probe.moments.unit_moments import UnitMoments

Value = float | int | str | None

UNRESOLVED = "sampling does not resolve the eigenvalues that decide this order"
NO_WEIGHTS = "no classifier weights"
ZERO_ENTROPY = "the entropy in its denominator is zero up to rounding"
ZERO_WEIGHTS = "a row of classifier weights has zero length"
ONE_CLASS = "only one class has samples"
FEW_CLASSES = "fewer than two classes have as many samples as a class needs"
RATIOS = ("mutual_information", "mir", "hdr")
ENTROPIES = {
    "sample": ("entropy_features", "entropy_weights", "entropy_joint"),
    "class": ("entropy_means", "entropy_weights"),
}
WITHIN = ("entropy_mean", "entropy_max")
COLLAPSE = {
    "nc1": ("nc1.pinv", "nc1.cdnv", "separation"),
    "nc2": ("nc2.equinorm_means", "nc2.equiangular_means", "nc2.etf", "gnc2.uniformity", "gnc2.spread"),
    "nc2 of weights": ("nc2.equinorm_weights", "nc2.equiangular_weights"),
    "nc3": ("nc3.duality", "nc3.uniformity"),
}
REFERENCES = ("reference.mir", "reference.hdr", "reference.entropy")


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
class DetailedRecord:
    """A record and its details.

    Attributes:
        record: Values by name.
        spectra: Eigenvalues of each entropy by name.
        per_class: One record for each class that has a sample.
        portrait: Data of the drawings on the report page, or None.
    """

    record: dict[str, Value]
    spectra: dict[str, Tensor]
    per_class: list[dict[str, Value]]
    portrait: Portrait | None = None


def read_out(
    classes: int,
    scatter: Scatter,
    unit: UnitMoments | None,
    weights: Tensor | None,
    *,
    label_rows: Tensor | None = None,
    rows: Rows | None = None,
    options: Options | None = None,
    details: bool = False,
) -> DetailedRecord:
    """Every metric of `Moments.compute`; weights (C, D) float64 or None. `details` fills all of the reading.

    label_rows: (C, E), what stands for the labels at sample level; class means are then compared with nothing.
    """
    options = options or Options()
    record = Record()
    present = (scatter.counts >= options.min_samples).nonzero().squeeze(1)
    record.put("samples", int(scatter.counts.sum()))
    record.put("features", scatter.means.shape[1])
    record.put("classes", classes)
    record.put("classes_present", len(scatter.present))
    below, single = len(scatter.present) - len(present), int((scatter.counts[present] == 1).sum())
    record.values |= {"classes_below_min_samples": below} if below else {}
    record.values |= {"classes_of_one_sample": single} if single else {}
    levels, within, sides = {}, None, {}
    if unit is not None and "sample" in options.families:
        levels["sample"] = sample_level(unit, weights if label_rows is None else label_rows, rows, options)
        _put_sample(record, levels["sample"], options)
    if unit is not None and "within" in options.families:
        within = within_level(unit, rows, options, keep=details)
        within = within.of(present) if within is not None and options.min_samples > 1 else within
        _put_within(record, within, options)
    left_out = classes - len(present)
    if len(present) < 2:
        names = _names_of_classes(options, compared=label_rows is None)
        record.miss(names, ONE_CLASS if options.min_samples == 1 else FEW_CLASSES)
    else:
        geometry = Geometry.of(scatter, present, weights, compared=label_rows is None)
        sides = {"means": geometry.M} | ({} if geometry.heads is None else {"weights": geometry.heads})
        if "class" in options.families:
            levels["class"] = class_level(geometry.M, geometry.heads, options)
            left_out += levels["class"].left_out
            _put_level(record, "class", levels["class"], options)
            shape = geometry.M.shape
            reason = "with two classes the entropies are zero" if simplex_exists(*shape) else without_simplex(*shape)
            for name, value in reference_values(*shape).items():
                record.put(name, value, reason)
        _put_collapse(record, geometry, options.families, rows)
    record.put("classes_left_out", left_out)
    if not details:
        return DetailedRecord(record.finished(), {}, [])
    found = {f"{level}.{name}": values for level, held in levels.items() for name, values in held.eigenvalues.items()}
    found |= {f"within.{label}": values for label, values in (within.eigenvalues.items() if within else ())}
    per_class = _per_class(scatter, present, within, options)
    return DetailedRecord(record.finished(), found, per_class, portrait_of(present.tolist(), sides, found))


def _put_sample(record: Record, level: Level, options: Options) -> None:
    record.put("samples_left_out", level.left_out)
    _put_level(record, "sample", level, options)
    most = min(int(record.values["samples"] or 0) - level.left_out, int(record.values["features"] or 0))
    entropy = level.entropies[1.0][0]
    record.put("sample.effective_rank", entropy.exp())
    one = "one sample or one feature has one direction"
    record.put("sample.entropy_normalized", entropy / math.log(most) if most > 1 else None, one)
    record.put("route", level.route.name if level.route else None, _reason(level))
    record.put("route_reason", _told(level) if level.route else None, _reason(level))


def _put_level(record: Record, name: str, level: Level, options: Options) -> None:
    for order in options.all_orders:
        prefix = name if order == 1 else f"{renyi_name(order)}.{name}"
        _put_order(record, prefix, name, level, order)
        if level.estimate is not None:
            joint = level.estimate.stderrs.get(order)
            record.put(f"{prefix}.entropy_joint_stderr", joint, UNRESOLVED)
        if level.estimate is not None or prefix == "sample":
            record.put(f"{prefix}.mir_stderr", _mir_stderr(level, order), _why_no_ratio(level, order))
    if level.estimate is not None:
        record.put(f"{name}.probes", level.estimate.probes)
        record.put(f"{name}.seed", level.estimate.seed)


def _put_order(record: Record, prefix: str, name: str, level: Level, order: float) -> None:
    reason = _reason(level, order)
    for entropy, value in zip(ENTROPIES[name], level.entropies[order], strict=False):
        record.put(f"{prefix}.{entropy}", value, reason)
    information = level.information(order)
    if information is None:
        record.miss((f"{prefix}.{ratio}" for ratio in RATIOS), reason)
        return
    record.put(f"{prefix}.mutual_information", information.mutual_information)
    record.put(f"{prefix}.mir", information.mir, ZERO_ENTROPY)
    record.put(f"{prefix}.hdr", information.hdr, ZERO_ENTROPY)


def _mir_stderr(level: Level, order: float) -> float | None:
    information = level.information(order)
    if information is None or information.mir is None:
        return None
    smaller = min(float(information.first), float(information.second))
    return level.estimate.stderrs[order] / smaller if level.estimate else 0.0


def _why_no_ratio(level: Level, order: float) -> str:
    return ZERO_ENTROPY if level.information(order) is not None else _reason(level, order)


def _reason(level: Level, order: float = 1.0) -> str:
    if level.estimate is not None and order not in level.estimate.entropies:
        return UNRESOLVED
    return level.route.reason if level.route else NO_WEIGHTS


def _told(level: Level) -> str:
    assert level.route is not None
    if level.estimate is None or level.estimate.reached:
        return level.route.reason
    return f"{level.route.reason}; sampling stopped before the tolerance was reached"


def _put_within(record: Record, within: Within | None, options: Options) -> None:
    for order in options.all_orders:
        prefix = "within" if order == 1 else f"{renyi_name(order)}.within"
        if within is not None and not len(within.labels):
            record.miss((f"{prefix}.{name}" for name in WITHIN), FEW_CLASSES)
            continue
        if within is None:
            record.miss((f"{prefix}.{name}" for name in WITHIN), "second moments per class exceed the memory budget")
            continue
        record.put(f"{prefix}.entropy_mean", within.entropies[order].mean())
        record.put(f"{prefix}.entropy_max", within.entropies[order].max())


def _put_collapse(record: Record, classes: Geometry, families: frozenset[str], rows: Rows | None) -> None:
    unit = pairs.unit_or_zero(classes.M)
    distances, angles, evenness = classes.distances(), pairs.Equiangular(unit), classes.evenness(unit)
    wanted = [*([distances] if "nc1" in families else []), *([angles, evenness] if "nc2" in families else [])]
    if wanted:
        # Each pair of classes is visited once for all that is read from it.
        pairs.visit(unit, wanted)
    if "nc1" in families:
        _put_nc1(record, classes, distances, rows)
    if "nc2" in families:
        _put_nc2(record, classes, angles, evenness)
    if "nc3" in families:
        _put_nc3(record, classes)


def _put_nc1(record: Record, classes: Geometry, distances: pairs.Cdnv, rows: Rows | None) -> None:
    nc1, reason = classes.nc1(rows)
    record.put("nc1.pinv", nc1, reason)
    record.put("nc1.cdnv", distances.value, COINCIDE)
    reason = reason or "samples do not differ within their classes"
    record.put("separation", collapse.separation(nc1, len(classes.M)), reason)


def _put_nc2(record: Record, classes: Geometry, angles: pairs.Equiangular, evenness: pairs.Uniformity) -> None:
    record.put("nc2.equinorm_means", collapse.equinorm(classes.M), COINCIDE)
    record.put("nc2.equiangular_means", angles.value, COINCIDE)
    record.put("nc2.etf", collapse.etf_distance(classes.M), COINCIDE)
    same = "two class means have the same direction"
    record.put("gnc2.uniformity", evenness.mean, same)
    record.put("gnc2.spread", evenness.spread, same)
    reference = uniformity_reference(*classes.M.shape)
    record.put("reference.uniformity", reference, "more than two classes in one dimension")
    if classes.heads is None:
        record.miss(COLLAPSE["nc2 of weights"] if classes.compared else (), NO_WEIGHTS)
        return
    record.put("nc2.equinorm_weights", collapse.equinorm(classes.heads), ZERO_WEIGHTS)
    record.put("nc2.equiangular_weights", collapse.equiangular(classes.heads), ZERO_WEIGHTS)


def _put_nc3(record: Record, classes: Geometry) -> None:
    if classes.heads is None:
        record.miss(COLLAPSE["nc3"], NO_WEIGHTS)
        return
    reason = ZERO_WEIGHTS if bool(classes.M.any()) else COINCIDE
    record.put("nc3.duality", collapse.duality(classes.heads, classes.M), reason)
    uniformity = collapse.duality_uniformity(classes.heads, classes.M)
    record.put("nc3.uniformity", uniformity, "a class mean or a row of classifier weights has zero length")


def _names_of_classes(options: Options, *, compared: bool) -> list[str]:
    prefixes = ["class" if order == 1 else f"{renyi_name(order)}.class" for order in options.all_orders]
    level = [f"{prefix}.{name}" for prefix in prefixes for name in (*ENTROPIES["class"], *RATIOS)]
    found = [*level, *REFERENCES] if "class" in options.families else []
    asked = {group: names for group, names in COLLAPSE.items() if compared or group != "nc2 of weights"}
    found += [name for group, names in asked.items() if group.split()[0] in options.families for name in names]
    return [*found, *(["reference.uniformity"] if "nc2" in options.families else [])]


def _per_class(scatter: Scatter, present: Tensor, within: Within | None, options: Options) -> list[dict[str, Value]]:
    entropies = {} if within is None else dict(zip(within.labels.tolist(), within.entropies[1.0].tolist(), strict=True))
    lengths = row_lengths(scatter.means[present]) * scatter.unit
    variances = spreads(scatter)[present] * scatter.unit * scatter.unit
    columns = zip(present.tolist(), scatter.counts[present].tolist(), lengths.tolist(), variances.tolist(), strict=True)
    rows: list[dict[str, Value]] = [
        {"class": label, "samples": count, "mean_norm": length, "variance": variance}
        for label, count, length, variance in columns
    ]
    if "within" in options.families:
        rows = [{**row, "within.entropy": entropies.get(int(row["class"] or 0))} for row in rows]
    return rows
