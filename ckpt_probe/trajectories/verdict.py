"""Audit of a series as a part of other commands: quick, from a sample of each tensor, and cached."""

from collections.abc import Sequence
from pathlib import Path

from ckpt_probe.checkpoints import Member
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.trajectories.audit import Audit
from ckpt_probe.trajectories.records import WeightOptions, measured_series
from ckpt_probe.trajectories.stream import Opening

SAMPLE = 2**22
"""Number of entries of a checkpoint that are read."""


def audit_series(
    members: Sequence[Member],
    *,
    state_key: str | None = None,
    base: Path | None = None,
    sample: int | None = SAMPLE,
    cache: bool = True,
    progress: Progress | None = None,
) -> Audit | None:
    """Audit a series of checkpoints; copies in local files are confirmed by all bytes.

    Args:
        members: Its checkpoints in order.
        state_key: Key of the weights in a pickled checkpoint.
        base: Checkpoint onto which an adapter is merged.
        sample: Number of entries of a checkpoint that are read; None for all.
        cache: Whether to use the user's cache.
        progress: Receives a bar.

    Returns:
        The audit; None if the checkpoints have no parameter in common.
    """
    opening = Opening(state_key, base, sample)
    options = WeightOptions(parts=("audit",), opening=opening, sketch=False, cache=cache)
    return measured_series(members, options, progress or NullProgress()).audit
