"""A large split in ranges of rows, each a task of its own: what they find is added up in the order of the rows."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from ckpt_probe.analysis.readings.nearest import Counts, NearestMeans, Predictions
from ckpt_probe.analysis.readings.passes import Blocks, Seen, first_pass, second_pass
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.dumps import Dump, Pass, SplitView, open_dump
from ckpt_probe.errors import DataError
from ckpt_probe.moments.quality import Head, Quality
from ckpt_probe.progress import Progress
from ckpt_probe.scheduling import Team, in_turn, results

R = TypeVar("R")


@dataclass(frozen=True)
class Range:
    """Rows of a split, from `start` up to `stop`."""

    dump: Path
    split: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.dump.name}: {self.split}: rows {self.start} to {self.stop - 1}"


@dataclass(frozen=True)
class Part:
    """What the first pass over a range leaves: moments, numbers of `Quality`, and whether anything predicts."""

    moments: dict[str, Tensor]
    quality: dict[str, float]
    predicted: bool


@dataclass(frozen=True)
class Ranges:
    """Splits of more than `rows` rows, worked at by a team in ranges of so many.

    Their records are the same for any team, and those of the whole split up to rounding.
    """

    rows: int
    team: Team
    progress: Progress

    def divides(self, view: SplitView) -> bool:
        """Whether a split is worked at in ranges."""
        return view.features is not None and view.labelled and view.samples > self.rows

    def first_pass(self, dump: Dump, view: SplitView, settings: Settings, at_once: int) -> Seen:
        """As `passes.first_pass` over all rows; of predictions only whether there are any. Errors as there."""
        moments = settings.moments(None if dump.weights is None else len(dump.weights))
        quality, predictions = Quality(), Predictions(Head.of(dump.weights, dump.bias), 0)
        for part in self._each(dump, view, partial(_first, settings, at_once), "first pass"):
            found = settings.moments(moments.classes)
            found.load(part.moments)
            moments.merge(found)
            quality.merge(Quality.from_numbers(part.quality))
            predictions.any = predictions.any or part.predicted
        return Seen(moments, quality, predictions)

    def second_pass(
        self, dump: Dump, view: SplitView, at_once: int, class_means: Tensor, confusion: bool
    ) -> NearestMeans:
        """As `passes.second_pass` over all rows."""
        nearest = NearestMeans(class_means, confusion=confusion)
        for counts in self._each(dump, view, partial(_second, class_means, confusion, at_once), "nearest class means"):
            nearest.add(counts)
        return nearest

    def _each(self, dump: Dump, view: SplitView, work: Callable[[Range], R], told: str) -> Iterator[R]:
        ends = range(0, view.samples, self.rows)
        parts = [Range(dump.path, view.name, start, min(start + self.rows, view.samples)) for start in ends]
        say, names = self.progress.message, [str(part) for part in parts]
        with (
            self.progress.task(f"{dump.name} {view.name}: {told}", len(parts), "ranges") as bar,
            closing(results(work, parts, names=names, workers=self.team, say=say)) as ready,
        ):
            for result in in_turn(ready):
                bar.advance()
                yield result


def _first(settings: Settings, at_once: int, part: Range) -> Part:
    with open_dump(part.dump) as dump:
        moments, quality, predictions = _told(
            part, lambda: first_pass(_blocks(dump, part, at_once), dump.weights, dump.bias, settings)
        )
        return Part(moments.state_dict(), quality.to_numbers(), predictions.any)


def _second(class_means: Tensor, confusion: bool, at_once: int, part: Range) -> Counts:
    with open_dump(part.dump) as dump:
        predictions = Predictions(Head.of(dump.weights, dump.bias), 0)
        blocks = _blocks(dump, part, at_once)
        return _told(part, lambda: second_pass(blocks, predictions, class_means, confusion).counts())


def _blocks(dump: Dump, part: Range, at_once: int) -> Blocks:
    return Pass(dump[part.split], at_once, part.start, part.stop)


def _told(part: Range, work: Callable[[], R]) -> R:
    """What some work gives; its error says of which rows it is, as it counts from the first of them."""
    try:
        return work()
    except DataError as error:
        counted = f" (counted from row {part.start})" if part.start else ""
        raise DataError(f"{part.dump}: {part.split}: {error}{counted}") from error
