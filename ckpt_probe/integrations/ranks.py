"""Exchange objects between the processes of a distributed run: parts of an evaluation, and its record."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch.utils.data import DistributedSampler

from ckpt_probe.errors import CkptProbeError

Result = TypeVar("Result")


def is_first() -> bool:
    """Return whether this is the only process, or the one of rank 0, which computes and writes."""
    return not _several() or dist.get_rank() == 0


def rank_and_size() -> tuple[int, int]:
    """Return the number of this process, and the number of processes: 0 and 1 outside distributed training."""
    return (dist.get_rank(), dist.get_world_size()) if _several() else (0, 1)


def gathered(item: Any) -> list[Any]:
    """Collect one object of every process at rank 0.

    Objects are pickled between processes of one run, which trust each other.

    Args:
        item: Object of this process; its tensors must be on the CPU.

    Returns:
        The objects in the order of ranks at rank 0; an empty list in other processes.
    """
    if not _several():
        return [item]
    items: list[Any] | None = [None] * dist.get_world_size() if is_first() else None
    dist.gather_object(item, items)
    return items or []


def on_first(function: Callable[[], Result]) -> Result:
    """Call `function` at rank 0 and return its result in every process; a CkptProbeError is raised in every process."""
    if not _several():
        return function()
    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome = [function(), None]
        except CkptProbeError as error:
            outcome = [None, error]
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def count_distinct_rows(loader: Any) -> int | None:
    """Count the leading rows of this process's loader that do not repeat others; None if that is all of them.

    A DistributedSampler repeats the first samples at the end, so that all processes have equally many.
    """
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return None
    samples = len(sampler.dataset)  # pyright: ignore[reportArgumentType]
    return max(0, -(-(samples - sampler.rank) // sampler.num_replicas))


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
