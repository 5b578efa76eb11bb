"""Compare the nearest class mean of each sample with its predicted class (NC4) and with its label: the second pass."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ckpt_probe.analysis.entries import STDERR
from ckpt_probe.dumps import Pass
from ckpt_probe.metrics.decisions import LinearDecision, NearestMean
from ckpt_probe.metrics.rows import Array, as_labels, as_tensor
from ckpt_probe.moments.details import NEAREST_OWN
from ckpt_probe.moments.errors.sample import Sample
from ckpt_probe.moments.quality import LinearHead, Scored

if TYPE_CHECKING:
    from ckpt_probe.analysis.record import Blocks

OWN_STDERR = f"{NEAREST_OWN}{STDERR}"


class Predictions:
    """Predicted classes of the rows: stored in the data, remembered from the first pass, or computed by the head.

    Args:
        head: The classifier, or None.
        memory: Bytes that predictions of the first pass may take, at 4 bytes per sample.

    Attributes:
        available: Whether anything predicts classes.
    """

    def __init__(self, head: LinearHead | None, memory: int = 0) -> None:
        self.available = head is not None
        self._head = head
        self._decision: LinearDecision | None = None
        self._capacity = memory // 4
        self._blocks: list[Tensor] | None = []
        self._all: Tensor | None = None
        self._position = 0

    @property
    def remembered(self) -> bool:
        """Return whether the predictions of the first pass are in memory."""
        return bool(self._blocks) or self._all is not None

    def remember(self, prediction: Tensor) -> None:
        """Remember the predictions (n,) of the next block of the first pass; drop all of them if they do not fit."""
        self._capacity -= len(prediction)
        if self._blocks is not None and self._capacity >= 0:
            self._blocks.append(prediction.to(torch.int32))
        else:
            self._blocks = None

    def next_block(self, features: Array, scores: Array | Scored | None) -> Tensor | None:
        """Return the predicted classes (n,) of the next block of the second pass, or None if nothing predicts them."""
        if self._blocks:
            self._all, self._blocks = torch.cat(self._blocks), None
        if self._all is not None:
            self._position += len(features)
            return self._all[self._position - len(features) : self._position].to(torch.int64)
        if scores is not None:
            return predicted_classes(scores)
        if self._head is None:
            return None
        self._decision = self._decision or self._head.decision()
        return self._decision.of(as_tensor(features, "features").detach().cpu())


def predicted_classes(scores: Array | Scored | None) -> Tensor | None:
    """Return the classes (n,) that the scores of rows predict, −1 where logits are NaN or all −∞; None without."""
    if scores is None or isinstance(scores, Scored):
        return None if scores is None else scores.predicted
    highest, classes = as_tensor(scores, "logits").cpu().max(dim=1)
    return classes.where(highest > -math.inf, -1)


@dataclass
class NearestCounts:
    """Numbers of samples by their nearest class mean.

    Attributes:
        samples: Samples counted.
        predicted: Samples with a predicted class.
        disagreeing: Samples whose predicted class is not that of the nearest mean.
        labelled: Samples of classes that have a mean.
        correct: Samples whose nearest mean is that of their class.
        confusion: For each class, the number of its samples that are nearest to each mean; None if not requested.
    """

    samples: int = 0
    predicted: int = 0
    disagreeing: int = 0
    labelled: int = 0
    correct: int = 0
    confusion: dict[int, Counter[int]] | None = None

    def add(self, other: "NearestCounts") -> None:
        """Add the counts of other samples, which were compared with the same means."""
        for name in ("samples", "predicted", "disagreeing", "labelled", "correct"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for label, counts in (other.confusion or {}).items():
            self.add_confusion(label, counts)

    def compare(self, nearest: Tensor, labels: Tensor, present: Tensor, predicted: Tensor | None) -> None:
        """Count more samples.

        Args:
            nearest: Class of the nearest mean of each sample, (n,).
            labels: Labels, (n,).
            present: Whether each class has a mean, (C,).
            predicted: Predicted classes, (n,), or None.
        """
        self.samples += len(labels)
        if predicted is not None:
            self.predicted += len(labels)
            self.disagreeing += int((nearest != predicted).sum())
        labelled = present[labels.clamp(max=len(present) - 1)]
        self.labelled += int(labelled.sum())
        self.correct += int((nearest == labels)[labelled].sum())
        if self.confusion is not None:
            pairs, numbers = torch.unique(torch.stack([labels, nearest], dim=1), dim=0, return_counts=True)
            for (label, other), number in zip(pairs.tolist(), numbers.tolist(), strict=True):
                self.add_confusion(label, {other: number})

    def add_confusion(self, label: int, counts: dict[int, int]) -> None:
        """Add the number of samples of one class that are nearest to each mean."""
        assert self.confusion is not None
        self.confusion.setdefault(label, Counter()).update(counts)

    @property
    def disagreement(self) -> float | None:
        """NC4; None if no class was predicted."""
        return self.disagreeing / self.predicted if self.predicted else None

    @property
    def accuracy(self) -> float | None:
        """Share of samples nearest to the mean of their class, among the samples whose class has a mean."""
        return self.correct / self.labelled if self.labelled else None

    def row_of_class(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row of a class with `nearest.own` and `nearest.confusion`, if its samples were counted."""
        counted = (self.confusion or {}).get(row["class"])
        last = {name: row[name] for name in (OWN_STDERR, "missing") if name in row}
        first = {name: value for name, value in row.items() if name not in last}
        if not counted:
            last.pop(OWN_STDERR, None)
            return {**first, **last}
        ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        error = {OWN_STDERR: last.pop(OWN_STDERR)} if OWN_STDERR in last else {}
        text = " ".join(f"{other}:{count}" for other, count in ordered)
        share = counted[row["class"]] / counted.total()
        return {**first, NEAREST_OWN: share, **error, "nearest.confusion": text, **last}


def count_nearest(
    blocks: "Blocks", class_means: Sequence[Tensor], predictions: Predictions, *, confusion: bool = False
) -> list[NearestCounts]:
    """Find the nearest class mean of every row, of each of some sets of class means.

    Args:
        blocks: Called without arguments, returns a new pass over the rows.
        class_means: Sets of class means (C, D), NaN for a class without samples.
        predictions: Source of predicted classes.
        confusion: Whether to count each class separately, for the first set.

    Returns:
        Counts for each set.
    """
    results = [NearestCounts(confusion={} if confusion and not number else None) for number in range(len(class_means))]
    nearest_means = [NearestMean(means) for means in class_means]
    for features, labels, scores in (without_scores(blocks) if predictions.remembered else blocks)():
        rows, numbers = as_tensor(features, "features").detach().cpu(), as_labels(labels).cpu().to(torch.int64)
        predicted = predictions.next_block(features, scores)
        for counts, nearest_mean in zip(results, nearest_means, strict=True):
            counts.compare(nearest_mean.of(rows), numbers, nearest_mean.present, predicted)
    return results


def without_scores(blocks: "Blocks") -> "Blocks":
    """Return a pass over the same blocks that does not read logits, which may be far larger than the features."""
    return blocks.without_scores() if isinstance(blocks, Pass) else blocks


def add_values_by_means(sample: Sample, train_means: Tensor) -> None:
    """Add the values of the rows of a sample whose means are the metrics by class means of the training split.

    Args:
        sample: Rows of the subset.
        train_means: Class means of the training split, shape (C, D), NaN for absent classes.
    """
    if not len(sample.labels) or bool(train_means[:, 0].isnan().all()):
        return
    labels, weights = sample.labels.cpu(), sample.head[0]
    nearest = NearestMean(train_means).of(sample.features.cpu())
    sample.row_values["nearest_mean_accuracy_train_means"] = nearest == labels
    if weights is not None:
        bias = None if sample.head[1] is None else sample.head[1].cpu()
        predicted = LinearDecision(weights.cpu(), bias).of(sample.features.cpu())
        sample.row_values["nc4.disagreement_train_means"] = nearest != predicted
