"""Files elsewhere by their address: read by ranges, or fetched into a cache; the only place that uses a network."""

from ckpt_probe.remote.mirror import (
    beside,
    brought,
    by_address,
    here,
    is_away,
    kept,
    named,
    read_at,
    settle,
    shown,
    told_by_address,
    whole,
)

__all__ = [
    "beside",
    "brought",
    "by_address",
    "here",
    "is_away",
    "kept",
    "named",
    "read_at",
    "settle",
    "shown",
    "told_by_address",
    "whole",
]
