"""Blocks of features, or moments of them → one record: the numbers of one checkpoint and one split."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.analysis.entries import COUNTS, ENTRIES, EXTRA, POSITION, REFERENCES
from ckpt_probe.analysis.nearest import NearestMeans
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.errors import DataError
from ckpt_probe.metrics.arrays import as_labels
from ckpt_probe.metrics.gram import Array
from ckpt_probe.moments import Moments
from ckpt_probe.moments.quality import Head, Quality, double
from ckpt_probe.moments.record import Reading
from ckpt_probe.plugins import registered

Record = dict[str, Any]
Blocks = Callable[[], Iterable[tuple[Array, Array, Array | None]]]
"""Gives a fresh pass over (features (n, D), labels (n,), logits (n, C) or None), in the same order each time."""

ENTRY_POINTS = "ckpt_probe.metrics"
ROWS_AT_ONCE = 8192
CENTRED = {"centred.mir": "sample.mir", "centred.hdr": "sample.hdr"}
NEEDS_FEATURES = "needs the features, but only moments were stored (extract with --store both)"


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
    options: those of `Settings`, such as centred=True, orders=(0.5, 2), tolerance=1e-4, memory=2**30. Raises DataError
    for NaN or infinity, labels outside 0 … C−1, and shapes that do not fit; without weights and logits nothing says C,
    and labels are refused where the class means up to them would take more than `memory` bytes.
    """
    if logits is not None and len(logits) != len(features):
        raise DataError(f"{len(features)} rows of features but {len(logits)} rows of logits")

    def blocks() -> Iterable[tuple[Array, Array, Array | None]]:
        for start in range(0, len(features), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            yield features[part], labels[part], None if logits is None else logits[part]

    if len(features) != len(labels):
        raise DataError(f"{len(features)} rows of features but {len(labels)} labels")
    return read_blocks(blocks, weights, bias, Settings(**options)).record


def read_blocks(
    blocks: Blocks, weights: Array | None, bias: Array | None = None, settings: Settings | None = None
) -> Reading:
    """The reading of a stream of blocks: one pass for the moments, one for what needs the class means.

    Never more than one block is held, but where N × N is the smaller matrix or rows are sampled. Values and errors as
    `analyze_features`.
    """
    settings = settings or Settings()
    head = Head.of(weights, bias)
    moments = Moments(None if head is None else head.weights.shape[0], memory=settings.memory)
    quality = Quality()
    for features, labels, logits in blocks():
        _require_labels(features, labels, logits, moments)
        moments.update(features, labels)
        quality.update(scores(features, logits, head), labels)
    return read_moments(moments, quality, weights, bias, blocks=blocks, settings=settings)


def read_moments(
    moments: Moments,
    quality: Quality,
    weights: Array | None,
    bias: Array | None = None,
    *,
    blocks: Blocks | None = None,
    settings: Settings | None = None,
) -> Reading:
    """The reading of moments; what needs the features themselves is None, with that reason, where `blocks` is None."""
    settings = settings or Settings()
    head = Head.of(weights, bias)
    try:
        reading = moments.read(
            weights,
            bias,
            rows=None if blocks is None else lambda: ((features, labels) for features, labels, _ in blocks()),
            orders=settings.orders,
            sampling=settings.sampling,
            details=settings.per_class or settings.spectra,
        )
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise DataError("no eigenvalues: the features overflow float64, or stored moments are damaged") from error
    record: Record = dict(reading.record)
    reasons = [record.pop("missing")]
    record |= {"accuracy": quality.accuracy, "loss": quality.loss}
    # Without scores and without rows a class there is nothing to compare with the nearest mean.
    compares = quality.samples > 0 or settings.per_class
    nearest = _nearest(blocks, moments, head, settings) if blocks is not None and compares else None
    record["nc4.disagreement"] = nearest.disagreement if nearest else None
    if settings.centred:
        shifted = _centred(blocks, moments, weights, settings) if blocks is not None else dict.fromkeys(CENTRED)
        reasons.append(shifted.pop("missing", None))
        record |= shifted
    reasons += _absent(record, blocks is not None, head)
    for name, function in registered(ENTRY_POINTS).items():
        record |= {f"{name}.{key}": value for key, value in function(moments, weights, bias).items()}
    record["missing"] = "; ".join(reason for reason in reasons if reason) or None
    per_class = [{**row, **(nearest.of_class(row["class"]) if nearest else {})} for row in reading.per_class]
    record = in_order(settled(record, scored=quality.samples > 0))
    return replace(reading, record=record, per_class=[settled(row) for row in per_class])


def scores(features: Array, logits: Array | None, head: Head | None) -> Tensor | None:
    """Stored logits, else those of the head, float64; None where there are neither."""
    if logits is not None:
        return double(logits)
    return None if head is None else head.logits(features)


def empty_record() -> Record:
    """Every name that the record of a split always has, each None: for samples of which nothing can be said."""
    metrics = [entry.name for entry in ENTRIES if entry.name not in CENTRED]
    return dict.fromkeys([*COUNTS, *metrics, *REFERENCES, *EXTRA])


def settled(record: Record, *, scored: bool = False) -> Record:
    """A record without infinities; `missing` says so. scored: there were logits, so that no loss is no finite one."""
    wild = [name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
    reasons = [record.get("missing"), f"{', '.join(wild)}: not finite" if wild else None]
    if scored and record["loss"] is None:
        reasons.append("loss: not finite, because logits are infinite or NaN")
    if not any(reasons[1:]):
        return record
    return {**record, **dict.fromkeys(wild), "missing": "; ".join(reason for reason in reasons if reason)}


def in_order(record: Mapping[str, Any]) -> Record:
    """A record with its names in the order in which they are documented, others at the end."""
    known = [*POSITION, *COUNTS, *(entry.name for entry in ENTRIES), *REFERENCES]
    ordered = {name: record[name] for name in known if name in record}
    others = {name: value for name, value in record.items() if name not in ordered and name not in EXTRA}
    return {**ordered, **others, **{name: record.get(name) for name in EXTRA}}


def _require_labels(features: Array, labels: Array, logits: Array | None, moments: Moments) -> None:
    numbers = as_labels(labels)
    if features.ndim != 2 or numbers.ndim != 1 or not len(numbers) or numbers.is_floating_point():
        # The moments say what is wrong with these.
        return
    numbers = numbers.to(torch.int64)
    row = int(numbers.argmax())
    highest, where = int(numbers[row]), f"labels: row {moments.samples + row} is"
    if logits is not None:
        if logits.ndim != 2 or highest >= logits.shape[1]:
            raise DataError(f"{where} {highest}, but logits have shape {tuple(logits.shape)}")
        return
    needed = 8 * (highest + 1) * features.shape[1]
    if moments.classes is None and needed > moments.memory:
        raise DataError(
            f"{where} {highest}: the means of so many classes would take {needed:,} bytes, more than the memory budget "
            f"of {moments.memory:,}; number the classes 0 … C−1, or raise the budget"
        )


def _nearest(blocks: Blocks, moments: Moments, head: Head | None, settings: Settings) -> NearestMeans:
    nearest = NearestMeans(double(moments.class_means), confusion=settings.per_class)
    for features, labels, logits in blocks():
        nearest.update(double(features, "features"), as_labels(labels), scores(features, logits, head))
    if nearest.samples != moments.samples:
        raise DataError(f"the data changed between two passes: {moments.samples} rows, then {nearest.samples}")
    return nearest


def _centred(blocks: Blocks, moments: Moments, weights: Array | None, settings: Settings) -> Record:
    mean = moments.mean.cpu()

    def centred() -> Iterable[tuple[Tensor, Tensor]]:
        for features, labels, _ in blocks():
            yield double(features, "features") - mean, as_labels(labels).cpu()

    shifted = Moments(moments.classes, memory=settings.memory)
    for features, labels in centred():
        shifted.update(features, labels)
    record = shifted.compute(weights, rows=centred, sampling=settings.sampling)
    values = {name: record[source] for name, source in CENTRED.items()}
    missing = [name for name, value in values.items() if value is None]
    return {**values, "missing": f"{', '.join(missing)}: as for the features themselves" if missing else None}


def _absent(record: Record, features: bool, head: Head | None) -> list[str]:
    reasons = []
    if not features:
        names = [name for name in ("nc4.disagreement", *CENTRED) if name in record]
        reasons.append(f"{', '.join(names)}: {NEEDS_FEATURES}")
    if head is None and record["accuracy"] is None:
        names = "accuracy, loss, nc4.disagreement" if features else "accuracy, loss"
        reasons.append(f"{names}: neither logits nor classifier weights")
    return reasons
