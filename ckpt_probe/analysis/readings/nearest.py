"""The second pass: each sample's nearest class mean, against its prediction (NC4) and against its label."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.metrics.arrays import as_tensor
from ckpt_probe.metrics.collapse import NearestMean
from ckpt_probe.metrics.decisions import LinearDecision
from ckpt_probe.metrics.gram import Array
from ckpt_probe.moments.quality import Head, Scored


class Predictions:
    """What is predicted for each block: as stored, as the first pass found it, or by the head anew.

    memory: bytes that predictions of the first pass may take, 4 a sample.
    """

    def __init__(self, head: Head | None, memory: int) -> None:
        self.any = head is not None
        self._head = head
        self._decision: LinearDecision | None = None
        self._room = memory // 4
        self._kept: list[Tensor] | None = []
        self._all: Tensor | None = None
        self._place = 0

    @property
    def kept(self) -> bool:
        """Whether those of the first pass are at hand."""
        return bool(self._kept) or self._all is not None

    def keep(self, prediction: Tensor) -> None:
        """Keep those of the next block for the second pass; where they do not fit, none are."""
        self._room -= len(prediction)
        if self._kept is not None and self._room >= 0:
            self._kept.append(prediction.to(torch.int32))
        else:
            self._kept = None

    def of(self, features: Array, logits: Array | Scored | None) -> Tensor | None:
        """Those of the next block of the second pass, (n,); None where nothing predicts."""
        if self._kept:
            self._all, self._kept = torch.cat(self._kept), None
        if self._all is not None:
            self._place += len(features)
            return self._all[self._place - len(features) : self._place].to(torch.int64)
        if logits is not None:
            return predicted(logits)
        if self._head is None:
            return None
        self._decision = self._decision or self._head.decision()
        return self._decision.of(as_tensor(features, "features").detach().cpu())


def predicted(scores: Array | Scored | None) -> Tensor | None:
    """The classes that scores of rows predict, (n,); None where there are none."""
    if scores is None:
        return None
    if isinstance(scores, Scored):
        return scores.predicted
    return as_tensor(scores, "logits").cpu().argmax(dim=1)


@dataclass(frozen=True)
class Counts:
    """Samples: how many, how many with a prediction, of those how many whose nearest mean is another's; how many of
    classes that have a mean, of those how many nearest to it; and per class how many are nearest to which mean.
    """

    samples: int
    scored: int
    other: int
    own: int
    known: int
    by_class: dict[int, dict[int, int]] | None


class NearestMeans:
    """Counts samples whose prediction, or label, is not the nearest class mean's, and per class which mean is nearest.

    class_means: (C, D), NaN rows for absent classes. confusion: whether to count per class.
    """

    def __init__(self, class_means: Tensor, *, confusion: bool = False) -> None:
        self.samples = 0
        self._nearest = NearestMean(class_means)
        self._present = ~class_means[:, 0].isnan()
        self._scored = self._other = self._own = self._known = 0
        self._counts: dict[int, dict[int, int]] | None = {} if confusion else None

    def update(self, features: Tensor, labels: Tensor, prediction: Tensor | None) -> None:
        """Add a block of features (n, D), labels (n,), and predicted classes (n,) where there are any."""
        self.samples += len(labels)
        nearest, labels = self._nearest.of(features), labels.cpu().to(torch.int64)
        if prediction is not None:
            self._scored += len(labels)
            self._other += int((nearest != prediction).sum())
        known = self._present[labels.clamp(max=len(self._present) - 1)]
        self._known += int(known.sum())
        self._own += int((nearest == labels)[known].sum())
        if self._counts is not None:
            pairs = torch.stack([labels, nearest], dim=1)
            found, counts = torch.unique(pairs, dim=0, return_counts=True)
            for (label, other), count in zip(found.tolist(), counts.tolist(), strict=True):
                self._count(label, [(other, count)])

    def counts(self) -> "Counts":
        """What was counted so far."""
        return Counts(self.samples, self._scored, self._other, self._own, self._known, self._counts)

    def add(self, counts: "Counts") -> None:
        """Add what was counted elsewhere, against the same means."""
        self.samples += counts.samples
        self._scored += counts.scored
        self._other += counts.other
        self._own += counts.own
        self._known += counts.known
        for label, others in (counts.by_class or {}).items():
            self._count(label, others.items())

    @property
    def disagreement(self) -> float | None:
        """NC4; None where nothing was predicted."""
        return self._other / self._scored if self._scored else None

    @property
    def accuracy(self) -> float | None:
        """Share of samples nearest to their own class mean, of those whose class has one."""
        return self._own / self._known if self._known else None

    def of_class(self, label: Any) -> dict[str, Any]:
        """Share of a class's samples nearest to its own mean, and how many are nearest to which, most first."""
        row = (self._counts or {}).get(label, {})
        if not row:
            return {}
        told = sorted(row.items(), key=lambda item: (-item[1], item[0]))
        own = row.get(label, 0) / sum(row.values())
        return {"nearest.own": own, "nearest.confusion": " ".join(f"{other}:{count}" for other, count in told)}

    def _count(self, label: int, others: Iterable[tuple[int, int]]) -> None:
        assert self._counts is not None
        row = self._counts.setdefault(label, {})
        for other, count in others:
            row[other] = row.get(other, 0) + count
