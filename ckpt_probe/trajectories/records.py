"""The function `weights`: records of the audit, the motion and the spectra of runs, also of one that is followed."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ckpt_probe.addresses import as_path
from ckpt_probe.analysis.entries import Record
from ckpt_probe.analysis.records import Records
from ckpt_probe.analysis.weights import ClassifierRecords
from ckpt_probe.checkpoints import Arrivals, Member, is_run, open_series
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.groups import GroupedRun, Sources, find_runs
from ckpt_probe.keywords import as_sequence
from ckpt_probe.progress import DeduplicatedProgress, NullProgress, Progress
from ckpt_probe.remote import resolve
from ckpt_probe.scheduling import Failed, Workers, joint_error
from ckpt_probe.series import in_order as members_in_order
from ckpt_probe.series import step_warnings
from ckpt_probe.trajectories.layout import ALONE, PARTS, WeightOptions
from ckpt_probe.trajectories.series import measured_series, rows_of

EVERY = 5.0
"""Seconds between two looks at the directory of a run."""


def weights(
    path: Sources,
    *,
    only: str | Iterable[str] | None = None,
    by: str = "network",
    classifier: str | None = None,
    orders: float | Sequence[float] = (),
    state_key: str | None = None,
    base: Path | str | None = None,
    sketch: bool | None = None,
    bootstrap: int = 0,
    workers: int = 1,
    scheduler: str | None = None,
    cache: bool = False,
    follow: bool = False,
    until: int | None = None,
    every: float = EVERY,
    progress: Progress | None = None,
) -> Records:
    """Return records of the weights of every checkpoint of a series; needs neither model nor data.

    The audit finds copied, exchanged and damaged checkpoints; the motion is that from checkpoint to checkpoint; the
    spectra are those of all weight matrices; the metrics of the classifier are those that its weights alone determine.

    Args:
        path: Checkpoint of any format, or a directory of checkpoints; a directory with one of these per seed, which is
            a group of runs; a directory of such groups; several of these, or NAME=PATTERN. Records of several runs
            have `group` and `seed`.
        only: Parts to compute: "audit", "motion", "spectra" and "classifier", or several joined by commas; if None,
            all, or the classifier alone if it is named.
        by: Level of the records: "network" for one record per checkpoint, "block" or "tensor" for one for each of
            these, without the metrics of the classifier.
        classifier: Name of the classifier, or of its tensor of weights; if None, the one in the checkpoint's metadata,
            else the likeliest by names and shapes.
        orders: Rényi orders of the classifier's entropies that are computed beside those of order 1.
        state_key: Key of the weights in a pickled checkpoint.
        base: Checkpoint onto which an adapter is merged.
        sketch: Whether distances between checkpoints come from random projections of each (relative error 1 %), so that
            a new checkpoint costs one read; if None, for series of more than 128 GiB or 800 files, or of formats whose
            tensors are only read whole and would fill 2 GiB.
        bootstrap: Number of synthetic spectra for the goodness of fit of each power law; 0 leaves it out.
        workers: Number of processes that share the checkpoints and tensors.
        scheduler: Address of a Dask cluster that shares them instead.
        cache: Whether to keep results in the user's cache directory, and to read them from it if neither the weights
            nor the arguments have changed.
        follow: Whether to wait for further checkpoints in the directory `path`; distances come from sketches.
        until: With `follow`, step of the last checkpoint to wait for; None to continue until Ctrl-C.
        every: With `follow`, seconds between two looks.
        progress: Receives messages, the verdict of the audit among them, and bars.

    Returns:
        One record per checkpoint, or per checkpoint and block or tensor, by step. Each is computed on first access.

    Raises:
        DataError: If a checkpoint cannot be opened, or has neither parameters nor a classifier.
        UsageError: If an argument is invalid.
    """
    # The name of a classifier asks for its metrics, which need its own weights alone.
    named = ALONE if classifier is not None and by == "network" else PARTS
    if only is not None:
        named = [part.strip() for text in as_sequence(only) or () for part in text.split(",")]
    staff, base = Workers(workers, scheduler), resolve(base)
    options = WeightOptions(
        tuple(named), by, state_key, base, sketch=sketch, bootstrap=bootstrap, workers=staff, cache=cache
    )
    heads = None
    if "classifier" in options.parts and by == "network":
        alone = options.parts == ALONE
        heads = ClassifierRecords(classifier, as_sequence(orders) or (), state_key, base, cache, required=alone)
    progress = progress or NullProgress()
    runs = find_runs(path, is_run, "a run: a checkpoint or a directory of checkpoints", progress.message)
    if follow and len(runs) > 1:
        raise UsageError(f"`follow=True` needs one run; name one of {len(runs)}, such as {runs[0].path}")
    if follow:
        return Records(_followed(as_path(runs[0].path), options, heads, until, every, DeduplicatedProgress(progress)))
    return Records(_of_runs(runs, options, heads, progress))


def _of_runs(
    runs: Sequence[GroupedRun], options: WeightOptions, heads: ClassifierRecords | None, progress: Progress
) -> Iterator[Record]:
    failed = {}
    for run in runs:
        name = run.name or str(run.path)
        try:
            members = open_series(resolve(run.path), state_key=options.state_key, base=options.base)
            heads_of_run = None if heads is None else replace(heads)
            named = f"{name}: " if len(runs) > 1 else ""
            for record in records_of(members, options, heads_of_run, progress, named=named):
                yield {**run.labels, **record}
        except DataError as error:
            failed[name] = Failed(str(error), ours=True)
    if failed:
        raise joint_error(failed, len(runs))


def records_of(
    members: Sequence[Member],
    options: WeightOptions,
    heads: ClassifierRecords | None,
    progress: Progress,
    wanted: set[Path] | None = None,
    named: str = "",
) -> Iterator[Record]:
    """Yield the records of a series in order.

    Args:
        members: Its checkpoints in order.
        options: Options.
        heads: Computes the metrics of the classifier; None leaves them out.
        progress: Receives messages and bars.
        wanted: Paths of the checkpoints whose records are yielded; None for all.
        named: Beginning of the messages about the series, such as its name.

    Raises:
        DataError: If checkpoints cannot be read, after the records of all others; each is named.
    """
    warnings = dict.fromkeys(step_warnings(members))
    chosen = [member for member in members if wanted is None or member.path in wanted]
    series = measured_series(members, options, progress)
    chosen = [member for member in chosen if member.name not in series.failed]
    parameters = series.parameters
    if options.parts != ALONE and not parameters.names and not parameters.partial:
        reasons = "; ".join(finding.text for finding in parameters.findings)
        if heads is None or reasons:
            cause = f": {reasons}" if reasons else ""
            raise DataError(f"{members[0].path}: no floating-point parameters, which every number here needs{cause}")
        # Nothing but the classifier could have numbers.
        heads.required = True
    failed = dict(series.failed)
    try:
        for _, _, [records] in rows_of(series, chosen, options, (options.by,), heads, progress):
            yield from records
    except DataError as error:
        failed["records"] = Failed(str(error), ours=True)
    if series.audit is not None:
        warnings |= dict.fromkeys([*series.audit.notes, series.audit.verdict])
    for warning in [*(heads.warnings if heads is not None else ()), *warnings]:
        progress.message(f"{named}{warning}")
    if failed:
        raise joint_error(failed, len(members))


def _followed(
    path: Path,
    options: WeightOptions,
    heads: ClassifierRecords | None,
    until: int | None,
    every: float,
    progress: Progress,
) -> Iterator[Record]:
    """Yield the records of checkpoints as they are completed, until `until` or Ctrl-C."""
    if path.is_file():
        raise UsageError(f"{path}: `follow=True` needs the directory of a run, not one checkpoint")
    options = replace(options, sketch=True)
    arrivals = Arrivals(path, state_key=options.state_key, base=options.base)
    members: list[Member] = []
    last = -1
    while True:
        new = arrivals.look()
        if new:
            members = members_in_order([*members, *new])
            yield from records_of(members, options, heads, progress, {member.path for member in new})
        last = max([last, *(member.step for member in new if member.step is not None)])
        for name, reason in arrivals.left_out.items():
            progress.message(f"{name}: left out: {reason}")
        if until is not None and last >= until and arrivals.settled:
            return
        try:
            time.sleep(every)
        except KeyboardInterrupt:
            return
