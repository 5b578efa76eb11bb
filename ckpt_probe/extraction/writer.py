"""Write the blocks of forward passes to a dump: rows, class moments or both, of every layer that is stored."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.data import LEFT_OUT
from ckpt_probe.dumps import PENULTIMATE, DumpWriter, Provenance, as_stored
from ckpt_probe.errors import DataError
from ckpt_probe.extraction.blocks import Block
from ckpt_probe.extraction.config import Storage
from ckpt_probe.extraction.plausibility import Tally
from ckpt_probe.metrics.rows import as_tensor
from ckpt_probe.models import Taps
from ckpt_probe.moments import Moments
from ckpt_probe.moments.documents import Documents
from ckpt_probe.moments.errors.subset import PREFIX, RowSubset
from ckpt_probe.moments.quality import Gathering, LinearHead, Scored

Scores = Literal["logits", "scored", "none"]
"""Arrays of a split beside its rows: logits, or prediction and loss of each row, or neither."""


@contextmanager
def store_writer(
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
) -> "Iterator[StoreWriter]":
    """Write one dump within the `with` block, first its classifier; an error leaves no file.

        with store_writer(path, provenance, storage, weights, bias) as writer:
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
    count, width, dtype = len(weights) or classes or 0, weights.shape[1], storage.feature_dtype
    with DumpWriter(path, provenance, classes=count, features=width, feature_dtype=dtype, overwrite=overwrite) as dump:
        if len(weights):
            dump.write_classifier(weights, bias)
        if names := (class_names or ())[:count]:
            dump.write_class_names(names)
        yield StoreWriter(dump, storage, count, weights, bias, taps or Taps())


@dataclass
class StoreWriter:
    """Write the rows of each split of a dump, their class moments, or both.

    Moments are computed from features rounded to the stored precision, of all rows, so that both kinds of dump give
    the same numbers.

    Attributes:
        dump: The dump.
        storage: Contents of the dump.
        classes: Number of classes.
        weights: Weights of the classifier, shape (C, D); C is 0 without a classifier.
        bias: Bias of the classifier, shape (C,), if it has one.
        taps: Layers whose rows are stored beside the classifier's input.
        stored: Number of stored rows of each split.
    """

    dump: DumpWriter
    storage: Storage
    classes: int
    weights: Tensor
    bias: Tensor | None
    taps: Taps
    stored: dict[str, int] = field(default_factory=dict)

    def write_split(
        self,
        name: str,
        blocks: Iterable[Block],
        *,
        rows: int | None = None,
        scores: Scores = "logits",
        labelled: bool = True,
        chosen: Tensor | None = None,
    ) -> Tally:
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

        Returns:
            The counted predictions.

        Raises:
            DataError: If the number of rows is unknown and no row comes, or as in `DumpWriter.append`.
        """
        storage, tally = self.storage, Tally()
        # The first block has what all of them have.
        blocks = iter(blocks)
        first = next(blocks, None)
        documents, positions = (None, None) if first is None else (first.documents, first.positions)
        if storage.store != "moments":
            self.dump.start_split(
                name,
                rows if chosen is None else None,
                logits=scores == "logits",
                scored=scores == "scored",
                labelled=labelled,
                documents=documents is not None,
                positions=positions is not None,
            )
        by_document = positions is not None and (chosen is not None or storage.store != "features")
        computes_logits = storage.store != "features" and labelled and scores == "none" and len(self.weights)
        head = LinearHead.of(self.weights, self.bias) if computes_logits else None
        group = self._group(name, storage.store, storage.memory, labelled, by_document, head)
        group.chosen = chosen
        layers = self._start_layers(name, labelled, positions is not None) if self.taps.layers else {}
        for block in () if first is None else chain([first], blocks):
            _count_predictions(block, tally)
            group.append(block, scores=scores)
            for layer, features in block.layers.items():
                layers[layer].append(replace(block, features=features))
        if not group.seen and rows is None:
            raise DataError(f"split {name}: no row: every label is {LEFT_OUT}, or there is no sample")
        group.finish(with_quality=True)
        self.stored[name] = group.stored
        if rows is not None and rows != group.seen:
            self.dump.leave_out(name, rows - group.seen)
        if chosen is not None and storage.store != "moments":
            self.dump.count_not_stored(name, group.seen - group.stored)
        for layer in layers.values():
            layer.finish()
        arrays = {array.removeprefix(PREFIX): values for array, values in group.subset.state().items()}
        # Without moments of the split, halves are those of the moments of its layers.
        if storage.store == "features" and storage.layer_store != "features":
            arrays["halves"] = next((layer.subset.halves for layer in layers.values()), arrays["halves"])
        features = {layer: written.subset.features for layer, written in layers.items()}
        self.dump.write_subset(name, arrays, group.subset.seed, features)
        return tally

    def _start_layers(self, split: str, labelled: bool, positions: bool) -> "dict[str, _GroupWriter]":
        """Create the tapped layers of a split; return their writers by layer."""
        # Each layer has an equal share of the memory.
        storage, memory = self.storage, self.storage.memory // len(self.taps.layers)
        layers: dict[str, _GroupWriter] = {}
        for tap in self.taps.layers:
            width = tap.width if storage.layer_store != "moments" else None
            name = self.dump.start_layer(
                split, tap.layer, depth=tap.depth, pooling=tap.pooling, labelled=labelled, width=width
            )
            by_document = positions and storage.layer_store != "features"
            layers[tap.layer] = self._group(name, storage.layer_store, memory, labelled, by_document)
        self.dump.start_layer(split, PENULTIMATE, depth=1.0, pooling="features")
        return layers

    def _group(
        self, name: str, store: str, memory: int, labelled: bool, by_document: bool, head: LinearHead | None = None
    ) -> "_GroupWriter":
        """Return the writer of a split or a layer; `head` computes accuracy and loss where no scores are stored."""
        storage, gathering = self.storage, None
        subset: RowSubset | None = None
        if store != "features":
            moments = Moments(
                self.classes if labelled else None,
                memory=memory,
                only=None if labelled else ["sample", "spectrum"],
                halves=True,
                subset=storage.subset_rows,
                seed=storage.subset_seed,
            )
            gathering, subset = Gathering(moments, head), moments.subset
        subset = RowSubset(storage.subset_rows, storage.subset_seed) if subset is None else subset
        documents = Documents(memory) if by_document else None
        return _GroupWriter(self.dump, name, gathering, store != "moments", labelled, subset, documents)

    def write_sample_names(self, name: str, names: Sequence[str], chosen: Tensor | None = None) -> None:
        """Write the names of the samples of a split, each of which has one row; see `write_split` for `chosen`."""
        of_rows = names if chosen is None else [names[int(row)] for row in chosen.tolist() if row < len(names)]
        if self.storage.store != "moments" and len(of_rows) == self.stored[name]:
            self.dump.write_sample_names(name, of_rows)


@dataclass
class _GroupWriter:
    """Write the rows, the class moments, or both, of one split or of one layer of it.

    Attributes:
        dump: The dump.
        name: Name of the split, or of the group of the layer.
        gathering: Class moments, accuracy and loss; None if only rows are stored.
        stores_rows: Whether rows are stored.
        labelled: Whether rows have labels.
        subset: The fixed subset of rows; that of the moments if there are any.
        documents: Computes the numbers of each document, or None.
        chosen: Indices of the rows that are stored, in ascending order; None for all of them.
        seen: Number of rows so far.
        stored: Number of those that are chosen.
    """

    dump: DumpWriter
    name: str
    gathering: Gathering | None
    stores_rows: bool
    labelled: bool
    subset: RowSubset
    documents: Documents | None = None
    chosen: Tensor | None = None
    seen: int = 0
    stored: int = 0

    def append(self, block: Block, *, scores: Scores = "none") -> None:
        """Add rows, with scores unless they are "none"."""
        known = None if scores == "none" else block.scores
        arrays = (block.features, block.labels, known, block.documents, block.positions)
        count, chosen = len(block.labels), None
        if self.chosen is not None:
            start, stop = torch.searchsorted(self.chosen, torch.tensor([self.seen, self.seen + count])).tolist()
            chosen = self.chosen[start:stop] - self.seen
        if self.stores_rows and chosen is None:
            rounded = self.dump.append(self.name, *arrays)
        else:
            if self.stores_rows and chosen is not None and len(chosen):
                self.dump.append(self.name, *(_take_rows(array, chosen) for array in arrays))
            rounded = as_stored(block.features, self.dump.feature_dtype, f"{self.dump.path}: {self.name}")
        rows = torch.from_numpy(rounded)
        labels = block.labels.cpu() if self.labelled else torch.zeros(count, dtype=torch.int64)
        if self.gathering is None:
            indices = torch.arange(self.seen, self.seen + count)
            self.subset.update(rows, labels, indices, torch.zeros_like(labels), block.documents)
        else:
            scored = known.float() if isinstance(known, Tensor) else known
            self.gathering.add(rows, labels, scored if self.labelled else None, block.documents)
        if self.documents is not None and block.documents is not None and block.positions is not None:
            self.documents.update(rows, block.documents, block.positions)
        self.seen += count
        self.stored += count if chosen is None else len(chosen)

    def finish(self, *, with_quality: bool = False) -> None:
        """Write the moments after the last row, with accuracy and loss if `with_quality`."""
        if self.documents is not None:
            numbers = self.documents.finish()
            self.dump.write_documents(self.name, numbers.values, numbers.oversized)
        if self.gathering is None:
            return
        self.gathering.finish()
        moments = self.gathering.moments
        numbers = {"samples": moments.samples, **(self.gathering.quality.to_numbers() if with_quality else {})}
        if moments.samples or with_quality:
            self.dump.write_moments(self.name, moments.state_dict(), numbers, labelled=self.labelled)


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


def _count_predictions(block: Block, tally: Tally) -> None:
    """Add the predictions of a block to a tally; blocks without scores or labels do not count."""
    scores, known = block.scores, block.labels >= 0
    if scores is None or not bool(known.any()):
        return
    predictions = scores.argmax(1) if isinstance(scores, Tensor) else as_tensor(scores.prediction, "rows")
    tally.right += int((predictions == block.labels)[known].sum())
    counts = torch.bincount(block.labels[known], minlength=len(tally.per_class))
    counts[: len(tally.per_class)] += torch.tensor(tally.per_class, dtype=torch.int64)
    tally.per_class = tuple(counts.tolist())


def _take_rows(array: Tensor | Scored | None, rows: Tensor) -> Any:
    if isinstance(array, Scored):
        return array.rows(rows)
    return None if array is None else array[rows]
