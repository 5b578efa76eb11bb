"""Readings of the layers of a dump: the numbers that any layer has, and how separation falls along them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.analysis.readings.nearest import NearestMeans
from ckpt_probe.analysis.readings.records import FEW_SAMPLES, Record, in_order, reading_of, settled
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.dumps import PENULTIMATE, LayerView
from ckpt_probe.errors import DataError
from ckpt_probe.metrics.regression import line_through
from ckpt_probe.moments import Moments
from ckpt_probe.moments.geometry import COINCIDE
from ckpt_probe.moments.quality import double
from ckpt_probe.moments.record import Reading

OF_LAYERS = frozenset({"sample", "within", "nc1", "nc2", "nc4"})
"""Families of which a layer has numbers; those that compare means with classifier rows need rows of one width."""

SLOPE, FIT = "separation.slope", "separation.r2"
NEAREST = "nearest_mean_accuracy"
NEEDS_FEATURES = "needs the layer's features, not only moments (extract again with --layer-store both --overwrite)"
FEW_LAYERS = "separation is known of fewer than three layers"


def layer_reading(layer: LayerView, weights: np.ndarray | None, settings: Settings, rows: int) -> Reading:
    """The reading of one layer, from its features, `rows` at a time, or from its moments.

    weights: the classifier's (C, D), whatever the layer's width: at sample level its rows stand for the labels. The
    record has `layer` and `depth`. Raises DataError as `read_blocks`.
    """
    families = settings.families & OF_LAYERS
    asked = replace(settings, only=None, centred=False)
    asked = replace(asked, only=tuple(families)) if families else replace(asked, only=("quality",))
    moments = _moments(layer, None if weights is None else len(weights), asked, rows)

    def blocks() -> Iterable[tuple[np.ndarray, np.ndarray, None]]:
        for features, labels, _ in layer.blocks(rows):
            yield features, labels, None

    again = None if layer.features is None else blocks
    reading = reading_of(moments, None, None, again, asked, label_rows=weights)
    record: Record = dict(reading.record)
    reasons, nearest = [record.pop("missing")], None
    if "nc4" in families:
        nearest = None if again is None else _nearest(layer, moments, settings, rows)
        record[NEAREST] = None if nearest is None else nearest.accuracy
        if record[NEAREST] is None:
            reason = COINCIDE if moments.coincide(settings.min_samples) else FEW_SAMPLES
            reasons.append(f"{NEAREST}: {reason if again else NEEDS_FEATURES}")
    record["missing"] = "; ".join(reason for reason in reasons if reason) or None
    place = {"layer": layer.name, "depth": layer.depth}
    per_class = [{**place, **row, **(nearest.of_class(row["class"]) if nearest else {})} for row in reading.per_class]
    return replace(reading, record=in_order(settled({**place, **record})), per_class=per_class, portrait=None)


def with_depths(layers: Sequence[Reading], last: Reading, settings: Settings) -> list[Reading]:
    """The readings of the layers and, as the last of them, that of the classifier's input, which gets the fitted line.

    `separation.slope` and `.r2` are those of the straight line through separation against depth, least squares.
    """
    place = {"layer": PENULTIMATE, "depth": 1.0}
    record: Record = {**last.record, **place}
    if "nc1" in settings.families:
        known: list[Record] = [*(dict(layer.record) for layer in layers), record]
        fit = line_through([(one["depth"], one["separation"]) for one in known if one["separation"] is not None])
        record |= {SLOPE: None if fit is None else fit.slope, FIT: None if fit is None else fit.r2}
        if fit is None:
            reasons = [record["missing"], f"{SLOPE}, {FIT}: {FEW_LAYERS}"]
            record["missing"] = "; ".join(reason for reason in reasons if reason)
    per_class = [{**place, **row} for row in last.per_class]
    return [*layers, replace(last, record=in_order(record), per_class=per_class)]


def _moments(layer: LayerView, classes: int | None, settings: Settings, rows: int) -> Moments:
    moments = settings.moments(classes)
    if layer.features is not None:
        for features, labels, _ in layer.blocks(rows):
            moments.update(features, labels)
        return moments
    stored = layer.read_moments()
    if stored is None:
        raise DataError(f"layer {layer.name}: neither features nor moments are stored; extract again")
    moments.load(stored[0])
    return moments


def _nearest(layer: LayerView, moments: Moments, settings: Settings, rows: int) -> NearestMeans | None:
    means: Tensor = double(moments.means_of_classes(settings.min_samples))
    if bool(means[:, 0].isnan().all()) or moments.coincide(settings.min_samples):
        return None
    nearest = NearestMeans(means, confusion=settings.per_class)
    for features, labels, _ in layer.blocks(rows):
        nearest.update(torch.from_numpy(features), torch.from_numpy(labels), None)
    return nearest
