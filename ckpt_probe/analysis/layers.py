"""Records of the layers of a dump, and the line through their separation against depth."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ckpt_probe.analysis.entries import Record, in_order, join_reasons, settled
from ckpt_probe.analysis.nearest import NearestCounts, Predictions, count_nearest
from ckpt_probe.analysis.record import FEW_SAMPLES, compute_from_moments, distinct_means
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.dumps import PENULTIMATE, LayerView, Pass
from ckpt_probe.errors import DataError
from ckpt_probe.metrics.regression import line_through
from ckpt_probe.moments import DetailedRecord, Moments

OF_LAYERS = frozenset({"sample", "within", "nc1", "nc2", "nc4"})
"""Families that apply to any layer; the others compare means with classifier rows of the same width."""

SLOPE, FIT = "separation.slope", "separation.r2"
NEAREST = "nearest_mean_accuracy"
NEEDS_FEATURES = "needs the layer's features, not only moments (extract again with --layer-store both --overwrite)"
FEW_LAYERS = "separation is known of fewer than three layers"


def compute_layer(layer: LayerView, weights: np.ndarray | None, settings: Settings, rows: int) -> DetailedRecord:
    """Compute the record of one layer from its features, or from its moments.

    Args:
        layer: The layer of a split.
        weights: Classifier weights (C, D) for a layer of any width; at sample level their rows stand for the labels.
        settings: Options of the analysis.
        rows: Number of rows that are read at a time.

    Returns:
        The record, with `layer` and `depth`.

    Raises:
        DataError: As `analyze_features`.
    """
    families = settings.families & OF_LAYERS
    narrowed = replace(settings, only=tuple(families) or ("quality",), centred=False)
    blocks = None if layer.features is None else Pass(layer, rows, scores=False)
    moments = _accumulate(layer, blocks, None if weights is None else len(weights), narrowed)
    detailed = compute_from_moments(moments, None, None, blocks, narrowed, label_rows=weights)
    record: Record = dict(detailed.record)
    counts = NearestCounts()
    if "nc4" in families:
        reason = NEEDS_FEATURES
        if blocks is not None:
            means, reason = distinct_means(moments, settings)
            if reason is None:
                counts = count_nearest(blocks, means, Predictions(None), confusion=settings.per_class)
        record[NEAREST] = counts.accuracy
        if counts.accuracy is None:
            record["missing"] = join_reasons(record["missing"], f"{NEAREST}: {reason or FEW_SAMPLES}")
    position = {"layer": layer.name, "depth": layer.depth}
    per_class = [{**position, **row, **counts.columns_of_class(row["class"])} for row in detailed.per_class]
    return replace(detailed, record=in_order(settled({**position, **record})), per_class=per_class, portrait=None)


def with_fitted_line(
    layers: Sequence[DetailedRecord], last: DetailedRecord, settings: Settings
) -> list[DetailedRecord]:
    """Append the record of the penultimate layer to those of the other layers, and fit the line of separation to it.

    `separation.slope` and `separation.r2` are those of the least-squares line through separation against depth.
    """
    position = {"layer": PENULTIMATE, "depth": 1.0}
    record: Record = {**last.record, **position}
    if "nc1" in settings.families:
        records: list[Record] = [*(dict(layer.record) for layer in layers), record]
        fit = line_through([(each["depth"], each["separation"]) for each in records if each["separation"] is not None])
        record |= {SLOPE: None if fit is None else fit.slope, FIT: None if fit is None else fit.r2}
        if fit is None:
            record["missing"] = join_reasons(record["missing"], f"{SLOPE}, {FIT}: {FEW_LAYERS}")
    per_class = [{**position, **row} for row in last.per_class]
    return [*layers, replace(last, record=in_order(record), per_class=per_class)]


def _accumulate(layer: LayerView, blocks: Pass | None, classes: int | None, settings: Settings) -> Moments:
    moments = settings.moments(classes)
    if blocks is not None:
        for features, labels, _ in blocks():
            moments.update(features, labels)
        return moments
    stored = layer.read_moments()
    if stored is None:
        raise DataError(f"layer {layer.name}: neither features nor moments are stored; extract again")
    moments.load_state_dict(stored[0])
    return moments
