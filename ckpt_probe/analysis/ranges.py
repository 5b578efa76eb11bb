"""Share a split among workers, who make both passes over ranges of its rows; results are added in order of the rows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ckpt_probe.analysis.context import ROWS_AT_ONCE as DOCUMENT_ROWS
from ckpt_probe.analysis.context import numbers_of_rows
from ckpt_probe.analysis.nearest import NearestCounts, Predictions, count_nearest
from ckpt_probe.analysis.record import FirstPass, accumulate
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.dumps import Dump, Pass, SplitView, open_dump
from ckpt_probe.errors import DataError
from ckpt_probe.moments.documents import DocumentNumbers, joined_documents
from ckpt_probe.moments.quality import LinearHead, Quality
from ckpt_probe.progress import Progress
from ckpt_probe.scheduling import Team, in_turn, results


@dataclass(frozen=True)
class Range:
    """Rows of a split, from `start` up to `stop`, that are read `at_once` at a time."""

    dump: Path
    split: str
    start: int
    stop: int
    at_once: int

    def __str__(self) -> str:
        return f"{self.dump.name}: {self.split}: rows {self.start} to {self.stop - 1}"

    def blocks(self, dump: Dump) -> Pass:
        """Return a pass over the rows of the range."""
        return Pass(dump[self.split], self.at_once, self.start, self.stop)


@dataclass(frozen=True)
class SharedSplits:
    """Makes the two passes over splits of more than `rows` rows in ranges of `rows` rows.

    The records do not depend on the workers; they are those of the undivided split up to rounding.

    Attributes:
        rows: Rows per range.
        team: The workers.
        progress: Receives messages and bars.
    """

    rows: int
    team: Team
    progress: Progress

    def contains(self, view: SplitView) -> bool:
        """Return whether a split is divided into ranges."""
        return view.features is not None and view.labelled and view.samples > self.rows

    def accumulate(self, dump: Dump, view: SplitView, settings: Settings, at_once: int) -> FirstPass:
        """Make the first pass.

        Raises:
            DataError: As `record.accumulate`, with the range.
        """
        moments = settings.moments(None if dump.weights is None else len(dump.weights))
        quality, predicted = Quality(), dump.weights is not None
        for state, numbers, available in self._map(partial(_accumulate, settings), dump, view, at_once, "first pass"):
            part = settings.moments(moments.classes)
            part.load_state_dict(state)
            moments.merge(part)
            quality.merge(Quality.from_numbers(numbers))
            predicted = predicted or available
        return FirstPass(moments, quality, predicted, partial(self._count_nearest, dump, view, at_once))

    def _count_nearest(
        self, dump: Dump, view: SplitView, at_once: int, class_means: Sequence[Tensor], confusion: bool
    ) -> list[NearestCounts]:
        """Make the second pass."""
        work = partial(_count_nearest, class_means, confusion)
        first, *others = self._map(work, dump, view, at_once, "nearest class means")
        for part in others:
            for counts, more in zip(first, part, strict=True):
                counts.add(more)
        return first

    def documents(self, dump: Dump, view: SplitView, settings: Settings) -> DocumentNumbers:
        """Compute the numbers of documents in ranges that begin with a document."""
        indices = view.read(view.documents, slice(None))
        starts = sorted({int(np.searchsorted(indices, indices[start])) for start in self._starts(view)})
        work = partial(_documents, settings.memory)
        return joined_documents(list(self._map(work, dump, view, DOCUMENT_ROWS, "documents", starts)))

    def _starts(self, view: SplitView) -> list[int]:
        return list(range(0, view.samples, self.rows))

    def _map(
        self,
        work: Callable[[Dump, Range], Any],
        dump: Dump,
        view: SplitView,
        at_once: int,
        description: str,
        starts: list[int] | None = None,
    ) -> Iterator[Any]:
        starts = starts or self._starts(view)
        stops = [*starts[1:], view.samples]
        ranges = [Range(dump.path, view.name, *ends, at_once) for ends in zip(starts, stops, strict=True)]
        names, say = [str(each) for each in ranges], self.progress.message
        with (
            self.progress.task(f"{dump.name} {view.name}: {description}", len(ranges), "ranges") as bar,
            closing(results(partial(_of_range, work), ranges, names=names, workers=self.team, say=say)) as parts,
        ):
            for part in in_turn(parts):
                bar.advance()
                yield part


def _of_range(work: Callable[[Dump, Range], Any], part: Range) -> Any:
    """Return the result of a range of an opened dump; add the range to an error."""
    with open_dump(part.dump) as dump:
        try:
            return work(dump, part)
        except DataError as error:
            # Rows are counted from the start of the range.
            counted = f" (counted from row {part.start})" if part.start else ""
            raise DataError(f"{part.dump}: {part.split}: {error}{counted}") from error


def _accumulate(settings: Settings, dump: Dump, part: Range) -> tuple[dict[str, Tensor], dict[str, Any], bool]:
    """Make the first pass over a range: state of the moments, numbers of the quality, whether anything predicts."""
    view = dump[part.split]
    before = view.read(view.labels, slice(0, part.start)) if settings.errors else None
    first = accumulate(part.blocks(dump), dump.weights, dump.bias, settings, before)
    assert first.quality is not None
    return first.moments.state_dict(), first.quality.to_numbers(), first.predicted


def _documents(memory: int, dump: Dump, part: Range) -> DocumentNumbers:
    view = dump[part.split]
    return numbers_of_rows(view, view, memory, part.start, part.stop, part.at_once)


def _count_nearest(class_means: Sequence[Tensor], confusion: bool, dump: Dump, part: Range) -> list[NearestCounts]:
    predictions = Predictions(LinearHead.of(dump.weights, dump.bias))
    return count_nearest(part.blocks(dump), class_means, predictions, confusion=confusion)
