"""Dumps → readings: one for each checkpoint and split, streamed, by several processes where asked for."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ckpt_probe.analysis.cache import Cache, Entry, folder_of
from ckpt_probe.analysis.collection import Records
from ckpt_probe.analysis.entries import NOT_STORED
from ckpt_probe.analysis.naming import named_rows
from ckpt_probe.analysis.readings.layers import layer_reading, with_depths
from ckpt_probe.analysis.readings.others import against_first, mean_outside, outside_of
from ckpt_probe.analysis.readings.ranges import Ranges
from ckpt_probe.analysis.readings.records import Record, in_order, read_blocks, read_moments
from ckpt_probe.analysis.readings.unlabelled import read_unlabelled
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.dumps import PENULTIMATE, Dump, LayerView, Pass, SplitView, open_dump, open_dump_series
from ckpt_probe.errors import DataError
from ckpt_probe.files import content_hash
from ckpt_probe.moments.quality import Quality
from ckpt_probe.moments.record import Reading
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.scheduling import Busy, Team, UnclaimedError, Workers, claimed, in_turn, remove_abandoned, results
from ckpt_probe.series import Member

BLOCK_BYTES = 2**20, 16 * 2**20
"""Fewest and most bytes of a block of rows, as float64; between them a sixteenth of the memory budget."""


def analyze_series(
    path: Path | str,
    *,
    splits: Sequence[str] | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    rows_per_task: int | None = None,
    cache: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Records:
    """Records of every dump at `path`, one file or a directory, in the order of their steps.

    Each is computed when it is first needed. options: those of `Settings`. workers: number of processes, each of which
    analyzes one dump at a time; the records are bit for bit the same for any number. scheduler: the address of a Dask
    cluster that does it instead. rows_per_task: a split of more rows is worked at in ranges of so many, one task each,
    so that several workers share one dump; its numbers are those of the whole up to rounding. cache: keep the records
    in a hidden folder beside the dumps, and read them from there if neither dump nor options have changed; processes
    that analyze the same dumps at the same time then share the work. Raises DataError, naming file, split and row, if a
    dump cannot be read or contains invalid values.
    """
    settings, staff = Settings(**options), Workers(workers, scheduler)
    how: dict[str, Any] = {"rows_per_task": rows_per_task, "cache": cache, "progress": progress}
    found = read_series(path, settings, splits=splits, workers=staff, **how)
    return Records(reading.record for reading in found)


def analyze_dump(path: Path | str, *, splits: Sequence[str] | None = None, **options: Any) -> Records:
    """Records of one dump, one for each split (or each of `splits`), and layer; options, errors as `analyze_series`."""
    task = _Task(None, splits, Settings(**options))
    with open_dump(path) as dump:
        return Records(reading.record for reading in task.readings(dump))


def read_series(
    path: Path | str,
    settings: Settings,
    *,
    splits: Sequence[str] | None = None,
    workers: Workers | None = None,
    rows_per_task: int | None = None,
    cache: bool = False,
    progress: Progress | None = None,
) -> Iterator[Reading]:
    """Readings of every dump at `path`: records, and per class and spectra where `settings` ask for them.

    Arguments, order and errors as `analyze_series`; spectra are numpy arrays.
    """
    progress = progress or NullProgress()
    members = open_dump_series(path)
    task = _Task(Cache.of(settings, splits) if cache else None, splits, settings)
    found, notes = 0, []
    with (
        progress.task("dumps", len(members), "dumps") as bar,
        closing(_results(task, members, workers or Workers(), rows_per_task, progress)) as found_so_far,
    ):
        first: dict[Any, Record] = {}
        for done in in_turn(found_so_far):
            found += done.cached
            notes += [done.note] if done.note and done.note not in notes else []
            compared = "centred" in settings.families and len(members) > 1
            for one in done.readings:
                last = one.record.get("layer", PENULTIMATE) == PENULTIMATE
                yield against_first(one, first) if compared and last else one
            bar.advance()
    for folder in {folder_of(member.path) for member in members} if cache else ():
        remove_abandoned(folder)
    if found:
        progress.message(f"{found} of {len(members)} dumps were read from the cache; --no-cache recomputes them")
    for note in notes:
        progress.message(note)


def _results(
    task: "_Task", members: Sequence[Member], workers: Workers, rows: int | None, progress: Progress
) -> Generator[tuple[int, "_Done"], None, None]:
    """What each dump gives, by its place: first those that all workers share, then the others, one to a worker."""
    large = [] if rows is None else [place for place, member in enumerate(members) if _rows_of(member) > rows]
    with Team(workers, progress.message) as team:
        shared = task if rows is None else replace(task, ranges=Ranges(rows, team, progress))
        yield from _worked(shared, members, large, Workers(), progress)
    small = [place for place in range(len(members)) if place not in set(large)]
    if small:
        yield from _worked(task, members, small, workers, progress)


def _rows_of(member: Member) -> int:
    with open_dump(member.path) as dump:
        return max((dump[split].samples for split in dump.splits), default=0)


def _worked(
    task: "_Task", members: Sequence[Member], places: Sequence[int], workers: Workers, progress: Progress
) -> Generator[tuple[int, "_Done"], None, None]:
    paths, names = [members[place].path for place in places], [members[place].name for place in places]
    with closing(results(task.run, paths, names=names, workers=workers, say=progress.message)) as found:
        for number, done in found:
            yield places[number], done


@dataclass(frozen=True)
class _Done:
    """What one dump gave, whether it came from the cache, and what to say about it."""

    readings: list[Reading]
    cached: bool = False
    note: str | None = None


@dataclass(frozen=True)
class _Task:
    """What is done with each dump, in this process or another."""

    cache: Cache | None
    splits: Sequence[str] | None
    settings: Settings
    ranges: Ranges | None = None

    def run(self, path: Path) -> _Done | Busy:
        with open_dump(path) as dump:
            if self.cache is None:
                return _Done(self.readings(dump))
            outside = outside_of(dump, self.settings.outside)
            content = content_hash(dump.path) + ("" if outside is None else content_hash(outside))
            entry = self.cache.entry_of(dump.path, content)
            if entry.readings is not None:
                return _Done(entry.readings, cached=True)
            return self._kept(dump, entry)

    def _kept(self, dump: Dump, entry: Entry) -> _Done | Busy:
        try:
            with claimed(entry.file) as claim:
                if isinstance(claim, Busy):
                    return claim
                # Another process may have finished it just before the claim.
                if (found := entry.found()) is not None:
                    return _Done(found, cached=True)
                readings = self.readings(dump)
                return _Done(readings, note=entry.keep(readings))
        except UnclaimedError as error:
            return _Done(self.readings(dump), note=f"the cache of records could not be written: {error}")

    def readings(self, dump: Dump) -> list[Reading]:
        """Those of a dump's splits, and of their layers."""
        splits = dict.fromkeys(self.splits or dump.splits)
        return [reading for split in splits for reading in _readings(dump, split, self.settings, self.ranges)]


def _readings(dump: Dump, split: str, settings: Settings, ranges: Ranges | None) -> list[Reading]:
    """One reading, or one of each layer where they are asked for and there are some."""
    view = dump[split]
    outside = mean_outside(outside_of(dump, settings.outside), view)
    try:
        if ranges is not None and ranges.divides(view):
            last = _of_ranges(dump, view, settings, outside, ranges)
        else:
            last = _whole(dump, view, settings, outside)
        others = [layer for layer in view.layers if layer.name != PENULTIMATE] if settings.layers else []
        if not others:
            return [_placed(last, dump, view, settings)]
        found = [_of_layer(dump, layer, settings, labelled=view.labelled) for layer in others]
    except DataError as error:
        raise DataError(f"{dump.path}: {split}: {error}") from error
    return [_placed(reading, dump, view, settings) for reading in with_depths(found, last, settings)]


def _whole(dump: Dump, view: SplitView, settings: Settings, outside: Tensor | None) -> Reading:
    if not view.labelled:
        return _of_unlabelled(view, settings)
    return (_of_moments if view.features is None else _of_features)(dump, view, settings, outside)


def _placed(reading: Reading, dump: Dump, view: SplitView, settings: Settings) -> Reading:
    """A reading with its place in the series, and of it what is asked for."""
    place = {"checkpoint": dump.name, "step": dump.step, "split": view.name}
    counted = {NOT_STORED: view.not_stored} if view.not_stored else {}
    return replace(
        reading,
        record=in_order({**place, **counted, **reading.record}),
        per_class=named_rows([{**place, **row} for row in reading.per_class], dump.class_names)
        if settings.per_class
        else [],
        spectra={name: values.numpy() for name, values in reading.spectra.items()} if settings.spectra else {},
        portrait=reading.portrait if settings.portrait else None,
    )


def _of_layer(dump: Dump, layer: LayerView, settings: Settings, *, labelled: bool) -> Reading:
    try:
        if labelled:
            return layer_reading(layer, dump.weights, settings, _rows_at_once(layer, settings))
        reading = _of_unlabelled(layer, settings)
    except DataError as error:
        raise DataError(f"layer {layer.name}: {error}") from error
    return replace(reading, record=in_order({"layer": layer.name, "depth": layer.depth, **reading.record}))


def _of_features(dump: Dump, view: SplitView, settings: Settings, outside: Tensor | None) -> Reading:
    rows = _rows_at_once(view, settings)
    return read_blocks(Pass(view, rows), dump.weights, dump.bias, settings, outside)


def _of_ranges(dump: Dump, view: SplitView, settings: Settings, outside: Tensor | None, ranges: Ranges) -> Reading:
    rows = _rows_at_once(view, settings)
    moments, quality, predictions = ranges.first_pass(dump, view, settings, rows)
    return read_moments(
        *(moments, quality, dump.weights, dump.bias),
        blocks=Pass(view, rows),
        predictions=predictions,
        settings=settings,
        outside=outside,
        second=partial(ranges.second_pass, dump, view, rows),
    )


def _of_unlabelled(view: SplitView, settings: Settings) -> Reading:
    if view.features is None:
        stored = view.read_moments()
        assert stored is not None
        return read_unlabelled(None, settings, state=stored[0])
    rows = Pass(view, _rows_at_once(view, settings), scores=False)
    return read_unlabelled(lambda: (features for features, _, _ in rows()), settings)


def _rows_at_once(view: SplitView, settings: Settings) -> int:
    size = sorted((*BLOCK_BYTES, settings.memory // 16))[1]
    return max(1, size // (8 * view.dimension))


def _of_moments(dump: Dump, view: SplitView, settings: Settings, outside: Tensor | None) -> Reading:
    stored = view.read_moments()
    assert stored is not None
    state, numbers = stored
    moments = settings.moments(None if dump.weights is None else len(dump.weights))
    moments.load(state)
    try:
        quality = Quality.from_numbers(numbers)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise DataError("stored moments: scored, right and summed_loss are missing; extract again") from error
    return read_moments(moments, quality, dump.weights, dump.bias, settings=settings, outside=outside)
