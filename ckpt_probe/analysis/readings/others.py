"""Numbers of a dump that need another one: the first of its series, or that of data of other classes."""

from collections.abc import MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.addresses import is_address, place
from ckpt_probe.analysis.readings.records import Record, in_order
from ckpt_probe.dumps import Dump, SplitView, open_dump
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.moments import Moments
from ckpt_probe.moments.quality import double
from ckpt_probe.moments.record import Reading

RANK, DIFFERENCE = "centred.effective_rank", "erank.difference"
ROWS_AT_ONCE = 8192


def against_first(reading: Reading, first: MutableMapping[Any, Record]) -> Reading:
    """A reading with `erank.difference`: the first checkpoint's effective rank less its own (Wei et al. 2024).

    first: the records of the first checkpoint by split, of which the reading becomes one where its split is new.
    """
    record = reading.record
    start = first.setdefault(record["split"], record)
    ranks = start.get(RANK), record.get(RANK)
    told = None
    if None in ranks:
        told = f"no {RANK} of {'this' if ranks[1] is None else 'the first'} checkpoint"
    elif start["samples"] != record["samples"]:
        told = f"{record['samples']} rows, but {start['samples']} of the first checkpoint"
    value = None if told else ranks[0] - ranks[1]  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
    missing = "; ".join(filter(None, (str(record.get("missing") or ""), f"{DIFFERENCE}: {told}" if told else "")))
    return replace(reading, record=in_order({**record, DIFFERENCE: value, "missing": missing or None}))


def outside_of(dump: Dump, outside: Path | str | None) -> Path | None:
    """The dump of other data for one dump: the file that was named, or that of the same name in the directory.

    Raises DataError where the directory has none, UsageError for an address.
    """
    if outside is not None and is_address(outside):
        raise UsageError(f"{place(outside)}: dumps of other data are local ones; fetch them first")
    if outside is None or Path(outside).is_file():
        return None if outside is None else Path(outside)
    found = Path(outside) / dump.path.name
    if not found.is_file():
        raise DataError(f"{found}: no dump of other data for {dump.path}: extract the same checkpoints with both data")
    return found


def mean_outside(path: Path | None, view: SplitView) -> Tensor | None:
    """The mean feature (D,) of a dump of other data: of its split of the same name, else of its only one.

    Raises DataError where it has neither, or another number of features.
    """
    if path is None:
        return None
    with open_dump(path) as dump:
        if view.name not in dump.splits and len(dump.splits) > 1:
            raise DataError(f"{path}: no split {view.name}, and several others: {', '.join(dump.splits)}")
        other = dump[view.name if view.name in dump.splits else dump.splits[0]]
        if other.dimension != view.dimension:
            raise DataError(f"{path}: {other.dimension} features, where the dump itself has {view.dimension}")
        stored = other.read_moments() if other.features is None else None
        if stored is not None:
            counts, means = (double(stored[0][name], name) for name in ("counts", "means"))
            return counts @ means / counts.sum()
        return mean_of(other)


def mean_of(view: SplitView) -> Tensor:
    """The mean (D,) of a split's rows, float64."""
    moments = Moments(None, only=["nc2"])
    for features, _, _ in view.blocks(ROWS_AT_ONCE, scores=False):
        moments.update(features, torch.zeros(len(features), dtype=torch.int64))
    return moments.mean
