"""What the processes of a distributed run tell each other: shares of one evaluation, and the record of the whole."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch.utils.data import DistributedSampler

from ckpt_probe.errors import CkptProbeError

Result = TypeVar("Result")


def is_first() -> bool:
    """Whether this is the only process, or the one of rank 0, which computes and writes."""
    return not _several() or dist.get_rank() == 0


def gathered(share: Any) -> list[Any]:
    """What every process has handed in, in the order of ranks, at rank 0; nothing at the others.

    Their tensors have to be on the CPU. Objects are pickled between processes of one run, which trust each other.
    """
    if not _several():
        return [share]
    shares: list[Any] | None = [None] * dist.get_world_size() if is_first() else None
    dist.gather_object(share, shares)
    return shares or []


def on_first(function: Callable[[], Result]) -> Result:
    """What `function` returns at rank 0, told to all; an error there of our own is raised in every process."""
    if not _several():
        return function()
    told: list[Any] = [None, None]
    if is_first():
        try:
            told = [function(), None]
        except CkptProbeError as error:
            told = [None, error]
    dist.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    return told[0]


def own_rows(loader: Any) -> int | None:
    """How many rows of a loader's part are this process's own; None for all of them.

    A DistributedSampler hands out the first samples once more so that all parts are of one length; they come last.
    """
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return None
    samples = len(sampler.dataset)  # pyright: ignore[reportArgumentType]
    return max(0, -(-(samples - sampler.rank) // sampler.num_replicas))


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
