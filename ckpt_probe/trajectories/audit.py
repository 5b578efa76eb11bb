"""Audit of a series: copied, exchanged and foreign checkpoints, frozen tensors, and the health of every tensor."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ckpt_probe.analysis.records import grouped_by
from ckpt_probe.checkpoints import Member
from ckpt_probe.errors import listed
from ckpt_probe.trajectories.layout import Finding, Parameters, label_of
from ckpt_probe.trajectories.measure import Measured
from ckpt_probe.trajectories.motion import distances_of
from ckpt_probe.trajectories.turns import Turns, turn_ratios

JUMP = 10.0
"""A norm jumps if it changes by this multiple of its largest other change; the first interval is not judged."""
LEAST_JUMP = 0.1
"""Smallest change of a norm, relative to it, that is a jump."""
SMALL_TENSOR = 16
"""Number of entries below which the norm of a tensor is not judged, and equal tensors are not reported."""
MOST_NAMES = 4


class Audit:
    """Judgement of the measurements of a series.

    Args:
        parameters: Its tensors.
        measured: Measurements of the tensors.
        confirm: If only a part of the weights was measured, a function that compares all weights of two checkpoints.

    Attributes:
        turns: Turn ratios and faults, by the indices of `members`.
        findings: Everything that is wrong or remarkable.
        members: Checkpoints of the network in order.
        verdict: One line: all faults, or that nothing is wrong.
    """

    def __init__(
        self, parameters: Parameters, measured: Measured, confirm: Callable[[Member, Member], bool] | None = None
    ) -> None:
        self.members = members = parameters.members
        distances = distances_of(measured.gram)
        usable = np.flatnonzero(~measured.arrays["broken"][: measured.parameters].any(axis=(0, 2))).tolist()
        digests = measured.arrays["digests"][: measured.parameters]
        groups = grouped_by(range(len(members)), lambda t: digests[:, t].tobytes()).values()
        equal = [tuple(group) for group in groups if len(group) > 1 and set(group) <= set(usable)]
        if confirm is not None:
            equal = [g for g in equal if all(confirm(members[g[0]], members[t]) for t in g[1:])]
        self.turns = Turns(distances, equal, usable)
        self.findings = (
            *parameters.findings,
            *_route_findings(members, self.turns, distances),
            *_health_findings(members, measured),
            *_frozen_findings(members, measured, equal),
        )
        self.verdict = _verdict(len(parameters.excluded), members, self.turns, self.findings)

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """Findings that mean that something is wrong."""
        return tuple(finding for finding in self.findings if finding.alarm)

    @property
    def notes(self) -> list[str]:
        """Texts of the other findings that the verdict does not contain."""
        return [finding.text for finding in self.findings if not finding.alarm and finding.text not in self.verdict]


def _verdict(excluded: int, members: Sequence[Member], turns: Turns, findings: Sequence[Finding]) -> str:
    alarms = [finding.text for finding in findings if finding.alarm]
    if alarms:
        return f"audit: {'; '.join(alarms[:MOST_NAMES])}" + (
            f"; and {len(alarms) - MOST_NAMES} more" if len(alarms) > MOST_NAMES else ""
        )
    count = len(members) + excluded
    ratios = turns.ratios[np.isfinite(turns.ratios)]
    if count == 1:
        return "audit: one checkpoint, nothing wrong with its tensors; turns need at least three"
    if not len(ratios):
        return f"audit: {count} checkpoints, nothing wrong; turns need at least three"
    highest = int(np.nanargmax(turns.ratios))
    notes = [finding.text for finding in findings if finding.kind == "copy"]
    notes += [f"oscillates at {turns.oscillation} consecutive checkpoints"] if turns.oscillation else []
    ratio = f"{turns.ratios[highest]:.2f} at {label_of(members[highest])}"
    return f"audit: {count} checkpoints, nothing wrong; largest turn ratio {'; '.join([ratio, *notes])}"


def _route_findings(members: Sequence[Member], turns: Turns, distances: np.ndarray) -> Iterator[Finding]:
    for group, wrong in zip(turns.equal, turns.copies, strict=True):
        copies = [members[t] for t in wrong or group]
        labels = [label_of(member) for member in copies]
        original = next(label_of(members[t]) for t in group if t not in wrong)
        same = f"the weights of {original}" if wrong else "the same weights"
        after_no_update = not wrong and [members[t].step for t in group] == [0, 1]
        if len(wrong) == 1:
            text = f"{labels[0]} holds {same}{_ratio(turns, wrong[0])}"
        elif len(group) > 2:
            text = f"{len(copies)} of {len(members)} checkpoints hold {same}: {listed(labels, MOST_NAMES)}"
        else:
            text = f"{' and '.join(labels)} hold {same}"
            text += ", as after an update with learning rate 0" if after_no_update else ""
        yield Finding("copy", text, tuple(member.name for member in copies), alarm=not after_no_update)
    removed = {t for group, wrong in zip(turns.equal, turns.copies, strict=True) for t in wrong or group[1:]}
    left = [t for t in range(len(members)) if t not in removed]
    if turns.exchanged:
        order = list(left)
        for i, j in turns.exchanged:
            a, b = left.index(i), left.index(j)
            order[a], order[b] = order[b], order[a]
        before, after = (turn_ratios(distances[np.ix_(route, route)]) for route in (left, order))
        for i, j in turns.exchanged:
            if i == left[0] or j == left[-1]:
                end, inner = ("start", 1) if i == left[0] else ("end", -2)
                ratios = f"turn ratio {before[inner]:.3g}, and {after[inner]:.3g} in the other order"
                reason = f"the run turns back at its {end} ({ratios})"
            else:
                reason = (
                    f"in the other order the largest turn ratio falls from {max(turns.ratios[i], turns.ratios[j]):.3g} "
                    f"to {np.nanmax(after, initial=0.0):.3g}"
                )
            text = f"{label_of(members[i])} and {label_of(members[j])} are exchanged: {reason}"
            yield Finding("exchanged", text, (members[i].name, members[j].name))
    for t in turns.strays:
        rest = [i for i in left if i != t]
        after = np.nanmax(turn_ratios(distances[np.ix_(rest, rest)]), initial=0.0)
        text = (
            f"{label_of(members[t])} is far from the route of the others{_ratio(turns, t)}; without it the largest is "
            f"{after:.3g}"
        )
        yield Finding("stray", text, (members[t].name,))
    if turns.oscillation:
        text = f"oscillates: {turns.oscillation} consecutive checkpoints turn back, as with a large learning rate"
        yield Finding("oscillation", text, alarm=False)


def _ratio(turns: Turns, t: int) -> str:
    ratio = turns.ratios[t]
    return "" if math.isnan(ratio) else f" (turn ratio {ratio:.3g})"


def _health_findings(members: Sequence[Member], measured: Measured) -> Iterator[Finding]:
    arrays, names = measured.arrays, measured.names
    for column, kind in enumerate(("NaN", "infinite values")):
        tensors: dict[tuple[str, ...], list[Member]] = {}
        for t, member in enumerate(members):
            bad = tuple(names[row] for row in np.flatnonzero(arrays["broken"][:, t, column]))
            tensors.setdefault(bad, []).append(member)
        tensors.pop((), None)
        for bad, those in tensors.items():
            text = f"{listed([label_of(member) for member in those], MOST_NAMES)}: {kind} in {listed(bad, MOST_NAMES)}"
            yield Finding(kind[:3].lower(), text, tuple(member.name for member in those), bad[0])
    for t, member in enumerate(members):
        if t and (dead := [names[row] for row in np.flatnonzero(_becomes_constant(measured, t))]):
            text = f"{label_of(member)}: {listed(dead, MOST_NAMES)} {'is' if len(dead) == 1 else 'are'} constant"
            yield Finding("constant", text, (member.name,), dead[0])
        variances = [row for row, name in enumerate(names) if name.endswith("running_var")]
        negative = [names[row] for row in variances if arrays["lowest"][row, t] <= 0]
        if negative:
            text = f"{label_of(member)}: running variances that are not positive in {listed(negative, MOST_NAMES)}"
            yield Finding("variance", text, (member.name,), negative[0])
        yield from _repeated_tensors(member, measured, t)
    yield from _jumps(members, measured)


def _becomes_constant(measured: Measured, t: int) -> np.ndarray:
    """Return which parameters have different entries at the checkpoint before, and equal ones at this checkpoint."""
    constant = measured.arrays["constant"]
    moved = measured.arrays["steps"][:, t - 1] > 0
    parameters = np.arange(len(constant)) < measured.parameters
    return np.logical_and.reduce([constant[:, t], ~constant[:, t - 1], moved, parameters])


def _repeated_tensors(member: Member, measured: Measured, t: int) -> Iterator[Finding]:
    """Yield a finding for tensors that equal another one of the checkpoint, but did not in the first."""
    digests, constant = measured.arrays["digests"], measured.arrays["constant"]
    rows: dict[int, int] = {}
    for row in range(measured.parameters):
        if constant[row, t] or (measured.exact and measured.arrays["entries"][row] < SMALL_TENSOR):
            continue
        other = rows.setdefault(int(digests[row, t]), row)
        if other != row and digests[row, 0] != digests[other, 0]:
            text = f"{label_of(member)}: {measured.names[row]} equals {measured.names[other]}, not tied to it"
            yield Finding("repeated", text, (member.name,), measured.names[row])


def _jumps(members: Sequence[Member], measured: Measured) -> Iterator[Finding]:
    norms = np.sqrt(measured.arrays["squares"][: measured.parameters])
    broken = np.asarray(measured.arrays["broken"].any(axis=2))
    changes = np.abs(np.diff(norms, axis=1))
    if changes.shape[1] < 3:
        return
    for row in range(measured.parameters):
        if broken[row].any() or (measured.exact and measured.arrays["entries"][row] < SMALL_TENSOR):
            continue
        t = int(np.argmax(changes[row, 1:])) + 1
        # A jump to one checkpoint and back is two large changes.
        others = np.delete(changes[row], [t, t + 1] if t + 1 < changes.shape[1] else [t])
        usual = max(others.max(initial=0.0), LEAST_JUMP / JUMP * norms[row, t])
        if changes[row, t] > JUMP * usual and norms[row, t] > 0:
            text = (
                f"{label_of(members[t + 1])}: the norm of {measured.names[row]} jumps from {norms[row, t]:.3g} to "
                f"{norms[row, t + 1]:.3g}"
            )
            yield Finding("jump", text, (members[t + 1].name,), measured.names[row])


def _frozen_findings(
    members: Sequence[Member], measured: Measured, equal: Sequence[Sequence[int]]
) -> Iterator[Finding]:
    """Yield the tensors that do not change over several checkpoints that differ, grouped by these checkpoints."""
    digests = measured.arrays["digests"][: measured.parameters]
    copies = {t for group in equal for t in group[1:]}
    spans: dict[tuple[int, int], list[str]] = {}
    for row in range(measured.parameters):
        start = 0
        for t in range(1, len(members) + 1):
            if t < len(members) and (digests[row, t] == digests[row, start] or t in copies):
                continue
            if t - start > 1 and any(i not in copies for i in range(start + 1, t)):
                spans.setdefault((start, t - 1), []).append(measured.names[row])
            start = t
    for (start, end), frozen in sorted(spans.items()):
        span = f"from {label_of(members[start])} to {label_of(members[end])}"
        count = f"{len(frozen)} of {measured.parameters} tensors do" if len(frozen) > 1 else f"{frozen[0]} does"
        text = f"{count} not change {span}" + (f": {listed(frozen, MOST_NAMES)}" if len(frozen) > 1 else "")
        yield Finding("frozen", text, (members[start].name, members[end].name), frozen[0], alarm=False)
