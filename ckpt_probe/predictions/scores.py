"""Read predicted classes, losses and softmax probabilities from a split of a dump, in blocks of rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckpt_probe.dumps import Dump, SplitView, open_dump
from ckpt_probe.errors import DataError

BLOCK_BYTES = 2**26
"""Largest size of the numbers of a block in float64."""

TINY = 1e-300
"""Smallest probability: p log p is then 0 to within 1e-297, without a case for 0."""


@dataclass(frozen=True)
class Scores:
    """Predictions of one checkpoint on one split.

    Attributes:
        predicted: Predicted classes, shape (N,), int32.
        labels: Class indices, shape (N,), or None if rows have no labels.
        loss: Cross-entropy of each row in nats, shape (N,), or None if neither labels nor stored losses exist.
        classes: Number of logits C of a row; 0 if only predictions are stored.
    """

    predicted: np.ndarray
    labels: np.ndarray | None
    loss: np.ndarray | None
    classes: int


def read_scores(dump: Dump, split: str) -> Scores:
    """Read the predicted class and the loss of every row of a split.

    They come from the stored logits, else from stored predictions and losses, else from stored features and classifier
    weights. Of equal logits the first class is predicted.

    Args:
        dump: Open dump.
        split: Name of the split.

    Raises:
        DataError: If the split is missing, has no rows or no predictions, or a logit is NaN or +∞.
    """
    view, source = _rows_of(dump, split)
    labels = None if view.labels is None or not view.labelled else view.labels[()].astype(np.int64)
    classes = _classes(dump, view)
    if not classes:
        if view.prediction is None:
            raise DataError(
                f"{source}: no logits, predictions or classifier weights are stored; extract again with "
                "`with_logits=True` and `overwrite=True`"
            )
        loss = None if view.loss is None else view.loss[()].astype(np.float64)
        if loss is not None and labels is not None and len(bad := np.flatnonzero(np.isnan(loss) & (labels >= 0))):
            raise DataError(f"{source}: the loss of row {bad[0]} is NaN, so it has no prediction")
        return Scores(view.prediction[()].astype(np.int32), labels, loss, 0)
    predicted = np.empty(view.samples, dtype=np.int32)
    loss = None if labels is None else np.empty(view.samples)
    for start, logits in _logit_blocks(dump, view, source, max(1, BLOCK_BYTES // (8 * classes))):
        part = slice(start, start + len(logits))
        predicted[part] = logits.argmax(axis=1)
        if labels is not None and loss is not None:
            loss[part] = _cross_entropy(logits, labels[part])
    return Scores(predicted, labels, loss, classes)


def probability_blocks(
    paths: Sequence[Path], split: str, samples: int, classes: int, rows: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Yield the softmax of several dumps in blocks of the same rows, each of bounded size.

    Args:
        paths: Dumps with the same rows, each with logits or with features and classifier weights.
        split: Name of the split.
        samples: Number of its rows.
        classes: Number of logits of a row, C.
        rows: Indices of some rows in ascending order; all if None.

    Yields:
        Probabilities of at least `TINY`, shape (T, n, C), float64.
    """
    at_once = max(1, BLOCK_BYTES // (8 * classes * len(paths)))
    for start in range(0, samples, at_once):
        stop = min(start + at_once, samples)
        chosen = slice(None) if rows is None else rows[(rows >= start) & (rows < stop)] - start
        probabilities = []
        for path in paths:
            with open_dump(path) as dump:
                view, source = _rows_of(dump, split)
                [(_, logits)] = _logit_blocks(dump, view, source, at_once, start, stop)
            probabilities.append(softmax(logits[chosen]))
        block = np.stack(probabilities)
        if block.shape[1]:
            yield block


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of logits (n, C) in float64, each probability at least `TINY`."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.maximum(powers / powers.sum(axis=1, keepdims=True), TINY)


def _rows_of(dump: Dump, split: str) -> tuple[SplitView, str]:
    view, source = dump[split], f"{dump.path}: {split}"
    if view.features is None:
        raise DataError(
            f"{source}: only class moments are stored, not rows, so no row has a prediction; extract again with "
            "`store='both'` and `overwrite=True`"
        )
    return view, source


def _classes(dump: Dump, view: SplitView) -> int:
    if view.logits is not None:
        return view.logits.shape[1]
    return 0 if view.prediction is not None or dump.weights is None else len(dump.weights)


def _logit_blocks(
    dump: Dump, view: SplitView, source: str, rows: int, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first row and the logits (n, C) of each block; raise DataError if a largest logit is not finite."""
    end = view.samples if stop is None else stop
    for first in range(start, end, rows):
        part = slice(first, min(first + rows, end))
        if view.logits is not None:
            logits = view.read(view.logits.dataset, part).astype(np.float64)
        else:
            assert dump.weights is not None
            logits = view.read(view.features.dataset, part).astype(np.float64) @ dump.weights.T
            logits += 0 if dump.bias is None else dump.bias
        bad = np.flatnonzero(~np.isfinite(logits.max(axis=1))) if logits.size else np.empty(0, dtype=int)
        if len(bad):
            kind = "NaN" if np.isnan(logits[bad[0]]).any() else "infinite"
            raise DataError(f"{source}: the logits of row {first + bad[0]} are {kind}, so it has no prediction")
        yield first, logits


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the cross-entropy of rows in nats, shape (n,); NaN for a label that is no class."""
    largest = logits.max(axis=1)
    total = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    known = (labels >= 0) & (labels < logits.shape[1])
    of_label = logits[np.arange(len(labels)), np.where(known, labels, 0)]
    return np.where(known, total - of_label, np.nan)
