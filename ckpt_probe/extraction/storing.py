"""What a dump keeps of each split: its rows as they come, class moments of them, or both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.dumps import DumpWriter, as_stored
from ckpt_probe.extraction.layers import LayerStore
from ckpt_probe.extraction.setup import Storage
from ckpt_probe.metrics.arrays import as_tensor
from ckpt_probe.models import Taps
from ckpt_probe.moments import Moments
from ckpt_probe.moments.gathering import Gathering
from ckpt_probe.moments.quality import Head, Scored


@dataclass(frozen=True)
class SplitPlan:
    """What will come with the rows of a split.

    scores: "logits", "scored" (prediction and loss), or "none". labelled: whether rows have labels. chosen: numbers of
    the rows that are stored, in order; all where None.
    """

    scores: str = "logits"
    labelled: bool = True
    chosen: Tensor | None = None


def choose_rows(rows: int, most: int | None, seed: int) -> Tensor | None:
    """Numbers of `most` of so many rows, in order, each as likely as any other; None where all of them are taken."""
    if most is None or rows <= most:
        return None
    found = np.random.default_rng(seed).choice(rows, most, replace=False, shuffle=False)
    return torch.from_numpy(np.sort(found))


class StoreWriter:
    """A DumpWriter, opened and left as such, that keeps of each split what `storage` says.

    Moments are those of the features as they would be stored, of all rows, so that both kinds of dump give the same
    numbers. classes: how many the labels have, where no classifier says so.
    """

    def __init__(
        self, writer: DumpWriter, storage: Storage, classes: int | None = None, taps: Taps | None = None
    ) -> None:
        self._writer = writer
        self._storage = storage
        self._taps = taps or Taps()
        self._store = storage.store
        self._dtype = storage.feature_dtype
        self._memory = storage.memory
        self._classes = classes
        self._head: tuple[Tensor, Tensor | None] | None = None

    def __enter__(self) -> "StoreWriter":
        self._writer.__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._writer.__exit__(kind, error, trace)

    def write_classifier(self, weights: Tensor, bias: Tensor | None = None) -> None:
        """As the writer's."""
        self._head, self._classes = (weights, bias), len(weights)
        self._writer.write_classifier(weights, bias)

    def start_split(self, name: str, samples: int | None = None, plan: SplitPlan | None = None) -> None:
        """As the writer's; without scores, accuracy and loss are those of the classifier's weights."""
        self._plan = plan = plan or SplitPlan()
        self._seen = 0
        if self._store != "features":
            head = Head.of(*self._head) if self._head is not None and plan.scores == "none" and plan.labelled else None
            only = None if plan.labelled else ["sample"]
            classes = self._classes if plan.labelled else None
            self._gathering = Gathering(Moments(classes, memory=self._memory, only=only), head)
        if self._store != "moments":
            announced = samples if plan.chosen is None else None
            scores = {"logits": plan.scores == "logits", "scored": plan.scores == "scored"}
            self._writer.start_split(name, announced, **scores, labelled=plan.labelled)
        self._layers = LayerStore(self._writer, self._storage, self._taps, name, self._classes, labelled=plan.labelled)

    def append(
        self,
        name: str,
        features: Tensor,
        labels: Tensor,
        scores: Tensor | Scored | None,
        layers: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add a block of rows of a split, and those of its layers beside the classifier's input."""
        scores = None if self._plan.scores == "none" else scores
        if self._store != "moments":
            self._append_chosen(name, features, labels, scores)
        if self._store != "features":
            stored = torch.from_numpy(as_stored(features, self._dtype, f"{self._writer.path}: {name}"))
            counted = labels if self._plan.labelled else torch.zeros_like(labels)
            known = scores if self._plan.labelled else None
            self._gathering.add(stored, counted, known.float() if isinstance(known, Tensor) else known)
        self._layers.append(features, labels, layers or {})

    def write_class_names(self, names: Sequence[str]) -> None:
        """As the writer's."""
        self._writer.write_class_names(names)

    def finish_split(self, name: str, *, left_out: int = 0) -> None:
        """Write what was accumulated of a split that has got all its rows but those of samples that were left out."""
        if self._store != "features":
            self._gathering.finish()
            moments, quality = self._gathering.moments, self._gathering.quality
            numbers = {"samples": moments.samples, **quality.to_numbers()}
            self._writer.write_moments(name, moments.state_dict(), numbers, labelled=self._plan.labelled)
        self._writer.leave_out(name, left_out)
        if self._plan.chosen is not None and self._store != "moments":
            self._writer.count_not_stored(name, self._seen - self._stored_of(0, self._seen)[1])
        self._layers.finish()

    def _append_chosen(self, name: str, features: Tensor, labels: Tensor, scores: Tensor | Scored | None) -> None:
        before, self._seen = self._seen, self._seen + len(labels)
        if self._plan.chosen is None:
            self._writer.append(name, features, labels, scores)
            return
        start, stop = self._stored_of(before, self._seen)
        if stop > start:
            kept = self._plan.chosen[start:stop] - before
            self._writer.append(name, features[kept], labels[kept], _part(scores, kept))

    def _stored_of(self, first: int, end: int) -> tuple[int, int]:
        """Which of the chosen rows are those from `first` to `end`."""
        assert self._plan.chosen is not None
        start, stop = torch.searchsorted(self._plan.chosen, torch.tensor([first, end])).tolist()
        return start, stop


def _part(scores: Tensor | Scored | None, kept: Tensor) -> Tensor | Scored | None:
    if isinstance(scores, Scored):
        return Scored(as_tensor(scores.prediction, "predictions")[kept], as_tensor(scores.loss, "losses")[kept])
    return None if scores is None else scores[kept]
