"""The two passes over rows that a record needs: for moments and quality, and for the nearest class means."""

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ckpt_probe.analysis.readings.nearest import NearestMeans, Predictions, predicted
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.dumps import Pass
from ckpt_probe.errors import DataError
from ckpt_probe.metrics.arrays import as_labels, as_tensor
from ckpt_probe.metrics.gram import Array
from ckpt_probe.moments import Moments
from ckpt_probe.moments.quality import Head, Quality, Scored, double

Block = tuple[Array, Array, Array | Scored | None]
"""Features (n, D), labels (n,), and scores: logits (n, C), or what is known in their place, or None."""

Blocks = Callable[[], Iterable[Block]]
"""Gives a fresh pass over blocks of rows, in the same order each time."""

SecondPass = Callable[[Tensor, bool], NearestMeans]
"""What makes the second pass, given class means (C, D) and whether to count per class."""

PREDICTED_SHARE = 8
"""The part of the memory budget, an eighth, that predictions of the first pass may take."""


SCORED = frozenset({"quality", "nc4"})
"""Families of metrics that need to know what is predicted."""


class Seen(NamedTuple):
    """What the first pass leaves."""

    moments: Moments
    quality: Quality
    predictions: Predictions


def first_pass(blocks: Blocks, weights: Array | None, bias: Array | None, settings: Settings) -> Seen:
    """Moments and quality of blocks, with what their rows are predicted to be. Raises DataError for a wrong row."""
    head = Head.of(weights, bias)
    moments = settings.moments(None if head is None else head.weights.shape[0])
    seen = Seen(moments, Quality(), Predictions(head, settings.memory // PREDICTED_SHARE))
    if weights is not None and not SCORED & settings.families:
        blocks = without_scores(blocks)
    for block in blocks():
        features, labels, logits = block
        _require_labels(features, labels, logits, moments)
        moments.update(features, labels)
        seen.predictions.any = seen.predictions.any or logits is not None
        _score(seen, block, head, settings.families)
    return seen


def without_scores(blocks: Blocks) -> Blocks:
    """The same blocks, of which only features and labels are of interest."""
    return blocks.without_scores() if isinstance(blocks, Pass) else blocks


def second_pass(blocks: Blocks, predictions: Predictions, class_means: Tensor, confusion: bool) -> NearestMeans:
    """How the rows lie to the class means; arguments as `NearestMeans`."""
    nearest = NearestMeans(class_means, confusion=confusion)
    if predictions.kept:
        blocks = without_scores(blocks)
    for features, labels, logits in blocks():
        prediction = predictions.of(features, logits)
        nearest.update(as_tensor(features, "features").detach().cpu(), as_labels(labels), prediction)
    return nearest


def _require_labels(features: Array, labels: Array, logits: Array | Scored | None, moments: Moments) -> None:
    numbers = as_labels(labels)
    if features.ndim != 2 or numbers.ndim != 1 or not len(numbers) or numbers.is_floating_point():
        # The moments say what is wrong with these.
        return
    numbers = numbers.to(torch.int64)
    row = int(numbers.argmax())
    highest, where = int(numbers[row]), f"labels: row {moments.samples + row} is"
    if logits is not None and not isinstance(logits, Scored):
        if logits.ndim != 2 or highest >= logits.shape[1]:
            raise DataError(f"{where} {highest}, but logits have shape {tuple(logits.shape)}")
        return
    needed = 8 * (highest + 1) * features.shape[1]
    if moments.classes is None and needed > moments.memory:
        raise DataError(
            f"{where} {highest}: the means of so many classes would take {needed:,} bytes, more than the memory budget "
            f"of {moments.memory:,}; number the classes 0 … C−1, or raise the budget"
        )


def _score(seen: Seen, block: Block, head: Head | None, families: Collection[str]) -> None:
    """Add a block to the quality, where it is asked for, and keep what is known of its predictions for NC4."""
    features, labels, scores = block
    if "quality" not in families:
        found = predicted(scores)
    elif isinstance(scores, Scored):
        found = seen.quality.update_scored(scores, labels)
    elif scores is not None:
        found = seen.quality.update(double(scores), labels)
    else:
        found = None if head is None else seen.quality.update_head(head, features, labels)
    if found is not None and "nc4" in families:
        seen.predictions.keep(found)
