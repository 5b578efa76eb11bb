"""A series with its measurements apart from spectra, and the quick audit from a sample of its weights."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ckpt_probe.addresses import Address
from ckpt_probe.checkpoints import Member, open_series
from ckpt_probe.checkpoints.series import have_same_weights
from ckpt_probe.checkpoints.tensors import Layout
from ckpt_probe.errors import CkptProbeError, DataError
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.scheduling import Failed, joint_error
from ckpt_probe.trajectories.audit import Audit, audit_of
from ckpt_probe.trajectories.layout import Finding, Parameters, WeightOptions, label_of, parameters_of
from ckpt_probe.trajectories.measure import Measured, measure
from ckpt_probe.trajectories.motion import Trajectory, trajectory_of

SAMPLE = 2**22
"""Number of entries of a checkpoint that the quick audit reads."""
SKETCHED, MOST_FILES, MOST_BUFFERED = 2**37, 800, 2**31
"""Size in bytes of a series, number of its files, and size of tensors in memory above which sketches replace exact
distances."""
BY_RANGES = ("safetensors", "torch zip")
"""Formats of which parts of a tensor are read without the others."""


@dataclass(frozen=True)
class WeightSeries:
    """A series with its measurements.

    Attributes:
        members: The checkpoints in order, without those that cannot be opened.
        failed: Errors of those, by the name of the checkpoint.
        parameters: The tensors that are compared.
        measured: Their measurements; None without audit and motion.
        audit: The audit; None without measurements.
        trajectory: The plane of the trajectory; None if there is no motion.
    """

    members: tuple[Member, ...]
    failed: Mapping[str, Failed]
    parameters: Parameters
    measured: Measured | None = None
    audit: Audit | None = None
    trajectory: Trajectory | None = None


def measured_series(members: Sequence[Member], options: WeightOptions, progress: Progress) -> WeightSeries:
    """Measure what `options` need of the checkpoints of a series, apart from spectra.

    Raises:
        DataError: If none of them can be opened, or a tensor cannot be read.
    """
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
    parameters = parameters_of([*readable], [*readable.values()], damaged)
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
    audit = audit_of(parameters, measured, None if options.sample is None or remote else confirm)
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
