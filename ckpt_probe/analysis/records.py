"""Blocks of features → one record: the numbers of one checkpoint and one split."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ckpt_probe.analysis.entries import COUNTS, ENTRIES, EXTRA, POSITION, REFERENCES
from ckpt_probe.errors import DataError
from ckpt_probe.metrics import Moments, disagreements
from ckpt_probe.metrics.gram import Array
from ckpt_probe.plugins import registered

Record = dict[str, Any]
Blocks = Callable[[], Iterable[tuple[Array, Array, Array | None]]]
"""Gives a fresh pass over (features (n, D), labels (n,), logits (n, C) or None), in the same order each time."""

ENTRY_POINTS = "ckpt_probe.metrics"
ROWS_AT_ONCE = 8192


def analyze_features(
    features: Array,
    labels: Array,
    weights: Array | None = None,
    bias: Array | None = None,
    *,
    logits: Array | None = None,
    centred: bool = False,
) -> Record:
    """The record of features (N, D) and labels (N,), with classifier weights (C, D) and bias (C,) where given.

    numpy or torch; entropies in nats; None where a value is undefined, with the reasons in `missing`. Raises DataError
    for NaN or infinity, labels outside 0 … C−1, and shapes that do not fit.
    """
    if logits is not None and len(logits) != len(features):
        raise DataError(f"{len(features)} rows of features but {len(logits)} of logits")

    def blocks() -> Iterable[tuple[Array, Array, Array | None]]:
        for start in range(0, len(features), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            yield features[part], labels[part], None if logits is None else logits[part]

    if len(features) != len(labels):
        raise DataError(f"{len(features)} rows of features but {len(labels)} labels")
    return analyze_blocks(blocks, weights, bias, centred=centred)


def analyze_blocks(
    blocks: Blocks, weights: Array | None, bias: Array | None = None, *, centred: bool = False
) -> Record:
    """The record of a stream of blocks: one pass for the moments, one for what needs the class means.

    Never more than one block is held. Values and errors as `analyze_features`.
    """
    head = None if weights is None else _Head(_double(weights), None if bias is None else _double(bias))
    moments = Moments(None if head is None else head.weights.shape[0])
    quality = _Quality()
    for features, labels, logits in blocks():
        moments.update(features, labels)
        quality.update(_logits(features, logits, head), labels)
    record: Record = moments.compute(weights, bias)
    reasons = [record.pop("missing")]
    record |= quality.values()
    record["nc4.disagreement"] = _disagreement(blocks, moments, head)
    shifted = _centred(blocks, moments, weights) if centred else {}
    reasons.append(shifted.pop("missing", None))
    record |= shifted
    if head is None:
        needs = "accuracy, loss, nc4.disagreement" if record["accuracy"] is None else ""
        reasons.append(needs and f"{needs}: there are neither logits nor classifier weights")
    for name, function in registered(ENTRY_POINTS).items():
        record |= {f"{name}.{key}": value for key, value in function(moments, weights, bias).items()}
    record["missing"] = "; ".join(reason for reason in reasons if reason) or None
    return in_order(record)


def in_order(record: Mapping[str, Any]) -> Record:
    """A record with its names in the order in which they are documented, others at the end."""
    known = [*POSITION, *COUNTS, *(entry.name for entry in ENTRIES), *REFERENCES]
    ordered = {name: record[name] for name in known if name in record}
    others = {name: value for name, value in record.items() if name not in ordered and name not in EXTRA}
    return {**ordered, **others, **{name: record.get(name) for name in EXTRA}}


@dataclass(frozen=True)
class _Head:
    weights: Tensor
    bias: Tensor | None

    def logits(self, features: Array) -> Tensor:
        return F.linear(_double(features), self.weights, self.bias)


class _Quality:
    """Accuracy and mean cross-entropy, from logits as they come."""

    def __init__(self) -> None:
        self._samples = 0
        self._right = 0
        self._loss = 0.0

    def update(self, logits: Tensor | None, labels: Array) -> None:
        if logits is None:
            return
        numbers = torch.as_tensor(np.asarray(labels)).to(torch.int64)
        self._samples += len(numbers)
        self._right += int((logits.argmax(dim=1) == numbers).sum())
        self._loss += float(F.cross_entropy(logits, numbers, reduction="sum"))

    def values(self) -> Record:
        if not self._samples:
            return {"accuracy": None, "loss": None}
        loss = self._loss / self._samples
        return {"accuracy": self._right / self._samples, "loss": loss if np.isfinite(loss) else None}


def _logits(features: Array, logits: Array | None, head: _Head | None) -> Tensor | None:
    if logits is not None:
        return _double(logits)
    return None if head is None else head.logits(features)


def _disagreement(blocks: Blocks, moments: Moments, head: _Head | None) -> float | None:
    means = moments.class_means
    samples = count = 0
    for features, _, logits in blocks():
        scores = _logits(features, logits, head)
        if scores is None:
            return None
        count += disagreements(_double(features), scores.argmax(dim=1), means)
        samples += len(scores)
    if samples != moments.samples:
        raise DataError(f"the data changed while it was read: {moments.samples} rows at first, then {samples}")
    return count / samples


def _centred(blocks: Blocks, moments: Moments, weights: Array | None) -> Record:
    shifted = Moments(moments.classes)
    mean = moments.mean
    for features, labels, _ in blocks():
        shifted.update(_double(features) - mean, labels)
    record = shifted.compute(weights)
    names = {"centred.mir": "sample.mir", "centred.hdr": "sample.hdr"}
    values = {name: record[source] for name, source in names.items()}
    missing = [name for name, value in values.items() if value is None]
    return {**values, "missing": f"{', '.join(missing)}: as for the features themselves" if missing else None}


def _double(values: Array) -> Tensor:
    return torch.as_tensor(values).detach().cpu().to(torch.float64)
