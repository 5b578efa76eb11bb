"""Rows without labels → a record: the entropy of the features, and a reason for everything else."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch

from ckpt_probe.analysis.entries import COUNTS, ENTRIES, REFERENCES, WEIGHTS_ALONE
from ckpt_probe.analysis.readings.records import NEEDS_FEATURES, Record, in_order, settled
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.errors import DataError
from ckpt_probe.metrics.gram import Array
from ckpt_probe.moments import Moments
from ckpt_probe.moments.record import Reading

NO_LABELS = "the data have no labels"
OF_ROWS = ("sample.entropy_features", "sample.entropy_normalized", "sample.effective_rank")
"""Metrics of the features of all samples, whatever these are labelled."""

KNOWN = ("samples", "features", "samples_left_out")


def read_unlabelled(
    blocks: Callable[[], Iterable[Array]] | None,
    settings: Settings,
    *,
    state: Mapping[str, Array] | None = None,
) -> Reading:
    """The reading of rows that have no labels: what needs labels is None, and `missing` says so.

    blocks: gives a pass over features (n, D); where it is None, `state` is that of the moments of one class. Raises
    DataError for NaN or infinity, and where there is no row.
    """
    settings.check()
    moments = Moments(None, memory=settings.memory, only=["sample"], precision=settings.precision)
    if blocks is None:
        moments.load(state or {})
    else:
        for features in blocks():
            moments.update(features, torch.zeros(len(features), dtype=torch.int64))
    known = moments.read(orders=settings.orders, details=settings.spectra)
    counted = {name: known.record[name] for name in KNOWN}
    metrics = {entry.name: entry.family for entry in ENTRIES if entry.name not in WEIGHTS_ALONE}
    asked = [name for name, family in metrics.items() if family in settings.families and name != "erank.difference"]
    record: Record = {**dict.fromkeys((*COUNTS, *asked, *REFERENCES)), **counted}
    why = NEEDS_FEATURES
    if "centred" in settings.families and blocks is not None:
        record["centred.effective_rank"], why = _centred_rank(blocks, moments, settings)
    if "sample" in settings.families:
        record |= {name: value for name, value in known.record.items() if name.endswith(OF_ROWS)}
    absent = [name for name, value in record.items() if value is None and name not in REFERENCES]
    features = [name for name in absent if name == "centred.effective_rank"]
    told = f"; {features[0]}: {why}" if features else ""
    record["missing"] = f"{', '.join(name for name in absent if name not in features)}: {NO_LABELS}{told}"
    return replace(known, record=in_order(settled(record)), per_class=[])


def _centred_rank(
    blocks: Callable[[], Iterable[Array]], moments: Moments, settings: Settings
) -> tuple[float | None, str]:
    """Return the effective rank of the features less their mean, and why it is missing."""
    shifted = Moments(None, memory=settings.memory, only=["sample"], precision=settings.precision)
    for features in blocks():
        shifted.update(moments.centred(features), torch.zeros(len(features), dtype=torch.int64))
    try:
        return shifted.compute()["sample.effective_rank"], ""  # pyright: ignore[reportReturnType]
    except DataError as error:
        return None, f"less their mean, {error}"
