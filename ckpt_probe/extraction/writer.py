"""Write the blocks of forward passes to a dump: rows, class moments or both, of every layer that is stored."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.data import LEFT_OUT
from ckpt_probe.dumps import PENULTIMATE, DumpWriter, Provenance, as_stored, require_split_name
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction.blocks import Block, is_scored
from ckpt_probe.extraction.config import Storage
from ckpt_probe.extraction.subject import Subject
from ckpt_probe.models import Backbone, Taps
from ckpt_probe.moments import Moments
from ckpt_probe.moments.grouping import Subset
from ckpt_probe.moments.quality import Gathering, LinearHead, Scored

Scores = Literal["logits", "scored", "none"]
"""What a dump has beside the rows: logits, or prediction and loss of each row, or neither."""


class StoreWriter:
    """Write one dump: its classifier, and the rows of each split, their class moments, or both.

    Moments are computed from features rounded to the stored precision, of all rows, so that both kinds of dump give
    the same numbers. An error within the `with` leaves no file.

        with StoreWriter(path, provenance, storage, weights, bias) as writer:
            writer.write_split("test", blocks, rows=450)

    Args:
        path: File to write.
        provenance: Origin of the numbers, if it is known.
        storage: Contents of the dump.
        weights: Weights of the classifier, shape (C, D); C is 0 without a classifier.
        bias: Bias of the classifier, shape (C,), if it has one.
        taps: Layers whose rows are stored beside the classifier's input.
        classes: Number of classes, if there is no classifier.
        class_names: Names of the first classes.
        overwrite: Whether to replace an existing file.
    """

    def __init__(
        self,
        path: Path,
        provenance: Provenance | None,
        storage: Storage,
        weights: Tensor,
        bias: Tensor | None = None,
        *,
        taps: Taps | None = None,
        classes: int | None = None,
        class_names: Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> None:
        self._storage, self._weights, self._bias, self._taps = storage, weights, bias, taps or Taps()
        self._classes = len(weights) or classes or 0
        self._class_names = (class_names or ())[: self._classes]
        self._dump = DumpWriter(
            path,
            provenance,
            classes=self._classes,
            features=weights.shape[1],
            feature_dtype=storage.feature_dtype,
            overwrite=overwrite,
        )
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._dump)
            if len(self._weights):
                self._dump.write_classifier(self._weights, self._bias)
            if self._class_names:
                self._dump.write_class_names(self._class_names)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # pyright: ignore[reportArgumentType]

    def write_split(
        self,
        name: str,
        blocks: Iterable[Block],
        *,
        rows: int | None = None,
        scores: Scores = "logits",
        labelled: bool = True,
        chosen: Tensor | None = None,
    ) -> None:
        """Write all blocks of a split.

        Args:
            name: Name of the split.
            blocks: Blocks of rows.
            rows: Number of rows, if it is known; if fewer arrive, the samples of the others count as unreadable.
            scores: Stored beside the rows: logits, prediction and loss, or nothing; accuracy and loss are then computed
                from the classifier.
            labelled: Whether rows have labels; otherwise all rows count as one class.
            chosen: Indices of the rows that are stored, in ascending order; None for all of them. The other rows are
                only counted, and enter the moments.

        Raises:
            DataError: If the number of rows is unknown and no row comes, or as in `DumpWriter.append`.
        """
        stores_rows = self._storage.store != "moments"
        if stores_rows:
            announced = rows if chosen is None else None
            logits, scored = scores == "logits", scores == "scored"
            self._dump.start_split(name, announced, logits=logits, scored=scored, labelled=labelled)
        group = _GroupWriter(self._dump, name, self._gathering(labelled, scores), stores_rows, labelled)
        layers = _LayersWriter(self, name, labelled) if self._taps.layers else None
        seen = stored = 0
        for block in blocks:
            count = len(block.labels)
            block_scores = None if scores == "none" else block.scores
            if chosen is None:
                group.append(block.features, block.labels, block_scores)
                stored += count
            else:
                start, stop = torch.searchsorted(chosen, torch.tensor([seen, seen + count])).tolist()
                group.append(block.features, block.labels, block_scores, chosen[start:stop] - seen)
                stored += stop - start
            if layers is not None:
                layers.append(block)
            seen += count
        if not seen and rows is None:
            raise DataError(f"split {name}: no row: every label is {LEFT_OUT}, or there is no sample")
        group.finish(with_quality=True)
        self._dump.leave_out(name, 0 if rows is None else rows - seen)
        if chosen is not None and stores_rows:
            self._dump.count_not_stored(name, seen - stored)
        if layers is not None:
            layers.finish()

    def _gathering(self, labelled: bool, scores: Scores) -> Gathering | None:
        """Return the class moments of a split, with accuracy and loss; None if only rows are stored."""
        if self._storage.store == "features":
            return None
        computes_logits = labelled and scores == "none" and len(self._weights)
        head = LinearHead.of(self._weights, self._bias) if computes_logits else None
        return Gathering(_moments(self._classes, self._storage.memory, labelled), head)


class _GroupWriter:
    """Write the rows, the class moments, or both, of one split or of one layer of it."""

    def __init__(
        self, dump: DumpWriter, name: str, gathering: Gathering | None, stores_rows: bool, labelled: bool
    ) -> None:
        self._dump, self._name, self._gathering = dump, name, gathering
        self._stores_rows, self._labelled = stores_rows, labelled

    def append(
        self, rows: Tensor, labels: Tensor, scores: Tensor | Scored | None = None, chosen: Tensor | None = None
    ) -> None:
        """Add rows (n, D) with labels (n,) and scores; `chosen` are the indices of the rows that are stored."""
        if self._stores_rows and chosen is None:
            self._dump.append(self._name, rows, labels, scores)
        elif self._stores_rows and chosen is not None and len(chosen):
            self._dump.append(self._name, rows[chosen], labels[chosen], _take_rows(scores, chosen))
        if self._gathering is not None:
            stored = torch.from_numpy(as_stored(rows, self._dump.feature_dtype, f"{self._dump.path}: {self._name}"))
            if not self._labelled:
                self._gathering.add(stored, torch.zeros_like(labels))
            else:
                self._gathering.add(stored, labels, scores.float() if isinstance(scores, Tensor) else scores)

    def finish(self, *, with_quality: bool = False) -> None:
        """Write the moments after the last row, with accuracy and loss if `with_quality`."""
        if self._gathering is None:
            return
        self._gathering.finish()
        moments = self._gathering.moments
        numbers = {"samples": moments.samples, **(self._gathering.quality.to_numbers() if with_quality else {})}
        if moments.samples or with_quality:
            self._dump.write_moments(self._name, moments.state_dict(), numbers, labelled=self._labelled)


class _LayersWriter:
    """Write rows or moments of every tapped layer of a split, and the same subset of rows of all layers."""

    def __init__(self, writer: StoreWriter, split: str, labelled: bool) -> None:
        storage, taps = writer._storage, writer._taps.layers
        self._dump, self._split = writer._dump, split
        self._subset = Subset(storage.similarity_rows, storage.similarity_seed)
        self._groups: dict[str, _GroupWriter] = {}
        for tap in taps:
            width = tap.width if storage.layer_store != "moments" else None
            name = self._dump.start_layer(
                split, tap.layer, depth=tap.depth, pooling=tap.pooling, labelled=labelled, width=width
            )
            gathering = None
            if storage.layer_store != "features":
                # Each layer has an equal share of the memory.
                gathering = Gathering(_moments(writer._classes, storage.memory // len(taps), labelled))
            self._groups[tap.layer] = _GroupWriter(self._dump, name, gathering, width is not None, labelled)
        self._dump.start_layer(split, PENULTIMATE, depth=1.0, pooling="features")

    def append(self, block: Block) -> None:
        for layer, rows in block.layers.items():
            self._groups[layer].append(rows, block.labels)
        self._subset.update(len(block.labels), {**block.layers, PENULTIMATE: block.features})

    def finish(self) -> None:
        for group in self._groups.values():
            group.finish()
        self._dump.write_similarity(self._split, self._subset.indices, self._subset.seed, self._subset.rows)


def require_storable(subject: Subject, storage: Storage) -> str | None:
    """Check that the results of a subject can be stored.

    Returns:
        A warning if class moments were reduced to fit the memory limit, else None.

    Raises:
        UsageError: If they cannot be stored.
    """
    for name in subject.splits:
        require_split_name(name)
    if storage.dtype == "float64" and subject.device.type == "mps":
        raise UsageError("`dtype='float64'`: not supported by MPS; add `device='cpu'`, or use float32")
    with torch.no_grad():
        classes, features = subject.head.parameters(subject.model)[0].shape
    if isinstance(subject.head, Backbone):
        classes = max(1, subject.data.classes)
    elif subject.head.shows_logits and not storage.with_logits and not is_scored(subject.head, classes):
        raise UsageError(
            f"the model's logits are {subject.head.reading}, so that features and weights do not give its loss: they "
            "have to be stored"
        )
    return storage.require_fitting(classes, features, positions=is_scored(subject.head, classes))


def choose_rows(rows: int, most: int | None, seed: int) -> Tensor | None:
    """Draw a uniform sample of row indices without replacement.

    Args:
        rows: Number of rows to draw from.
        most: Largest number of rows in the sample; None for no limit.
        seed: Seed of the draw.

    Returns:
        Indices in ascending order, shape (most,), or None if all rows are taken.
    """
    if most is None or rows <= most:
        return None
    indices = np.random.default_rng(seed).choice(rows, most, replace=False, shuffle=False)
    return torch.from_numpy(np.sort(indices))


def _moments(classes: int, memory: int, labelled: bool) -> Moments:
    return Moments(classes if labelled else None, memory=memory, only=None if labelled else ["sample", "spectrum"])


def _take_rows(scores: Tensor | Scored | None, rows: Tensor) -> Tensor | Scored | None:
    if isinstance(scores, Scored):
        return scores.rows(rows)
    return None if scores is None else scores[rows]
