"""The second pass: each sample's nearest class mean, against its prediction (NC4) and against its label."""

from typing import Any

import torch
from torch import Tensor

from ckpt_probe.metrics import nearest_means


class NearestMeans:
    """Counts samples whose prediction is not the nearest class mean's, and per class which mean is nearest.

    class_means: (C, D), NaN rows for absent classes. confusion: whether to count per class.
    """

    def __init__(self, class_means: Tensor, *, confusion: bool = False) -> None:
        self.samples = 0
        self._means = class_means
        self._scored = self._other = 0
        self._counts: dict[int, dict[int, int]] | None = {} if confusion else None

    def update(self, features: Tensor, labels: Tensor, logits: Tensor | None) -> None:
        """Add a block of features (n, D), labels (n,), and logits (n, C) where there are any."""
        self.samples += len(labels)
        if logits is None and self._counts is None:
            return
        nearest = nearest_means(features, self._means)
        if logits is not None:
            self._scored += len(labels)
            self._other += int((nearest != logits.argmax(dim=1)).sum())
        if self._counts is not None:
            pairs = torch.stack([labels.cpu().to(torch.int64), nearest], dim=1)
            found, counts = torch.unique(pairs, dim=0, return_counts=True)
            for (label, other), count in zip(found.tolist(), counts.tolist(), strict=True):
                row = self._counts.setdefault(label, {})
                row[other] = row.get(other, 0) + count

    @property
    def disagreement(self) -> float | None:
        """NC4; None where nothing was predicted."""
        return self._other / self._scored if self._scored else None

    def of_class(self, label: Any) -> dict[str, Any]:
        """Share of a class's samples nearest to its own mean, and how many are nearest to which, most first."""
        row = (self._counts or {}).get(label, {})
        if not row:
            return {}
        told = sorted(row.items(), key=lambda item: (-item[1], item[0]))
        own = row.get(label, 0) / sum(row.values())
        return {"nearest.own": own, "nearest.confusion": " ".join(f"{other}:{count}" for other, count in told)}
