"""One pass over labelled rows: what is accumulated of them, and every metric that is read from it."""

from ckpt_probe.moments.accumulator import MEMORY, Moments
from ckpt_probe.moments.record import DetailedRecord

__all__ = ["MEMORY", "DetailedRecord", "Moments"]
