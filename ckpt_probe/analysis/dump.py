"""A dump → its records: one for each split, or one for each layer of a split."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ckpt_probe.addresses import is_address, place
from ckpt_probe.analysis.entries import (
    COUNTS,
    ENTRIES,
    NOT_STORED,
    REFERENCES,
    WEIGHTS_ALONE,
    Record,
    in_order,
    named_rows,
    settled,
)
from ckpt_probe.analysis.layers import compute_layer, with_fitted_line
from ckpt_probe.analysis.ranges import SharedSplits
from ckpt_probe.analysis.record import NEEDS_FEATURES, read_blocks, read_moments
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.dumps import PENULTIMATE, Dump, LayerView, Pass, SplitView, open_dump
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.moments import DetailedRecord, Moments
from ckpt_probe.moments.quality import Quality, double

BLOCK_BYTES = 2**20, 16 * 2**20
"""Least and most bytes of a block of rows as float64; between them, a block takes a sixteenth of the memory budget."""

ROWS_AT_ONCE = 8192
NO_LABELS = "the data have no labels"
OF_ROWS = ("sample.entropy_features", "sample.entropy_normalized", "sample.effective_rank")
"""Metrics that need no labels."""
CENTRED_RANK = "centred.effective_rank"


def compute_dump(
    dump: Dump, splits: Sequence[str] | None, settings: Settings, shared: SharedSplits | None = None
) -> list[DetailedRecord]:
    """Compute the records of an open dump.

    Args:
        dump: The dump.
        splits: Names of splits; all if None.
        settings: Options of the analysis.
        shared: Divides large splits among workers.

    Raises:
        DataError: If a split is missing or contains invalid values; the message names file, split and row.
    """
    names = dict.fromkeys(splits or dump.splits)
    return [detailed for name in names for detailed in _compute_split(dump, dump[name], settings, shared)]


def _compute_split(
    dump: Dump, view: SplitView, settings: Settings, shared: SharedSplits | None
) -> list[DetailedRecord]:
    outside = None if settings.outside is None else _mean_of_outside(outside_dump(dump, settings.outside), view)
    layers = [layer for layer in view.layers if layer.name != PENULTIMATE] if settings.layers else []
    try:
        last = _compute_last_layer(dump, view, settings, outside, shared)
        records = [last]
        if layers:
            others = [_compute_other_layer(dump, layer, settings, labelled=view.labelled) for layer in layers]
            records = with_fitted_line(others, last, settings)
    except DataError as error:
        raise DataError(f"{dump.path}: {view.name}: {error}") from error
    return [_with_position(record, dump, view, settings) for record in records]


def _compute_last_layer(
    dump: Dump, view: SplitView, settings: Settings, outside: Tensor | None, shared: SharedSplits | None
) -> DetailedRecord:
    weights, bias, at_once = dump.weights, dump.bias, _rows_at_once(view, settings)
    if not view.labelled:
        return _compute_unlabelled(view, settings)
    blocks = Pass(view, at_once)
    if view.features is None:
        moments, quality = _stored_moments(dump, view, settings)
        return read_moments(moments, quality, weights, bias, settings=settings, outside=outside)
    if shared is None or not shared.contains(view):
        return read_blocks(blocks, weights, bias, settings, outside)
    moments, quality, predictions = shared.accumulate(dump, view, settings, at_once)
    return read_moments(
        moments,
        quality,
        weights,
        bias,
        blocks=blocks,
        predictions=predictions,
        settings=settings,
        outside=outside,
        second=lambda means, confusion: shared.count_nearest(dump, view, at_once, means, confusion),
    )


def _compute_other_layer(dump: Dump, layer: LayerView, settings: Settings, *, labelled: bool) -> DetailedRecord:
    try:
        if labelled:
            return compute_layer(layer, dump.weights, settings, _rows_at_once(layer, settings))
        detailed = _compute_unlabelled(layer, settings)
    except DataError as error:
        raise DataError(f"layer {layer.name}: {error}") from error
    return replace(detailed, record=in_order({"layer": layer.name, "depth": layer.depth, **detailed.record}))


def _stored_moments(dump: Dump, view: SplitView, settings: Settings) -> tuple[Moments, Quality]:
    stored = view.read_moments()
    assert stored is not None
    state, numbers = stored
    moments = settings.moments(None if dump.weights is None else len(dump.weights))
    moments.load_state_dict(state)
    try:
        return moments, Quality.from_numbers(numbers)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise DataError("stored moments: scored, right and summed_loss are missing; extract again") from error


def _compute_unlabelled(view: SplitView, settings: Settings) -> DetailedRecord:
    """Compute the record of rows without labels: values that need labels are None, with the reason in `missing`."""
    settings.check()
    moments = Moments(None, memory=settings.memory, only=["sample"], precision=settings.precision)
    blocks = Pass(view, _rows_at_once(view, settings), scores=False)
    if view.features is None:
        stored = view.read_moments()
        assert stored is not None
        moments.load_state_dict(stored[0])
    else:
        _add_rows(moments, (features for features, _, _ in blocks()))
    computed = moments.read(orders=settings.orders, details=settings.spectra)
    families = {entry.name: entry.family for entry in ENTRIES if entry.name not in WEIGHTS_ALONE}
    names = [name for name, family in families.items() if family in settings.families and name != "erank.difference"]
    record: Record = dict.fromkeys((*COUNTS, *names, *REFERENCES))
    record |= {name: computed.record[name] for name in ("samples", "features", "samples_left_out")}
    if "sample" in settings.families:
        record |= {name: value for name, value in computed.record.items() if name.endswith(OF_ROWS)}
    reason = NEEDS_FEATURES
    if "centred" in settings.families and view.features is not None:
        record[CENTRED_RANK], reason = _centred_rank(blocks, moments, settings)
    absent = [name for name, value in record.items() if value is None and name not in REFERENCES]
    record["missing"] = f"{', '.join(name for name in absent if name != CENTRED_RANK)}: {NO_LABELS}"
    if CENTRED_RANK in absent:
        record["missing"] += f"; {CENTRED_RANK}: {reason}"
    return replace(computed, record=in_order(settled(record)), per_class=[])


def _centred_rank(blocks: Pass, moments: Moments, settings: Settings) -> tuple[float | None, str]:
    """Compute the effective rank of the features less their mean; return it and the reason if it is missing."""
    shifted = Moments(None, memory=settings.memory, only=["sample"], precision=settings.precision)
    _add_rows(shifted, (moments.centred(features) for features, _, _ in blocks()))
    try:
        return shifted.compute()["sample.effective_rank"], ""  # pyright: ignore[reportReturnType]
    except DataError as error:
        return None, f"less their mean, {error}"


def _with_position(detailed: DetailedRecord, dump: Dump, view: SplitView, settings: Settings) -> DetailedRecord:
    """Add checkpoint, step and split, and drop the details that `settings` do not request."""
    position = {"checkpoint": dump.name, "step": dump.step, "split": view.name}
    not_stored = {NOT_STORED: view.not_stored} if view.not_stored else {}
    rows = [{**position, **row} for row in detailed.per_class] if settings.per_class else []
    return replace(
        detailed,
        record=in_order({**position, **not_stored, **detailed.record}),
        spectra={name: values.numpy() for name, values in detailed.spectra.items()} if settings.spectra else {},
        per_class=named_rows(rows, dump.class_names),
        portrait=detailed.portrait if settings.portrait else None,
    )


def _rows_at_once(view: SplitView, settings: Settings) -> int:
    size = sorted((*BLOCK_BYTES, settings.memory // 16))[1]
    return max(1, size // (8 * view.dimension))


def outside_dump(dump: Dump, outside: Path | str) -> Path:
    """Return the dump of data of other classes that belongs to a dump.

    Args:
        dump: The dump.
        outside: A file, or a directory with a file of the same name.

    Raises:
        DataError: If the directory has no such file.
        UsageError: If `outside` is an address.
    """
    if is_address(outside):
        raise UsageError(f"{place(outside)}: dumps of other data are local ones; fetch them first")
    if Path(outside).is_file():
        return Path(outside)
    file = Path(outside) / dump.path.name
    if not file.is_file():
        raise DataError(f"{file}: no dump of other data for {dump.path}: extract the same checkpoints with both data")
    return file


def _mean_of_outside(path: Path, view: SplitView) -> Tensor:
    """Return the mean feature (D,) of the split of the same name in a dump of other data, or of its only split."""
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
        moments = Moments(None, only=["nc2"])
        _add_rows(moments, (features for features, _, _ in other.blocks(ROWS_AT_ONCE, scores=False)))
        return moments.mean


def _add_rows(moments: Moments, blocks: Iterable) -> None:
    """Add rows to moments as one class."""
    for features in blocks:
        moments.update(features, torch.zeros(len(features), dtype=torch.int64))
