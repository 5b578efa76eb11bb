"""A series with its measurements: the options of the records of weights, and what they need apart from spectra."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from ckpt_probe.addresses import Address
from ckpt_probe.checkpoints import Member
from ckpt_probe.checkpoints.series import have_same_weights
from ckpt_probe.checkpoints.tensors import Layout
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.keywords import suggestion
from ckpt_probe.progress import Progress
from ckpt_probe.scheduling import Failed, Workers, joint_error
from ckpt_probe.trajectories.audit import Audit, audit_of
from ckpt_probe.trajectories.layout import Finding, Parameters, label_of, parameters_of
from ckpt_probe.trajectories.measure import Measured, measure
from ckpt_probe.trajectories.motion import Trajectory, trajectory_of
from ckpt_probe.trajectories.stream import Opening

PARTS = ("audit", "motion", "spectra", "classifier")
ALONE = ("classifier",)
LEVELS = ("network", "block", "tensor")
SKETCHED, MOST_FILES, MOST_BUFFERED = 2**37, 800, 2**31
"""Size in bytes of a series, number of its files, and size of tensors in memory above which sketches replace exact
distances."""
BY_RANGES = ("safetensors", "torch zip")
"""Formats of which parts of a tensor are read without the others."""


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
    opening = options.opening
    readable: dict[Member, Layout] = {}
    failed: dict[str, Failed] = {}
    size, files, buffered = 0, 0, 0
    for member in members:
        with ExitStack() as stack:
            try:
                checkpoint = opening.open(member.path, stack)
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
    return WeightSeries(tuple(readable), failed, parameters, measured, audit, trajectory_of(measured.gram))
