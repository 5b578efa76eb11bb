"""Records of the weights of a series: audit, motion and spectra, and the metrics of the classifier's weights."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_probe.addresses import Address, as_path
from ckpt_probe.analysis.entries import Record, in_order, join_reasons
from ckpt_probe.analysis.records import Records
from ckpt_probe.analysis.weights import ClassifierRecords
from ckpt_probe.checkpoints import Arrivals, Member, is_run, open_series
from ckpt_probe.checkpoints.series import have_same_weights
from ckpt_probe.errors import UsageError
from ckpt_probe.groups import GroupedRun, Sources, find_runs
from ckpt_probe.keywords import as_sequence, checked_keywords, suggestion
from ckpt_probe.progress import DeduplicatedProgress, NullProgress, Progress
from ckpt_probe.remote import resolve
from ckpt_probe.scheduling import Workers
from ckpt_probe.series import in_order as members_in_order
from ckpt_probe.series import natural, step_warnings
from ckpt_probe.trajectories.audit import Audit, audit_of
from ckpt_probe.trajectories.layout import Parameters, block_of, parameters_of
from ckpt_probe.trajectories.measure import Measured, measure
from ckpt_probe.trajectories.motion import Trajectory, trajectory_of
from ckpt_probe.trajectories.series_spectra import Spectra, spectra_of_series
from ckpt_probe.trajectories.spectra import Spectrum, group_numbers
from ckpt_probe.trajectories.stream import Opening

PARTS = ("audit", "motion", "spectra", "classifier")
ALONE = ("classifier",)
LEVELS = ("network", "block", "tensor")
SKETCHED, MOST_FILES, MOST_BUFFERED = 2**37, 800, 2**31
"""Size in bytes of a series, number of its files, and size of tensors in memory above which sketches replace exact
distances."""
BY_RANGES = ("safetensors", "torch zip")
"""Formats of which parts of a tensor are read without the others."""
EVERY = 5.0
"""Seconds between two looks at the directory of a run."""


@dataclass(frozen=True)
class WeightOptions:
    """Options of the records of weights.

    Attributes:
        parts: Parts to compute, of `PARTS`.
        by: Level of the records: "network", "block" or "tensor".
        opening: How checkpoints are opened.
        sketch: Whether distances come from sketches of the checkpoints; None for very large series.
        bootstrap: Number of synthetic spectra for the goodness of fit of each tail; 0 leaves it out.
        workers: Workers that share the work.
        cache: Whether to use the cache.
    """

    parts: tuple[str, ...] = PARTS
    by: str = "network"
    opening: Opening = field(default_factory=Opening)
    sketch: bool | None = None
    bootstrap: int = 0
    workers: Workers = field(default_factory=Workers)
    cache: bool = True

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise UsageError(
                    f"`only`: unknown part {part!r}{suggestion(part, PARTS)}; there are: {', '.join(PARTS)}"
                )
        if not self.parts:
            raise UsageError(f"`only`: expected at least one of {', '.join(PARTS)}")
        if self.by not in LEVELS:
            raise UsageError(f"`by={self.by!r}`: expected one of {', '.join(LEVELS)}")
        if self.parts == ALONE and self.by != "network":
            raise UsageError(f"`by={self.by!r}`: the metrics of the classifier are those of the network; leave it out")
        if self.bootstrap < 0:
            raise UsageError(f"`bootstrap={self.bootstrap}`: expected at least 0")


@dataclass(frozen=True)
class WeightSeries:
    """A series with its measurements.

    Attributes:
        members: All checkpoints in order.
        parameters: The tensors that are compared; None if nothing is measured.
        measured: Their measurements; None without audit and motion.
        audit: The audit; None without measurements.
        trajectory: The plane of the trajectory; None if there is no motion.
    """

    members: tuple[Member, ...]
    parameters: Parameters
    measured: Measured | None = None
    audit: Audit | None = None
    trajectory: Trajectory | None = None


@checked_keywords
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
    opening = Opening(state_key, resolve(base))
    options = WeightOptions(tuple(named), by, opening, sketch, bootstrap, Workers(workers, scheduler), cache)
    heads = None
    if "classifier" in options.parts and by == "network":
        alone = options.parts == ALONE
        heads = ClassifierRecords(classifier, as_sequence(orders) or (), state_key, opening.base, cache, required=alone)
    progress = progress or NullProgress()
    runs = find_runs(path, is_run, "a run: a checkpoint or a directory of checkpoints", progress.message)
    if follow and len(runs) > 1:
        raise UsageError(f"`follow=True` needs one run; name one of {len(runs)}, such as {runs[0].path}")
    if follow:
        return Records(_followed(as_path(runs[0].path), options, heads, until, every, DeduplicatedProgress(progress)))
    return Records(record for run in runs for record in _of_run(run, options, heads, progress))


def measured_series(members: Sequence[Member], options: WeightOptions, progress: Progress) -> WeightSeries:
    """Measure what `options` need of the checkpoints of a series, apart from spectra."""
    opening = options.opening
    layouts, size, files, buffered = [], 0, 0, 0
    for member in members:
        with ExitStack() as stack:
            checkpoint = opening.open(member.path, stack)
            layouts.append(dict(checkpoint.layout))
            size += checkpoint.size
            files += len(checkpoint.files)
            if not checkpoint.format.startswith(BY_RANGES):
                # Such a format caches its last two tensors.
                buffered += 2 * max((4 * math.prod(shape) for _, shape in checkpoint.layout.values()), default=0)
    parameters = parameters_of(members, layouts)
    if not {"audit", "motion"} & set(options.parts) or not parameters.names:
        return WeightSeries(tuple(members), parameters)
    measured = measure(
        parameters,
        opening,
        sketch=size > SKETCHED or files > MOST_FILES or buffered > MOST_BUFFERED
        if options.sketch is None
        else options.sketch,
        workers=options.workers,
        cache=options.cache,
        progress=progress,
    )

    def confirm(a: Member, b: Member) -> bool:
        return have_same_weights(a, b, opening.state_key, opening.base)

    # All bytes of remote copies would be downloaded; a sample of every tensor was read.
    remote = any(isinstance(member.path, Address) for member in members)
    audit = audit_of(parameters, measured, None if opening.sample is None or remote else confirm)
    return WeightSeries(tuple(members), parameters, measured, audit, trajectory_of(measured.gram))


def _of_run(
    run: GroupedRun, options: WeightOptions, heads: ClassifierRecords | None, progress: Progress
) -> Iterator[Record]:
    members = open_series(resolve(run.path), state_key=options.opening.state_key, base=options.opening.base)
    for record in records_of(members, options, None if heads is None else replace(heads), progress):
        yield {**run.labels, **record}


def records_of(
    members: Sequence[Member],
    options: WeightOptions,
    heads: ClassifierRecords | None,
    progress: Progress,
    wanted: set[Path] | None = None,
) -> Iterator[Record]:
    """Yield the records of a series in order.

    Args:
        members: Its checkpoints in order.
        options: Options.
        heads: Computes the metrics of the classifier; None leaves them out.
        progress: Receives messages and bars.
        wanted: Paths of the checkpoints whose records are yielded; None for all.
    """
    warnings = dict.fromkeys(step_warnings(members))
    chosen = [member for member in members if wanted is None or member.path in wanted]
    if heads is not None and options.parts == ALONE:
        with progress.task("checkpoints", len(chosen), "checkpoints") as bar:
            for member in chosen:
                yield in_order({"checkpoint": member.name, "step": member.step, **heads.of(member, progress)})
                bar.advance()
        for warning in [*heads.warnings, *warnings]:
            progress.message(warning)
        return
    series = measured_series(members, options, progress)
    if heads is not None and not series.parameters.names and not series.parameters.partial:
        # Nothing but the classifier could have numbers.
        heads.required = True
    builder = RecordBuilder(series, options)
    with progress.task("checkpoints", len(chosen), "checkpoints") as bar:
        for member, spectra in with_spectra(chosen, series.members, options, progress):
            extra: Record = {}
            if heads is not None:
                extra = heads.of(member, progress)
            yield from builder.records(member, spectra, extra)
            bar.advance()
    if series.audit is not None:
        notes = [finding.text for finding in series.audit.findings if not finding.alarm]
        warnings |= dict.fromkeys([*notes, series.audit.verdict])
    for warning in [*(heads.warnings if heads is not None else ()), *warnings]:
        progress.message(warning)


def with_spectra(
    chosen: Sequence[Member], members: Sequence[Member], options: WeightOptions, progress: Progress
) -> Iterator[tuple[Member, Spectra]]:
    """Yield the checkpoints in order with their spectra; empty ones if they are not requested."""
    if "spectra" not in options.parts:
        yield from ((member, {}) for member in chosen)
        return
    order = [members[0], *(member for member in chosen if member.path != members[0].path)]
    computed = spectra_of_series(
        order,
        options.opening,
        bootstrap=options.bootstrap,
        workers=options.workers,
        cache=options.cache,
        progress=progress,
    )
    ready: dict[Path, Spectra] = {}
    waiting = list(chosen)
    for index, spectra in computed:
        ready[order[index].path] = spectra
        while waiting and waiting[0].path in ready:
            yield waiting[0], ready[waiting[0].path]
            ready.pop(waiting.pop(0).path)


class RecordBuilder:
    """Builds the records of a measured series."""

    def __init__(self, series: WeightSeries, options: WeightOptions) -> None:
        self._series, self._options = series, options
        self._index = {member.path: t for t, member in enumerate(series.parameters.members)}
        measured = series.measured
        parameters = [] if measured is None else list(measured.names[: measured.parameters])
        self._groups = _groups([*parameters, *series.parameters.partial], options.by)
        self._motion: dict[str, list[dict[str, Any]]] = {}

    def records(self, member: Member, spectra: Spectra, extra: Record) -> Iterator[Record]:
        """Yield the records of one checkpoint."""
        groups = dict(self._groups)
        for name in spectra:
            groups.setdefault(_group_of(name, self._options.by), [])
        names = sorted(groups, key=natural) if self._options.by != "network" else [""]
        for name in names:
            position = {"checkpoint": member.name, "step": member.step}
            if self._options.by != "network":
                position[self._options.by] = name
            inside = {tensor: s for tensor, s in spectra.items() if _group_of(tensor, self._options.by) == name}
            parts = [*self._measured(member, name, groups.get(name, [])), self._spectral(inside), extra]
            missing = join_reasons(*(part.get("missing") for part in parts))
            merged: Record = {key: value for part in parts for key, value in part.items() if key != "missing"}
            yield in_order({**position, **merged, "missing": missing})

    def _measured(self, member: Member, group: str, names: Sequence[str]) -> Iterator[Record]:
        series, parts = self._series, self._options.parts
        wanted = [part for part in ("audit", "motion") if part in parts]
        if not wanted:
            return
        if member.path not in self._index:
            reason = series.parameters.excluded[member.name]
            yield {"missing": f"{', '.join(f'{part}.*' for part in wanted)}: {reason}"}
            return
        compared = [name for name in names if name not in series.parameters.partial]
        if series.measured is None or not compared:
            reasons = [
                f"{name} {series.parameters.partial[name]}" for name in names if name in series.parameters.partial
            ]
            tied = {} if series.measured is None else series.measured.tied
            reason = "; ".join(reasons[:3]) or (f"tied to {tied[group]}" if group in tied else "no tensor is compared")
            yield {"missing": f"{', '.join(f'{part}.*' for part in wanted)}: {reason}"}
            return
        t = self._index[member.path]
        if "audit" in parts:
            yield self._audited(t, compared)
        if "motion" in parts:
            if group not in self._motion:
                self._motion[group] = series.measured.route(compared).numbers()
            yield self._motion[group][t]
            if self._options.by == "network" and series.trajectory is not None:
                plane = series.trajectory
                yield {
                    "motion.pca_1": float(plane.coordinates[t, 0]),
                    "motion.pca_2": float(plane.coordinates[t, 1]),
                    **{f"motion.pca_share_{i + 1}": plane.shares[i] for i in (0, 1)},
                    **{f"motion.walk_share_{i + 1}": plane.walk_shares[i] for i in (0, 1)},
                }

    def _audited(self, t: int, names: Sequence[str]) -> Record:
        measured, audit = self._series.measured, self._series.audit
        assert measured is not None
        assert audit is not None
        rows = [measured.row(name) for name in names]
        digests, broken = measured.arrays["digests"][rows], measured.arrays["broken"][rows].sum(axis=0)
        route = measured.route(names)
        ratio, reason = _turn_ratio(route.steps, route.next, route.broken, t)
        if self._options.by == "network" and np.isfinite(audit.turns.ratios[t]):
            # That of the checkpoints without NaN.
            ratio, reason = float(audit.turns.ratios[t]), None
        unchanged = int((digests[:, t] == digests[:, t - 1]).sum()) if t else None
        record: Record = {
            "audit.turn_ratio": ratio,
            "audit.unchanged": unchanged,
            "audit.nan": int(broken[t, 0]),
            "audit.inf": int(broken[t, 1]),
        }
        name = audit.members[t].name
        about = [f.text for f in audit.findings if name in f.checkpoints and (f.tensor is None or f.tensor in names)]
        if self._options.by == "network":
            record["audit.findings"] = "; ".join(about) or None
            equal = next((group for group in audit.turns.equal if t in group), ())
            record["audit.equal_to"] = next((audit.members[i].name for i in equal if i != t), None)
        missing = [reason] if reason else []
        return {**record, "missing": join_reasons(*missing, None if t else "audit.unchanged: the first checkpoint")}

    def _spectral(self, spectra: Mapping[str, Spectrum]) -> Record:
        if "spectra" not in self._options.parts:
            return {}
        if not spectra:
            return {"missing": "spectrum.*: no matrix"}
        numbers = group_numbers(list(spectra.values()))
        reasons: dict[str, list[str]] = {}
        for name, spectrum in spectra.items():
            for reason in spectrum.missing:
                reasons.setdefault(reason, []).append(name)
        absent = {f"spectrum.{name}" for name, value in numbers.items() if value is None}
        texts = [
            reason if len(spectra) == 1 else f"{reason} ({len(names)} of {len(spectra)} matrices, first {names[0]})"
            for reason, names in reasons.items()
            if reason.partition(":")[0] in absent or reason.startswith("spectrum.*")
        ]
        record: Record = {f"spectrum.{name}": value for name, value in numbers.items()}
        if any(not spectrum.exact for spectrum in spectra.values()):
            record["spectrum.method"] = "lanczos"
        return {**record, "missing": join_reasons(*texts)}


def _turn_ratio(steps: np.ndarray, after: np.ndarray, broken: np.ndarray, t: int) -> tuple[float | None, str | None]:
    """Return the turn ratio of a group of tensors at a checkpoint, or the reason why it has none."""
    if not 0 < t < len(steps):
        return None, "audit.turn_ratio: needs a checkpoint before and one after"
    if broken[t - 1 : t + 2].any():
        return None, "audit.turn_ratio: NaN or infinite weights"
    squared = steps[t - 1] + 2 * after[t - 1] + steps[t]
    around = np.sqrt(steps[t - 1]) + np.sqrt(steps[t])
    if squared <= np.finfo(float).eps * around**2:
        cause = "no motion" if around == 0 else "infinite: the checkpoints on both sides are equal"
        return None, f"audit.turn_ratio: {cause}"
    return float(around / np.sqrt(squared)), None


def _group_of(name: str, by: str) -> str:
    return {"network": "", "block": block_of(name), "tensor": name}[by]


def _groups(names: Iterable[str], by: str) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_group_of(name, by), []).append(name)
    return groups


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
    arrivals = Arrivals(path, state_key=options.opening.state_key, base=options.opening.base)
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
