"""A measured series of checkpoints: the audit of a sample of its weights, its records, and the survey of a page."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ckpt_probe.addresses import Address
from ckpt_probe.analysis.entries import Record, in_order, join_reasons
from ckpt_probe.analysis.records import grouped_by
from ckpt_probe.analysis.weights import ClassifierRecords
from ckpt_probe.checkpoints import Member, open_series
from ckpt_probe.checkpoints.series import have_same_weights
from ckpt_probe.checkpoints.tensors import Layout
from ckpt_probe.errors import CkptProbeError, DataError
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.remote import resolve
from ckpt_probe.scheduling import Failed, joint_error
from ckpt_probe.series import natural
from ckpt_probe.trajectories.audit import Audit
from ckpt_probe.trajectories.layout import ALONE, Finding, Parameters, WeightOptions, block_of, label_of
from ckpt_probe.trajectories.measure import Measured, measure
from ckpt_probe.trajectories.motion import Route, Trajectory, trajectory_of
from ckpt_probe.trajectories.spectra import Spectra, Spectrum, group_numbers, spectra_of_series

SAMPLE = 2**22
"""Number of entries of a checkpoint that the quick audit reads."""
SKETCHED, MOST_FILES, MOST_BUFFERED = 2**37, 800, 2**31
"""Size in bytes of a series, number of its files, and size of tensors in memory above which sketches replace exact
distances."""
BY_RANGES = ("safetensors", "torch zip")
"""Formats of which parts of a tensor are read without the others."""


UNMEASURED = Measured((), 0, {}, {}, np.zeros((0, 0)), exact=True)


@dataclass(frozen=True)
class WeightSeries:
    """A series with its measurements.

    Attributes:
        members: The checkpoints in order, without those that cannot be opened.
        failed: Errors of those, by the name of the checkpoint.
        parameters: The tensors that are compared.
        measured: Their measurements; those of no tensor without audit and motion.
        audit: The audit; None without measurements.
        trajectory: The plane of the trajectory; None if there is no motion.
    """

    members: tuple[Member, ...]
    failed: Mapping[str, Failed]
    parameters: Parameters
    measured: Measured = UNMEASURED
    audit: Audit | None = None
    trajectory: Trajectory | None = None


def measured_series(members: Sequence[Member], options: WeightOptions, progress: Progress) -> WeightSeries:
    """Measure what `options` need of the checkpoints of a series, apart from spectra and the classifier.

    Raises:
        DataError: If none of them can be opened, or a tensor cannot be read.
    """
    if options.parts == ALONE:
        return WeightSeries(tuple(members), {}, Parameters(members, [{} for _ in members]))
    readable: dict[Member, Layout] = {}
    failed: dict[str, Failed] = {}
    size, files, buffered = 0, 0, 0
    for member in members:
        with ExitStack() as stack:
            try:
                checkpoint = options.open(member, stack)
            except DataError as error:
                failed[member.name] = Failed(str(error), ours=True)
                continue
            readable[member] = dict(checkpoint.layout)
            size += checkpoint.size
            files += len(checkpoint.files)
            if not checkpoint.format.startswith(BY_RANGES):
                # Such a format caches its last two tensors.
                buffered += 2 * max((4 * math.prod(shape) for _, shape in checkpoint.layout.values()), default=0)
    if not readable:
        raise joint_error(failed, len(members))
    damaged = [
        Finding("damaged", f"{label_of(member)} cannot be read", (member.name,))
        for member in members
        if member.name in failed
    ]
    parameters = Parameters([*readable], [*readable.values()], damaged)
    if not {"audit", "motion"} & set(options.parts) or not parameters.names:
        return WeightSeries(tuple(readable), failed, parameters)
    sketch = options.sketch
    if sketch is None:
        sketch = size > SKETCHED or files > MOST_FILES or buffered > MOST_BUFFERED
    measured = measure(parameters, options, sketch=sketch, progress=progress)

    def confirm(a: Member, b: Member) -> bool:
        return have_same_weights(a, b, options.state_key, options.base)

    # All bytes of remote copies would be downloaded; a sample of every tensor was read.
    remote = any(isinstance(member.path, Address) for member in members)
    audit = Audit(parameters, measured, None if options.sample is None or remote else confirm)
    return WeightSeries(tuple(readable), failed, parameters, measured, audit, trajectory_of(measured.gram))


def audit_series(
    members: Sequence[Member],
    *,
    state_key: str | None = None,
    base: Path | None = None,
    cache: bool = True,
    progress: Progress | None = None,
) -> Audit | None:
    """Audit a series of checkpoints; copies in local files are confirmed by all bytes.

    Args:
        members: Its checkpoints in order.
        state_key: Key of the weights in a pickled checkpoint.
        base: Checkpoint onto which an adapter is merged.
        cache: Whether to use the user's cache.
        progress: Receives a bar.

    Returns:
        The audit; None if the checkpoints have no parameter in common.
    """
    options = WeightOptions(parts=("audit",), state_key=state_key, base=base, sample=SAMPLE, sketch=False, cache=cache)
    return measured_series(members, options, progress or NullProgress()).audit


def verdict_of(path: Path, cache: bool, progress: Progress) -> str:
    """Return the verdict of the audit of a local series as a sentence, or the reason for its absence."""
    try:
        audit = audit_series(open_series(path), cache=cache, progress=progress)
    except CkptProbeError as error:
        return sentence(f"the checkpoints could not be audited: {error}")
    return "" if audit is None else sentence(audit.verdict.removeprefix("audit: "))


def sentence(text: str) -> str:
    """Return a text as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."


@dataclass(frozen=True)
class WeightSurvey:
    """Everything that a page shows of the weights of a series.

    Attributes:
        network: Records of the network, one per checkpoint.
        blocks: Records of blocks.
        spectra: Spectra of every matrix at the first and the last checkpoint, with their names.
        sentences: Verdict of the audit, and its notes.
    """

    network: list[Record]
    blocks: list[Record]
    spectra: dict[str, tuple[tuple[str, Spectrum], ...]] = field(default_factory=dict)
    sentences: tuple[str, ...] = ()


def survey_weights(path: Path, options: WeightOptions, progress: Progress) -> WeightSurvey:
    """Measure a series once, for its network and its blocks.

    Args:
        path: Directory of checkpoints.
        options: Options; the level is that of both.
        progress: Receives messages and bars.
    """
    members = open_series(resolve(path), state_key=options.state_key, base=options.base)
    series = measured_series(members, options, progress)
    heads = ClassifierRecords(state_key=options.state_key, base=options.base, cache=options.cache)
    network: list[Record] = []
    blocks: list[Record] = []
    spectra: dict[str, tuple[tuple[str, Spectrum], ...]] = {}
    audit = series.audit
    texts = [] if audit is None else [audit.verdict.removeprefix("audit: "), *audit.notes]
    try:
        rows = rows_of(series, series.members, options, ("network", "block"), heads, progress)
        for member, of_member, records in rows:
            network += records[0]
            blocks += records[1]
            if member in (series.members[0], series.members[-1]):
                for name, spectrum in of_member.items():
                    spectra[name] = (*spectra.get(name, ()), (member.name, spectrum))
    except DataError as error:
        texts.append(str(error))
    return WeightSurvey(network, blocks, spectra, tuple(map(sentence, texts)))


def rows_of(
    series: WeightSeries,
    chosen: Sequence[Member],
    options: WeightOptions,
    levels: Sequence[str],
    heads: ClassifierRecords | None,
    progress: Progress,
) -> Iterator[tuple[Member, Spectra, list[list[Record]]]]:
    """Yield checkpoints in order, each with its spectra and with its records of every level.

    Args:
        series: The measured series.
        chosen: Checkpoints whose records are computed.
        options: Options; `levels` replaces its level.
        levels: Levels of the records.
        heads: Computes the metrics of the classifier, for the records of the network; None leaves them out.
        progress: Receives messages and bars.

    Raises:
        DataError: If checkpoints cannot be read, after all others.
    """
    failed: dict[str, Failed] = {}
    builders = [RecordBuilder(series, options.parts, by) for by in levels]
    of_series = ((member, Spectra()) for member in chosen)
    if "spectra" in options.parts:
        of_series = spectra_of_series(chosen, series.members[0], options, progress)
    errors: list[CkptProbeError] = []
    with progress.task("checkpoints", len(chosen), "checkpoints") as bar:
        try:
            for member, spectra in of_series:
                try:
                    extra: Record = {} if heads is None else heads.of(member, progress)
                except DataError as error:
                    failed[member.name] = Failed(str(error), ours=True)
                else:
                    yield member, spectra, [list(builder.records(member, spectra, extra)) for builder in builders]
                bar.advance()
        except DataError as error:  # of the checkpoints without spectra
            errors.append(error)
    if failed:
        errors.append(joint_error(failed, len(chosen)))
    if errors:
        raise DataError("; ".join(map(str, errors)))


class RecordBuilder:
    """Builds the records of a measured series at one level."""

    def __init__(self, series: WeightSeries, parts: Sequence[str], by: str) -> None:
        self._series, self._parts, self._by = series, parts, by
        self._index = {member.path: t for t, member in enumerate(series.parameters.members)}
        measured, partial = series.measured, series.parameters.partial
        row_of = {name: row for row, name in enumerate(measured.names[: measured.parameters])}
        self._groups = _grouped([*row_of, *partial], by)
        rows = {group: [row_of[name] for name in names if name in row_of] for group, names in self._groups.items()}
        self._rows = {group: of_group for group, of_group in rows.items() if of_group}
        self._routes = {name: Route(measured.arrays, r, exact=measured.exact) for name, r in self._rows.items()}
        self._motion = {group: route.numbers() for group, route in self._routes.items()} if "motion" in parts else {}

    def records(self, member: Member, spectra: Spectra, extra: Record) -> Iterator[Record]:
        """Yield the records of one checkpoint, that of the network with the numbers of its classifier."""
        matrices = _grouped(spectra, self._by)
        for group in sorted({*self._groups, *matrices}, key=natural):
            position = {"checkpoint": member.name, "step": member.step}
            if self._by != "network":
                position[self._by] = group
            inside = {name: spectra[name] for name in matrices.get(group, ())}
            of_classifier = extra if self._by == "network" else {}
            parts = [*self._measured(member, group), self._spectral(inside), of_classifier]
            missing = join_reasons(*(part.get("missing") for part in parts))
            merged: Record = {key: value for part in parts for key, value in part.items() if key != "missing"}
            yield in_order({**position, **merged, "missing": missing})

    def _measured(self, member: Member, group: str) -> Iterator[Record]:
        wanted = [f"{part}.*" for part in ("audit", "motion") if part in self._parts]
        if wanted and (reason := self._unmeasured(member, group)):
            yield {"missing": f"{', '.join(wanted)}: {reason}"}
            return
        if "audit" in self._parts:
            yield self._audited(self._index[member.path], group)
        if "motion" in self._parts:
            t, plane = self._index[member.path], self._series.trajectory
            yield self._motion[group][t]
            if self._by == "network" and plane is not None:
                yield plane.numbers(t)

    def _unmeasured(self, member: Member, group: str) -> str | None:
        """Return the reason why a group of tensors has no measurements at a checkpoint."""
        parameters, tied = self._series.parameters, self._series.measured.tied
        if member.path not in self._index:
            return parameters.excluded[member.name]
        if group in self._routes:
            return None
        names = self._groups.get(group, ())
        reasons = [f"{name} {parameters.partial[name]}" for name in names if name in parameters.partial]
        return "; ".join(reasons[:3]) or (f"tied to {tied[group]}" if group in tied else "no tensor is compared")

    def _audited(self, t: int, group: str) -> Record:
        arrays, audit = self._series.measured.arrays, self._series.audit
        assert audit is not None
        rows, route = self._rows[group], self._routes[group]
        digests, broken = arrays["digests"][rows], arrays["broken"][rows, t].sum(axis=0)
        ratio, reason = _turn_ratio(route.steps, route.next, route.broken, t)
        if self._by == "network" and np.isfinite(audit.turns.ratios[t]):
            # That of the checkpoints without NaN.
            ratio, reason = float(audit.turns.ratios[t]), None
        record: Record = {
            "audit.turn_ratio": ratio,
            "audit.unchanged": int((digests[:, t] == digests[:, t - 1]).sum()) if t else None,
            "audit.nan": int(broken[0]),
            "audit.inf": int(broken[1]),
        }
        if self._by == "network":
            about = [finding.text for finding in audit.findings if audit.members[t].name in finding.checkpoints]
            record["audit.findings"] = "; ".join(about) or None
            equal = next((group for group in audit.turns.equal if t in group), ())
            record["audit.equal_to"] = next((audit.members[i].name for i in equal if i != t), None)
        return {**record, "missing": join_reasons(reason, None if t else "audit.unchanged: the first checkpoint")}

    def _spectral(self, spectra: Mapping[str, Spectrum]) -> Record:
        if "spectra" not in self._parts:
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


def _grouped(names: Iterable[str], by: str) -> dict[str, list[str]]:
    """Return names of tensors by that of their block, by their own, or by "" for the network."""
    groups = grouped_by(names, lambda name: {"network": "", "block": block_of(name), "tensor": name}[by])
    return {"": groups.get("", [])} if by == "network" else groups
