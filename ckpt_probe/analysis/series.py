"""Analyze the dumps of a series, one after another in this process, or by several workers."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ckpt_probe.analysis.cache import RECORDS, CachedRecords, cache_key, cached_records
from ckpt_probe.analysis.context import outside_dump, reference_dump
from ckpt_probe.analysis.dump import compute_dump
from ckpt_probe.analysis.entries import Record, in_order, join_reasons
from ckpt_probe.analysis.entries import corrected as corrected_record
from ckpt_probe.analysis.ranges import SharedSplits
from ckpt_probe.analysis.records import RECORD_SUFFIXES, Records, read_records, record_files
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.dumps import PENULTIMATE, Dump, has_dumps, open_dump, ordered_dumps
from ckpt_probe.errors import DataError
from ckpt_probe.files import content_hash
from ckpt_probe.groups import GroupedRun, Sources, find_runs
from ckpt_probe.keywords import as_sequence, from_arguments
from ckpt_probe.metrics.stochastic import MOST
from ckpt_probe.moments import MEMORY, DetailedRecord
from ckpt_probe.moments.errors.design import RecordWithErrors
from ckpt_probe.progress import DeduplicatedProgress, NullProgress, Progress
from ckpt_probe.remote import resolve
from ckpt_probe.scheduling import Busy, Failed, Team, Workers, in_turn, remove_abandoned, results
from ckpt_probe.user_cache import cache_directory

Result = TypeVar("Result")
RANK, RANK_DIFFERENCE = "centred.effective_rank", "erank.difference"


def analyze(
    path: Sources,
    *,
    splits: str | Sequence[str] | None = None,
    only: str | Iterable[str] | None = None,
    layers: bool = True,
    per_class: bool = False,
    centred: bool = False,
    errors: bool = False,
    corrected: bool = False,
    outside: Path | str | None = None,
    reference: Path | str | None = None,
    orders: float | Sequence[float] = (),
    min_samples: int = 1,
    tolerance: float = 1e-3,
    budget: float | None = None,
    seed: int = 0,
    probes: int = MOST,
    exact_limit: int | None = None,
    precision: str = "float64",
    memory: int = MEMORY,
    workers: int = 1,
    scheduler: str | None = None,
    rows_per_task: int | None = None,
    cache: bool = False,
    progress: Progress | None = None,
) -> Records:
    """Return the records of every dump of a series, in the order of their steps; each is computed on first access.

    Of several series the records follow each other, with the names `group` and `seed`; see `ckpt_probe.groups`.

    Args:
        path: A dump, or a directory of dumps; a directory with one of these per seed, which is a group of runs; a
            directory of such groups; several of these, or NAME=PATTERN; or a mapping from names of groups to paths.
        splits: Names of splits; all if None.
        only: Metrics, families of metrics or patterns to compute, such as "nc,class" or ("MIR", "nc1.*"); the usual
            ones if None.
        layers: Whether a dump of several layers has one record per layer, in execution order and the penultimate one
            last; otherwise only that one.
        per_class: Whether to return one record per class instead.
        centred: Whether to compute MIR, HDR and effective rank also of features minus their mean.
        errors: Whether to add the standard error `NAME_stderr` of each metric from the sampling of rows, and the bias
            `NAME_bias` from their number.
        corrected: Whether to subtract the bias from each value; includes `errors`. Values whose bias cannot be relied
            on do not change, and `missing` states the reason.
        outside: Dump of data of other classes, or a directory with one of the same name for each dump; for NC5.
        reference: Dump of a model with fresh random weights on the same texts; for `erank.documents_difference`.
        orders: Rényi orders of entropies that are computed beside those of order 1.
        min_samples: Smallest number of samples of a class that enters metrics of class means.
        tolerance: Relative standard error of MIR at which sampling stops.
        budget: Seconds after which sampling stops; no limit if None.
        seed: Seed of the sampling.
        probes: Largest number of probes of the sampling.
        exact_limit: Largest side of a joint matrix that is solved exactly; larger ones are sampled. 12,000, or as
            `memory` allows, if None.
        precision: "float64", or "float32" for products of rows in single precision (about six digits).
        memory: Largest size of moments and matrices in bytes.
        workers: Number of processes, each of which analyzes one dump at a time. The records are bit for bit the same
            for any number.
        scheduler: Address of a Dask cluster that analyzes the dumps instead.
        rows_per_task: A split with more rows is divided into ranges of this size, one task each, so that several
            workers share one dump. The numbers are those of the undivided split up to rounding.
        cache: Whether to keep the records in the user's cache directory, and to read them from it if neither
            the dump nor the arguments have changed. Processes that analyze the same dumps then share the work.
        progress: Receives messages and a bar.

    Raises:
        DataError: If a dump cannot be read or contains invalid values, after the records of all others; the message
            names file, split and row.
        UsageError: If an argument is invalid.
    """
    errors = errors or corrected
    results_of_series = read_runs(
        path,
        from_arguments(Settings, locals()),
        splits=splits,
        workers=Workers(workers, scheduler),
        rows_per_task=rows_per_task,
        cache=cache,
        progress=progress,
    )
    in_form = corrected_record if corrected else dict
    return Records(
        record
        for detailed in results_of_series
        for record in (
            detailed.per_class if per_class else [RecordWithErrors(in_form(detailed.record), detailed.influences)]
        )
    )


analyze_series = analyze_dump = analyze
"""Earlier names of `analyze`."""


def read_runs(
    sources: Sources, settings: Settings, *, progress: Progress | None = None, **options: Any
) -> Iterator[DetailedRecord]:
    """Return what `read_series` returns for every run of sources, with group and seed in all records.

    Args:
        sources: As the path of `analyze`.
        settings: Options of the analysis.
        progress: Receives messages and bars.
        **options: Further arguments of `read_series`.

    Raises:
        DataError: As `analyze`.
        UsageError: As `find_runs`.
    """
    progress = DeduplicatedProgress(progress or NullProgress())
    runs = find_dumps(sources, progress)
    results = [read_series(run.path, settings, progress=progress, **options) for run in runs]
    return (_labelled(detailed, run) for run, readings in zip(runs, results, strict=True) for detailed in readings)


def find_dumps(sources: Sources, progress: Progress | None = None) -> list[GroupedRun]:
    """Return the dumps, or directories of dumps, of sources with their groups; see `find_runs`."""
    say = (progress or NullProgress()).message
    return find_runs(sources, has_dumps, "a dump (.h5) or a directory of dumps", say)


def is_recorded(path: Path) -> bool:
    """Return whether a path is a run with dumps or records: a file or a directory of them."""
    if has_dumps(path) or not path.is_dir():
        return has_dumps(path) or path.suffix.lower() in RECORD_SUFFIXES
    try:
        return len(record_files(path)) == 1
    except DataError:
        return False


def without_failed(results: Iterable[Result], progress: Progress) -> tuple[list[Result], str | None]:
    """Return the results of the dumps of a series that can be analyzed, and why others cannot, also as a message.

    Args:
        results: Results that end with the error of the failed dumps, as those of `analyze`.
        progress: Receives the message.

    Raises:
        DataError: If no dump can be analyzed.
    """
    analyzed: list[Result] = []
    reason = None
    try:
        for result in results:
            analyzed.append(result)
    except DataError as error:
        if not analyzed:
            raise
        reason = str(error)
        progress.message(f"left out: {reason}")
    return analyzed, reason


def records_of(path: Path | str, progress: Progress | None = None) -> Sequence[Record]:
    """Return the records of a run: those of its files, or of its dumps, which are analyzed with the cache of records.

    Dumps that cannot be analyzed are left out, with a message.

    Raises:
        DataError: As `without_failed` and `read_records`, and if there is no record.
    """
    path, say = Path(path), progress or NullProgress()
    records = without_failed(analyze(path, cache=True), say)[0] if has_dumps(path) else read_records(path)
    if not records:
        raise DataError(f"{path}: no record in it: the file is empty; leave it out, or write it again")
    return records


def _labelled(detailed: DetailedRecord, run: GroupedRun) -> DetailedRecord:
    rows = [{**run.labels, **row} for row in detailed.per_class]
    return replace(detailed, record={**run.labels, **detailed.record}, per_class=rows) if run.labels else detailed


def read_series(
    path: Path | str,
    settings: Settings,
    *,
    splits: str | Sequence[str] | None = None,
    workers: Workers | None = None,
    rows_per_task: int | None = None,
    cache: bool = False,
    progress: Progress | None = None,
) -> Iterator[DetailedRecord]:
    """Return the records of every dump of a series with the details that `settings` request; spectra are numpy arrays.

    Each is computed when the iterator reaches it. Arguments, order and errors are those of `analyze`.
    """
    dumps, splits = ordered_dumps(resolve(path)), as_sequence(splits)
    task = _Task(cache_key(settings, splits) if cache else None, splits, settings)
    return _records(task, dumps, workers or Workers(), rows_per_task, progress or NullProgress())


def _records(
    task: "_Task", dumps: Sequence[Path], workers: Workers, rows_per_task: int | None, progress: Progress
) -> Iterator[DetailedRecord]:
    settings, cache = task.settings, task.key is not None
    compares_ranks = "centred" in settings.families and len(dumps) > 1
    first: dict[Any, Record] = {}
    warnings: dict[str, None] = {}
    from_cache = 0
    with (
        progress.task("dumps", len(dumps), "dumps") as bar,
        closing(_outcomes(task, dumps, workers, rows_per_task, progress)) as outcomes,
    ):
        for outcome in in_turn(outcomes):
            from_cache += outcome.from_cache
            warnings |= {outcome.warning: None} if outcome.warning else {}
            for detailed in outcome.records:
                if compares_ranks and detailed.record.get("layer", PENULTIMATE) == PENULTIMATE:
                    start = first.setdefault(detailed.record["split"], detailed.record)
                    detailed = replace(detailed, record=_with_rank_difference(detailed.record, start))
                yield detailed
            bar.advance()
    if cache:
        remove_abandoned(cache_directory() / RECORDS)
    if from_cache:
        progress.message(f"{from_cache} of {len(dumps)} dumps are from the cache; `cache=False` recomputes them")
    for warning in warnings:
        progress.message(warning)


@dataclass(frozen=True)
class _Task:
    """Analyzes one dump, in this process or in a worker."""

    key: str | None
    splits: Sequence[str] | None
    settings: Settings
    shared: SharedSplits | None = None

    def __call__(self, path: Path) -> CachedRecords | Busy | Failed:
        try:
            with open_dump(path) as dump:
                return cached_records(
                    self.key,
                    dump.path,
                    lambda: "".join(map(content_hash, self._files(dump))),
                    lambda: compute_dump(dump, self.splits, self.settings, self.shared),
                )
        except DataError as error:
            # Also in this process, the other dumps are analyzed first.
            return Failed(str(error), ours=True)

    def _files(self, dump: Dump) -> list[Path]:
        """Return the files that the records of a dump depend on."""
        outside, reference = self.settings.outside, self.settings.reference
        others = [] if outside is None else [outside_dump(dump, outside)]
        return [dump.path, *others, *([] if reference is None else [reference_dump(reference)])]


def _outcomes(
    task: _Task, dumps: Sequence[Path], workers: Workers, rows: int | None, progress: Progress
) -> Generator[tuple[int, CachedRecords], None, None]:
    """Analyze the dumps: first those with a split that all workers share, then the others, one per worker.

    Yields:
        The index of a dump and its outcome, in the order in which they are ready.
    """

    def analyze_dumps(
        task: _Task, chosen: Sequence[int], workers: Workers
    ) -> Generator[tuple[int, CachedRecords], None, None]:
        paths = [dumps[index] for index in chosen]
        names = [path.stem for path in paths]
        with closing(results(task, paths, names=names, workers=workers, say=progress.message)) as ready:
            for number, outcome in ready:
                yield chosen[number], outcome

    large = [] if rows is None else [index for index, path in enumerate(dumps) if _most_rows(path) > rows]
    if rows is not None and large:
        with Team(workers, progress.message) as team:
            yield from analyze_dumps(replace(task, shared=SharedSplits(rows, team, progress)), large, Workers())
    yield from analyze_dumps(task, [index for index in range(len(dumps)) if index not in large], workers)


def _most_rows(path: Path) -> int:
    with open_dump(path) as dump:
        return max((dump[split].samples for split in dump.splits), default=0)


def _with_rank_difference(record: Record, first: Record) -> Record:
    """Add `erank.difference`: the effective rank at the first checkpoint less that of the record (Wei et al. 2024)."""
    before, after = first.get(RANK), record.get(RANK)
    value = reason = None
    if before is None or after is None:
        reason = f"no {RANK} of {'this' if after is None else 'the first'} checkpoint"
    elif first["samples"] != record["samples"]:
        reason = f"{record['samples']} rows, but {first['samples']} of the first checkpoint"
    else:
        value = before - after
    missing = join_reasons(record.get("missing"), f"{RANK_DIFFERENCE}: {reason}" if reason else None)
    return in_order({**record, RANK_DIFFERENCE: value, "missing": missing})
