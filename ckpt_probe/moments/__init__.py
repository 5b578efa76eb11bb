"""Class moments of labelled rows, accumulated in one pass, and the registry of metrics that are computed from them."""

from ckpt_probe.moments.accumulator import MEMORY, Moments
from ckpt_probe.moments.errors.design import Influences, difference
from ckpt_probe.moments.record import DetailedRecord

__all__ = ["MEMORY", "DetailedRecord", "Influences", "Moments", "difference"]
