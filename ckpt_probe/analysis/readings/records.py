"""Blocks of features, or moments of them → one record: the numbers of one checkpoint and one split."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.analysis.entries import (
    COUNTS,
    COUNTS_IF_ANY,
    ENTRIES,
    EXTRA,
    LAYERS_ALONE,
    ON_REQUEST,
    POSITION,
    REFERENCES,
    WEIGHTS_ALONE,
)
from ckpt_probe.analysis.readings.nearest import NearestMeans, Predictions
from ckpt_probe.analysis.readings.passes import Blocks, SecondPass, first_pass, second_pass, without_scores
from ckpt_probe.analysis.settings import ENTRY_POINTS, Settings
from ckpt_probe.errors import DataError
from ckpt_probe.metrics.arrays import as_labels
from ckpt_probe.metrics.collapse import nc5
from ckpt_probe.metrics.gram import Array
from ckpt_probe.moments import Moments
from ckpt_probe.moments.accumulator import rows_at_once
from ckpt_probe.moments.families import FAMILIES
from ckpt_probe.moments.geometry import COINCIDE
from ckpt_probe.moments.quality import Head, Quality, double
from ckpt_probe.moments.record import Reading
from ckpt_probe.plugins import registered

Record = dict[str, Any]

ROWS_AT_ONCE = 8192
MANY_CLASSES = 1000
"""Classes of which a block of that size would have few rows each."""

CENTRED = {
    "centred.mir": "sample.mir",
    "centred.hdr": "sample.hdr",
    "centred.effective_rank": "sample.effective_rank",
}
NEAREST = ("nc4.disagreement", "nearest_mean_accuracy")
OUTSIDE = "nc5.cosine"
NO_OUTSIDE = "no data of other classes (--outside)"
FEW_SAMPLES = "no class has as many samples as a class needs"
NO_SCORES = "neither logits nor classifier weights"
NEEDS_FEATURES = "needs the features, but only moments were stored (extract again with --store both --overwrite)"


def analyze_features(
    features: Array,
    labels: Array,
    weights: Array | None = None,
    bias: Array | None = None,
    *,
    logits: Array | None = None,
    **options: Any,
) -> Record:
    """The record of features (N, D) and labels (N,), with classifier weights (C, D) and bias (C,) where given.

    numpy or torch; entropies in nats; None where a value is undefined or not finite, with the reasons in `missing`.
    options: those of `Settings`, such as only=("nc", "class"), orders=(0.5, 2), tolerance=1e-4. Raises DataError
    for NaN or infinity, labels outside 0 … C−1, and shapes that do not match; without weights and logits C is unknown,
    and labels so large that the class means would take more than `memory` bytes are refused.
    """
    if logits is not None and len(logits) != len(features):
        raise DataError(f"{len(features)} rows of features but {len(logits)} rows of logits")

    rows = ROWS_AT_ONCE
    if weights is not None and features.ndim == 2 and len(weights) > MANY_CLASSES:
        rows = max(rows, rows_at_once(features.shape[1], len(weights)))

    def blocks() -> Iterable[tuple[Array, Array, Array | None]]:
        for start in range(0, len(features), rows):
            part = slice(start, start + rows)
            yield features[part], labels[part], None if logits is None else logits[part]

    if len(features) != len(labels):
        raise DataError(f"{len(features)} rows of features but {len(labels)} labels")
    return read_blocks(blocks, weights, bias, Settings(**options)).record


def read_blocks(
    blocks: Blocks,
    weights: Array | None,
    bias: Array | None = None,
    settings: Settings | None = None,
    outside: Tensor | None = None,
) -> Reading:
    """The reading of a stream of blocks: one pass for the moments, one for what needs the class means.

    outside: the mean feature (D,) of data of other classes.
    Never more than one block is held, but where N × N is the smaller matrix or rows are sampled. Values and errors as
    `analyze_features`.
    """
    settings = settings or Settings()
    moments, quality, predictions = first_pass(blocks, weights, bias, settings)
    return read_moments(
        moments, quality, weights, bias, blocks=blocks, predictions=predictions, settings=settings, outside=outside
    )


def read_moments(
    moments: Moments,
    quality: Quality,
    weights: Array | None,
    bias: Array | None = None,
    *,
    blocks: Blocks | None = None,
    predictions: Predictions | None = None,
    settings: Settings | None = None,
    outside: Tensor | None = None,
    second: SecondPass | None = None,
) -> Reading:
    """The reading of moments; what needs the features themselves is None, with that reason, where `blocks` is None.

    predictions: those of the first pass over `blocks`. outside: the mean feature (D,) of data of other classes. second:
    what makes the second pass, where it is not to be made over `blocks` here.
    """
    settings = settings or Settings()
    families, head = settings.families, Head.of(weights, bias)
    reading = reading_of(moments, weights, bias, blocks, settings)
    record: Record = dict(reading.record)
    reasons = [record.pop("missing")]
    if "quality" in families:
        record |= {"accuracy": quality.accuracy, "loss": quality.loss}
        if head is None and quality.accuracy is None:
            reasons.append(f"accuracy, loss: {NO_SCORES}")
    nearest = None
    if "nc4" in families:
        predictions = predictions or Predictions(head, 0)
        if second is None and blocks is not None:
            second = partial(second_pass, blocks, predictions)
        nearest, found = _nearest(second, moments, settings, predicted=predictions.any)
        reasons.append(found.pop("missing"))
        record |= found
    if "centred" in families:
        shifted = _centred(blocks, moments, weights, settings)
        reasons.append(shifted.pop("missing"))
        record |= shifted
    if "nc5" in families:
        orthogonality = _outside(moments, outside, settings)
        reasons.append(orthogonality.pop("missing"))
        record |= orthogonality
    absent = [name for name in (*NEAREST, *CENTRED) if blocks is None and name in record]
    reasons.append(f"{', '.join(absent)}: {NEEDS_FEATURES}" if absent else None)
    for name, function in registered(ENTRY_POINTS).items() if settings.of_packages else ():
        if name in families:
            record |= {f"{name}.{key}": value for key, value in function(moments, weights, bias).items()}
    record["missing"] = "; ".join(reason for reason in reasons if reason) or None
    per_class = [{**row, **(nearest.of_class(row["class"]) if nearest else {})} for row in reading.per_class]
    record = in_order(settled(record, scored="quality" in families and quality.samples > 0))
    return replace(reading, record=record, per_class=[settled(row) for row in per_class])


def reading_of(
    moments: Moments,
    weights: Array | None,
    bias: Array | None,
    blocks: Blocks | None,
    settings: Settings,
    *,
    label_rows: Array | None = None,
) -> Reading:
    """What `Moments.read` reads, as the settings ask for it; label_rows: as there. Errors as `analyze_features`."""
    rows = None if blocks is None else without_scores(blocks)
    try:
        return moments.read(
            weights,
            bias,
            rows=None if rows is None else lambda: ((features, labels) for features, labels, _ in rows()),
            orders=settings.orders,
            sampling=settings.sampling,
            details=settings.per_class or settings.spectra or settings.portrait,
            label_rows=label_rows,
            only=[family.name for family in FAMILIES if family.name in settings.families],
            min_samples=settings.min_samples,
            exact_limit=settings.exact_limit,
        )
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise DataError("no eigenvalues: the features overflow float64, or stored moments are damaged") from error


def empty_record() -> Record:
    """Every name that the record of a split always has, each None: for samples of which nothing can be said."""
    apart = {*CENTRED, *ON_REQUEST, *WEIGHTS_ALONE, *LAYERS_ALONE}
    metrics = [entry.name for entry in ENTRIES if entry.name not in apart]
    return dict.fromkeys([*COUNTS, *metrics, *REFERENCES, *EXTRA])


def settled(record: Record, *, scored: bool = False) -> Record:
    """A record without infinities; `missing` says so. scored: there were logits, so that no loss is no finite one."""
    wild = [name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
    reasons = [record.get("missing"), f"{', '.join(wild)}: not finite" if wild else None]
    if scored and record.get("loss") is None:
        reasons.append("loss: not finite, because logits are infinite or NaN")
    if not any(reasons[1:]):
        return record
    return {**record, **dict.fromkeys(wild), "missing": "; ".join(reason for reason in reasons if reason)}


def in_order(record: Mapping[str, Any]) -> Record:
    """A record with its names in the order in which they are documented, others at the end."""
    known = [*POSITION, *COUNTS, *COUNTS_IF_ANY, *(entry.name for entry in ENTRIES), *REFERENCES]
    ordered = {name: record[name] for name in known if name in record}
    others = {name: value for name, value in record.items() if name not in ordered and name not in EXTRA}
    extra = {name: record.get(name) for name in EXTRA if name in record or name == "missing"}
    return {**ordered, **others, **extra}


def _nearest(
    second: SecondPass | None, moments: Moments, settings: Settings, *, predicted: bool
) -> tuple[NearestMeans | None, Record]:
    """The second pass over the rows, and its part of the record with the reasons for what is missing."""
    values: Record = dict.fromkeys(NEAREST)
    if second is None:
        return None, {**values, "missing": None}
    # Without predictions and without rows a class there is nothing to compare, unless it was asked for.
    if not (predicted or settings.per_class or settings.only is not None):
        reason = f"{NEAREST[0]}: {NO_SCORES}; {NEAREST[1]}: needs a second pass, which only nc4 asks for here"
        return None, {**values, "missing": reason}
    means = double(moments.means_of_classes(settings.min_samples))
    none_present = bool(means[:, 0].isnan().all())
    if none_present or moments.coincide(settings.min_samples):
        return None, {**values, "missing": f"{', '.join(NEAREST)}: {FEW_SAMPLES if none_present else COINCIDE}"}
    nearest = second(means, settings.per_class)
    if nearest.samples != moments.samples:
        raise DataError(f"the data changed between two passes: {moments.samples} rows, then {nearest.samples}")
    values = dict(zip(NEAREST, (nearest.disagreement, nearest.accuracy), strict=True))
    missing = [f"{NEAREST[0]}: {NO_SCORES}"] if nearest.disagreement is None else []
    missing += [f"{NEAREST[1]}: {FEW_SAMPLES}"] if nearest.accuracy is None else []
    return nearest, {**values, "missing": "; ".join(missing) or None}


def _outside(moments: Moments, outside: Tensor | None, settings: Settings) -> Record:
    """NC5 against the mean feature of data of other classes, and why it is missing."""
    means = double(moments.means_of_classes(settings.min_samples))
    means = means[~means[:, 0].isnan()]
    if outside is None or not len(means):
        return {OUTSIDE: None, "missing": f"{OUTSIDE}: {NO_OUTSIDE if outside is None else FEW_SAMPLES}"}
    try:
        return {OUTSIDE: nc5(means, outside, samples=moments.samples), "missing": None}
    except DataError as error:
        return {OUTSIDE: None, "missing": f"{OUTSIDE}: {str(error).removeprefix('nc5: ')}"}


def _centred(blocks: Blocks | None, moments: Moments, weights: Array | None, settings: Settings) -> Record:
    """Return the sample level of the features less their mean, and why a part of it is missing."""
    if blocks is None:
        return {**dict.fromkeys(CENTRED), "missing": None}
    rows = without_scores(blocks)

    def centred() -> Iterable[tuple[Tensor, Tensor]]:
        for features, labels, _ in rows():
            yield moments.centred(features), as_labels(labels)

    shifted = Moments(moments.classes, memory=settings.memory, only=["sample"], precision=settings.precision)
    for features, labels in centred():
        shifted.update(features, labels)
    try:
        record = shifted.compute(weights, rows=centred, sampling=settings.sampling)
    except DataError as error:
        return {**dict.fromkeys(CENTRED), "missing": f"{', '.join(CENTRED)}: less their mean, {error}"}
    values = {name: record[source] for name, source in CENTRED.items()}
    reasons = []
    for part in str(record["missing"] or "").split("; "):
        sources, _, reason = part.partition(": ")
        names = [name for name, source in CENTRED.items() if source in sources.split(", ")]
        reasons += [f"{', '.join(names)}: {reason}"] if names else []
    return {**values, "missing": "; ".join(reasons) or None}
