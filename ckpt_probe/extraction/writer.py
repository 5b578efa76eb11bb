"""Write the blocks of a forward pass to a dump: rows, class moments or both, in a background thread."""

import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.data import LEFT_OUT
from ckpt_probe.dumps import PENULTIMATE, DumpWriter, Provenance, as_stored
from ckpt_probe.errors import DataError
from ckpt_probe.extraction.forward import Block
from ckpt_probe.extraction.setup import Storage
from ckpt_probe.metrics.arrays import as_tensor
from ckpt_probe.models import Taps
from ckpt_probe.moments import Moments
from ckpt_probe.moments.grouping import Subset
from ckpt_probe.moments.quality import Gathering, LinearHead, Scored

WAITING_BLOCKS = 8
"""Largest number of actions that wait for the writer's thread."""

W = TypeVar("W")


class _Abandoned(Exception):
    """Raised in the writer's thread to make it leave the dump unfinished, which removes the file."""


class BackgroundWriter(Generic[W]):
    """Run actions on a writer in one background thread, in order and at most a few blocks behind.

    The forward pass thus computes while the disk is busy. The writer is opened, used and closed by its thread alone. An
    error of the writer is raised by the next `submit` or at the end of the `with`; an error inside the `with` makes the
    writer abandon the dump, so that no unfinished file remains.

    Args:
        open_writer: Function that returns the writer as a context manager.
    """

    def __init__(self, open_writer: Callable[[], AbstractContextManager[W]]) -> None:
        self._open = open_writer
        self._actions: queue.Queue[Callable[[W], None] | None] = queue.Queue(maxsize=WAITING_BLOCKS)
        self._abandoned = threading.Event()
        self._ended = False
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="dump writer", daemon=True)

    def __enter__(self) -> "BackgroundWriter[W]":
        self._thread.start()
        return self

    def submit(self, action: Callable[[W], None]) -> None:
        """Add an action on the open writer to the queue; block while too many are waiting."""
        self._raise_error()
        self._actions.put(action)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._abandoned.set()
        try:
            self._end()
        except KeyboardInterrupt:
            # HDF5 crashes if the process ends while it writes. A second Ctrl-C ends this wait.
            self._abandoned.set()
            self._end()
            raise
        if error is None:
            self._raise_error()

    def _end(self) -> None:
        self._actions.put(None)
        # A join interrupted by Ctrl-C marks the thread as ended (CPython issue 90882): a second join would not wait.
        self._done.wait()
        self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._write()
        finally:
            self._done.set()

    def _write(self) -> None:
        # Sums of moments may be most of the work; the thread that prepares batches sets a lower number of threads.
        torch.set_num_threads(self._threads)
        try:
            with self._open() as writer:
                while (action := self._next()) is not None:
                    action(writer)
                if self._abandoned.is_set():
                    raise _Abandoned
        except _Abandoned:
            pass
        except BaseException as error:  # raised again in the thread that entered the `with`
            self._error = error
        # Empty the queue, so that the other thread does not block on it.
        while not self._ended:
            self._next()

    def _next(self) -> Callable[[W], None] | None:
        action = self._actions.get()
        self._ended = action is None
        return action


@dataclass(frozen=True)
class SplitPlan:
    """Contents of the rows of a split.

    Attributes:
        scores: "logits", "scored" (prediction and loss) or "none".
        labelled: Whether rows have labels.
        chosen: Indices of the rows that are stored, in ascending order; None for all of them.
    """

    scores: str = "logits"
    labelled: bool = True
    chosen: Tensor | None = None


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


class StoreWriter:
    """Write the rows of each split to a dump, their class moments, or both.

    Moments are computed from features rounded to the stored precision, of all rows, so that both kinds of dump give
    the same numbers. The object is a context manager that opens and closes the dump.

    Args:
        writer: Dump to write to.
        storage: Contents of the dump.
        classes: Number of classes, if no classifier is written.
        taps: Layers whose rows are stored beside the classifier's input.
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
        """Write the classifier's weights (C, D) and bias (C,)."""
        self._head, self._classes = (weights, bias), len(weights)
        self._writer.write_classifier(weights, bias)

    def write_class_names(self, names: Sequence[str]) -> None:
        """Write the names of the first classes."""
        self._writer.write_class_names(names)

    def start_split(self, name: str, samples: int | None = None, plan: SplitPlan | None = None) -> None:
        """Start a split.

        Without scores, accuracy and loss are computed from the classifier's weights.

        Args:
            name: Name of the split.
            samples: Number of rows that will be appended, if it is known.
            plan: Contents of the rows.
        """
        self._plan = plan = plan or SplitPlan()
        self._seen = 0
        if self._store != "features":
            head = (
                LinearHead.of(*self._head)
                if self._head is not None and plan.scores == "none" and plan.labelled
                else None
            )
            only = None if plan.labelled else ["sample"]
            classes = self._classes if plan.labelled else None
            self._gathering = Gathering(Moments(classes, memory=self._memory, only=only), head)
        if self._store != "moments":
            announced = samples if plan.chosen is None else None
            scores = {"logits": plan.scores == "logits", "scored": plan.scores == "scored"}
            self._writer.start_split(name, announced, **scores, labelled=plan.labelled)
        self._layers = _LayerWriter(
            self._writer, self._storage, self._taps, name, self._classes, labelled=plan.labelled
        )

    def append(
        self,
        name: str,
        features: Tensor,
        labels: Tensor,
        scores: Tensor | Scored | None,
        layers: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add a block of rows to a split.

        Args:
            name: Name of the split.
            features: Inputs of the classifier, shape (n, D).
            labels: Class indices, shape (n,).
            scores: Logits (n, C), or prediction and loss of each row, or None.
            layers: Rows of the tapped layers by name, shape (n, D) each.
        """
        scores = None if self._plan.scores == "none" else scores
        if self._store != "moments":
            self._append_chosen(name, features, labels, scores)
        if self._store != "features":
            stored = torch.from_numpy(as_stored(features, self._dtype, f"{self._writer.path}: {name}"))
            counted = labels if self._plan.labelled else torch.zeros_like(labels)
            known = scores if self._plan.labelled else None
            self._gathering.add(stored, counted, known.float() if isinstance(known, Tensor) else known)
        self._layers.append(features, labels, layers or {})

    def finish_split(self, name: str, *, left_out: int = 0) -> None:
        """Write the moments of a split after its last row.

        Args:
            name: Name of the split.
            left_out: Number of announced rows whose samples could not be read.
        """
        if self._store != "features":
            self._gathering.finish()
            moments, quality = self._gathering.moments, self._gathering.quality
            numbers = {"samples": moments.samples, **quality.to_numbers()}
            self._writer.write_moments(name, moments.state_dict(), numbers, labelled=self._plan.labelled)
        self._writer.leave_out(name, left_out)
        if self._plan.chosen is not None and self._store != "moments":
            self._writer.count_not_stored(name, self._seen - self._chosen_range(0, self._seen)[1])
        self._layers.finish()

    def _append_chosen(self, name: str, features: Tensor, labels: Tensor, scores: Tensor | Scored | None) -> None:
        before, self._seen = self._seen, self._seen + len(labels)
        if self._plan.chosen is None:
            self._writer.append(name, features, labels, scores)
            return
        start, stop = self._chosen_range(before, self._seen)
        if stop > start:
            rows = self._plan.chosen[start:stop] - before
            self._writer.append(name, features[rows], labels[rows], _take_rows(scores, rows))

    def _chosen_range(self, first: int, end: int) -> tuple[int, int]:
        """Return the range of positions in `chosen` whose rows lie in [first, end)."""
        assert self._plan.chosen is not None
        start, stop = torch.searchsorted(self._plan.chosen, torch.tensor([first, end])).tolist()
        return start, stop


class _LayerWriter:
    """Write moments or rows of every tapped layer of one split, and one subset of rows of all layers.

    The moments of each layer may take an equal share of the memory limit. Without taps nothing is written.

    Args:
        labelled: Whether rows have labels; otherwise all rows count as one class.
    """

    def __init__(
        self,
        writer: DumpWriter,
        storage: Storage,
        taps: Taps,
        split: str,
        classes: int | None,
        *,
        labelled: bool,
    ) -> None:
        self._writer = writer
        self._storage = storage
        self._taps = taps
        self._split = split
        self._labelled = labelled
        self._subset = Subset(storage.similarity_rows, storage.similarity_seed)
        self._groups: dict[str, str] = {}
        self._gathered: dict[str, Gathering] = {}
        for tap in taps.layers:
            width = tap.width if storage.layer_store != "moments" else None
            self._groups[tap.layer] = writer.start_layer(
                split, tap.layer, depth=tap.depth, pooling=tap.pooling, labelled=labelled, width=width
            )
            if storage.layer_store != "features":
                share = storage.memory // len(taps.layers)
                moments = Moments(classes if labelled else None, memory=share, only=None if labelled else ["sample"])
                self._gathered[tap.layer] = Gathering(moments)
        if taps.layers:
            writer.start_layer(split, PENULTIMATE, depth=1.0, pooling="features")

    def append(self, features: Tensor, labels: Tensor, layers: Mapping[str, Tensor]) -> None:
        """Add a block: the classifier's input (n, D), labels (n,), and the rows of each tap."""
        if not self._taps.layers:
            return
        counted = labels if self._labelled else torch.zeros_like(labels)
        for layer, rows in layers.items():
            group = self._groups[layer]
            if self._storage.layer_store != "moments":
                self._writer.append(group, rows, labels)
            if layer in self._gathered:
                stored = as_stored(rows, self._storage.feature_dtype, f"{self._writer.path}: {group}")
                self._gathered[layer].add(torch.from_numpy(stored), counted)
        self._subset.update(len(labels), {**layers, PENULTIMATE: features})

    def finish(self) -> None:
        """Write the moments and the subset after the last row."""
        if not self._taps.layers:
            return
        for layer, gathering in self._gathered.items():
            gathering.finish()
            moments = gathering.moments
            if moments.samples:
                numbers = {"samples": moments.samples}
                self._writer.write_moments(self._groups[layer], moments.state_dict(), numbers, labelled=self._labelled)
        self._writer.write_similarity(self._split, self._subset.indices, self._subset.seed, self._subset.rows)


def open_background_writer(
    path: Path,
    provenance: Provenance | None,
    parameters: tuple[Tensor, Tensor | None],
    storage: Storage,
    *,
    taps: Taps,
    overwrite: bool,
    names: Sequence[str] | None = None,
    classes: int | None = None,
) -> BackgroundWriter[StoreWriter]:
    """Return a background writer of a dump that starts with the classifier and the names of its classes.

    Args:
        path: File to write.
        provenance: Origin of the numbers, if it is known.
        parameters: Weights (C, D) and bias (C,) of the classifier; C is 0 without one.
        storage: Contents of the dump.
        taps: Layers whose rows are stored.
        overwrite: Whether to replace an existing file.
        names: Names of the classes.
        classes: Number of classes in the data; used if there is no classifier.
    """
    weights, bias = parameters
    number, features = len(weights) or classes or 0, weights.shape[1]
    dtype = storage.feature_dtype
    dump = DumpWriter(path, provenance, classes=number, features=features, feature_dtype=dtype, overwrite=overwrite)
    background = BackgroundWriter(lambda: StoreWriter(dump, storage, number, taps))
    if len(weights):
        background.submit(lambda writer: writer.write_classifier(weights, bias))
    if names:
        background.submit(lambda writer: writer.write_class_names(names[:number]))
    return background


def write_split(
    background: BackgroundWriter[StoreWriter], name: str, count: int | None, blocks: Iterable[Block], plan: SplitPlan
) -> None:
    """Write all blocks of a split.

    Args:
        background: Writer of the dump.
        name: Name of the split.
        count: Number of rows, if it is known; if fewer arrive, the others count as unreadable.
        blocks: Blocks of rows.
        plan: Contents of the rows.

    Raises:
        DataError: If the number of rows is unknown and there is none.
    """

    def append(block: Block) -> None:
        background.submit(lambda writer: writer.append(name, block.features, block.labels, block.scores, block.layers))

    background.submit(lambda writer: writer.start_split(name, count, plan))
    rows = 0
    for block in blocks:
        append(block)
        rows += len(block.labels)
    if not rows and count is None:
        raise DataError(f"split {name}: no row: every label is {LEFT_OUT}, or there is no sample")
    left_out = 0 if count is None else count - rows
    background.submit(lambda writer: writer.finish_split(name, left_out=left_out))


def _take_rows(scores: Tensor | Scored | None, rows: Tensor) -> Tensor | Scored | None:
    if isinstance(scores, Scored):
        return Scored(as_tensor(scores.prediction, "predictions")[rows], as_tensor(scores.loss, "losses")[rows])
    return None if scores is None else scores[rows]
