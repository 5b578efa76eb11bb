"""Compute the records of a dump: one for each split, or one for each layer of a split."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.addresses import is_address, without_secrets
from ckpt_probe.analysis.documents import documents_of
from ckpt_probe.analysis.entries import (
    COUNTS,
    FIT_RANGE,
    NOT_STORED,
    REFERENCES,
    Record,
    in_order,
    join_reasons,
    named_rows,
    settled,
)
from ckpt_probe.analysis.nearest import NearestCounts, Predictions, count_nearest
from ckpt_probe.analysis.ranges import SharedSplits
from ckpt_probe.analysis.record import (
    NEEDS_FEATURES,
    Block,
    Context,
    FirstPass,
    accumulate,
    centred_entropies,
    compute_from_moments,
)
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.dumps import PENULTIMATE, Dump, LayerView, Pass, SplitView, open_dump
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.metrics.covariance import line_through
from ckpt_probe.metrics.rows import double
from ckpt_probe.moments import DetailedRecord, Moments
from ckpt_probe.moments.quality import Quality
from ckpt_probe.moments.record import RecordBuilder, compute_record
from ckpt_probe.moments.registry import DOCUMENTS, FAMILIES, METRICS, SERIES, TRAIN_MEANS

BLOCK_BYTES = 2**20, 16 * 2**20
"""Least and most bytes of a block of rows as float64; between them, a block takes a sixteenth of the memory budget."""

ROWS_AT_ONCE = 8192

NO_LABELS = "the data have no labels"
UNLABELLED = {
    "sample": ("sample.entropy_features", "sample.entropy_normalized", "sample.effective_rank"),
    "spectrum": ("rankme", "alpha_req", *FIT_RANGE, "participation_ratio"),
}
"""Metrics by family that need no labels."""

NO_SPECTRUM = "the rows have too few directions, or an earlier version stored moments without covariance"

CENTRED_RANK = "centred.effective_rank"
TRAIN = "train"
"""Name of the training split."""

OF_LAYERS = frozenset(family.name for family in FAMILIES if family.any_layer)
"""Families that apply to any layer; the others compare means with classifier rows of the same width."""

SLOPE, FIT = "separation.slope", "separation.r2"
FEW_LAYERS = "separation is known of fewer than three layers"


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
    names, means = dict.fromkeys(splits or dump.splits), {}
    return [detailed for name in names for detailed in _compute_split(dump, dump[name], settings, shared, means)]


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
        raise UsageError(f"{without_secrets(str(outside))}: dumps of other data must be local; download them first")
    if Path(outside).is_file():
        return Path(outside)
    file = Path(outside) / dump.path.name
    if not file.is_file():
        raise DataError(f"{file}: no dump of other data for {dump.path}: extract the same checkpoints with both data")
    return file


def _compute_split(
    dump: Dump,
    view: SplitView,
    settings: Settings,
    shared: SharedSplits | None,
    train_means: dict[str, Tensor | None],
) -> list[DetailedRecord]:
    """Compute the records of a split, and read or store the class means (C, D) of the training split by layer."""
    outside = None if settings.outside is None else _mean_of_outside(outside_dump(dump, settings.outside), view)
    layers = [layer for layer in view.layers if layer.name != PENULTIMATE] if settings.layers else []
    shared = shared if shared is not None and shared.contains(view) else None

    def context(layer: SplitView) -> Context:
        of_train, name = view.name == TRAIN, PENULTIMATE if layer is view else layer.name
        if not of_train and "nc4" in settings.families and name not in train_means:
            train_means[name] = _train_means(dump, settings, name)
        means = None if of_train else train_means.get(name)
        read = None if shared is None or layer is not view else partial(shared.documents, dump, view, settings)
        beside = documents_of(view, layer, settings, read)
        return replace(beside, outside_mean=outside, training=of_train, train_means=means)

    try:
        if not view.samples:
            raise DataError("no samples; choose the other splits with `splits=`")
        last = _compute_penultimate(dump, view, settings, context(view), shared, train_means)
        records = [
            _compute_layer(dump, layer, settings, context(layer), train_means, labelled=view.labelled)
            for layer in layers
        ]
    except DataError as error:
        raise DataError(f"{dump.path}: {view.name}: {error}") from error
    records.append(_with_fitted_line(last, records, settings) if layers else last)
    return [_with_position(record, dump, view, settings) for record in records]


def _compute_penultimate(
    dump: Dump,
    view: SplitView,
    settings: Settings,
    context: Context,
    shared: SharedSplits | None,
    train_means: dict[str, Tensor | None],
) -> DetailedRecord:
    if not view.labelled:
        return _compute_unlabelled(view, settings, context)
    weights, bias, rows = dump.weights, dump.bias, _rows_at_once(view, settings)
    if view.features is None:
        blocks, (moments, numbers) = None, _stored_moments(view, settings, None if weights is None else len(weights))
        try:
            first = FirstPass(moments, Quality.from_numbers(numbers))
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise DataError("stored moments: scored, right and summed_loss are missing; extract again") from error
    else:
        blocks = Pass(view, rows)
        accumulated = None if shared is None else shared.accumulate(dump, view, settings, rows)
        first = accumulated or accumulate(blocks, weights, bias, settings)
    if context.training:
        train_means[PENULTIMATE] = first.moments.means_of_classes(settings.min_samples).cpu()
    return compute_from_moments(first, weights, bias, settings=settings, blocks=blocks, context=context)


def _compute_layer(
    dump: Dump,
    layer: LayerView,
    settings: Settings,
    context: Context,
    train_means: dict[str, Tensor | None],
    *,
    labelled: bool,
) -> DetailedRecord:
    """Compute the record of a layer of any width; at sample level the classifier weights stand for the labels."""
    position = {"layer": layer.name, "depth": layer.depth}
    try:
        if not labelled:
            detailed = _compute_unlabelled(layer, settings, context)
            return replace(detailed, record={**position, **detailed.record})
        families, weights = settings.families & OF_LAYERS, dump.weights
        narrowed = replace(settings, only=tuple(families) or ("quality",), centred=False)
        classes = None if weights is None else len(weights)
        if layer.features is None:
            blocks, (moments, _) = None, _stored_moments(layer, narrowed, classes)
        else:
            blocks, moments = Pass(layer, _rows_at_once(layer, settings), scores=False), narrowed.moments(classes)
            for features, labels, _ in blocks():
                moments.update(features, labels)
        if context.training:
            train_means[layer.name] = moments.means_of_classes(settings.min_samples).cpu()
        first = FirstPass(moments, second=blocks and partial(_count_nearest, blocks))
        detailed = compute_from_moments(
            first, None, settings=narrowed, blocks=blocks, context=context, label_rows=weights
        )
    except DataError as error:
        raise DataError(f"layer {layer.name}: {error}") from error
    per_class = [{**position, **row} for row in detailed.per_class]
    return replace(detailed, record={**position, **detailed.record}, per_class=per_class, portrait=None)


def _count_nearest(blocks: Pass, class_means: Sequence[Tensor], confusion: bool) -> list[NearestCounts]:
    return count_nearest(blocks, class_means, Predictions(None), confusion=confusion)


def _with_fitted_line(last: DetailedRecord, layers: Sequence[DetailedRecord], settings: Settings) -> DetailedRecord:
    """Add the line through separation against depth of all layers to the record of the penultimate one."""
    position = {"layer": PENULTIMATE, "depth": 1.0}
    record: Record = {**last.record, **position}
    if "nc1" in settings.families:
        points = [(each["depth"], each["separation"]) for each in (*(layer.record for layer in layers), record)]
        fit = line_through([point for point in points if point[1] is not None])  # pyright: ignore[reportArgumentType]
        record |= {SLOPE: None if fit is None else fit.slope, FIT: None if fit is None else fit.r2}
        if fit is None:
            record["missing"] = join_reasons(record["missing"], f"{SLOPE}, {FIT}: {FEW_LAYERS}")
    return replace(last, record=record, per_class=[{**position, **row} for row in last.per_class])


def _compute_unlabelled(view: SplitView, settings: Settings, context: Context) -> DetailedRecord:
    """Compute the record of rows without labels: values that need labels are None, with the reason in `missing`."""
    rows = Pass(view, _rows_at_once(view, settings), scores=False)
    stored = view.read_moments() if view.features is None else None
    # Earlier dumps have no second moment of rows without labels.
    only = ["sample", "spectrum"] if stored is None or "within" in stored[0] else ["sample"]
    moments = Moments(None, memory=settings.memory, only=only, precision=settings.precision)
    if stored is not None:
        moments.load_state_dict(stored[0])
    else:
        for features, labels, _ in _one_class(rows()):
            moments.update(features, labels)
    options = replace(settings.options, families=moments.families, details=settings.spectra)
    computed = compute_record(moments.inputs(options=options))
    metrics = [metric for metric in METRICS if metric.family in settings.families and not metric.of_weights]
    names = [metric.name for metric in metrics if not {SERIES, DOCUMENTS, TRAIN_MEANS} & set(metric.requires)]
    record: Record = dict.fromkeys((*COUNTS, *names, *REFERENCES))
    record |= {name: computed.record[name] for name in ("samples", "features", "samples_left_out")}
    for family in settings.families & set(UNLABELLED):
        record |= {name: value for name, value in computed.record.items() if name.endswith(UNLABELLED[family])}
    reason = NEEDS_FEATURES
    if "centred" in settings.families and view.features is not None:
        try:
            centred, _ = centred_entropies(lambda: _one_class(rows()), moments, None, settings)
            record[CENTRED_RANK] = float(centred.values["first"][1.0].exp())
        except DataError as error:
            reason = str(error)
    absent = [name for name, value in record.items() if value is None and name not in REFERENCES]
    of_labels = [name for name in absent if name not in (CENTRED_RANK, *UNLABELLED["spectrum"])]
    record["missing"] = f"{', '.join(of_labels)}: {NO_LABELS}"
    if of_rows := [name for name in absent if name in UNLABELLED["spectrum"]]:
        record["missing"] += f"; {', '.join(of_rows)}: {NO_SPECTRUM}"
    if CENTRED_RANK in absent:
        record["missing"] += f"; {CENTRED_RANK}: {reason}"
    of_documents = _record_of_documents(moments, context, settings)
    record |= {**of_documents, "missing": join_reasons(record["missing"], of_documents["missing"])}
    return replace(computed, record=settled(record), per_class=[])


def _record_of_documents(moments: Moments, context: Context, settings: Settings) -> Record:
    """Return the metrics of documents of rows without labels, and `missing`."""
    inputs, record = moments.inputs(), RecordBuilder()
    context.add_to(inputs)
    if context.documents is not None:
        record.put("documents", context.documents.count)
    record.evaluate(inputs, settings.families & {"documents"})
    return record.finish()


def _train_means(dump: Dump, settings: Settings, layer: str) -> Tensor | None:
    """Return the class means (C, D) of a layer of the training split, NaN for absent classes; None without them."""
    if TRAIN not in dump.splits or not dump[TRAIN].labelled:
        return None
    split = dump[TRAIN]
    view = split if layer == PENULTIMATE else next((each for each in split.layers if each.name == layer), None)
    if view is None or not view.samples:
        return None
    moments = Moments(None if dump.weights is None else len(dump.weights), only=["nc2"])
    if view.features is None:
        stored = view.read_moments()
        if stored is None:
            return None
        moments.load_state_dict(stored[0])
    else:
        for features, labels, _ in view.blocks(_rows_at_once(view, settings), scores=False):
            moments.update(features, labels)
    return moments.means_of_classes(settings.min_samples).cpu()


def _stored_moments(view: SplitView, settings: Settings, classes: int | None) -> tuple[Moments, dict[str, Any]]:
    """Return the stored class moments, and the stored numbers of accuracy and loss."""
    stored = view.read_moments()
    if stored is None:
        raise DataError("neither features nor moments are stored; extract again")
    moments = settings.moments(classes)
    moments.load_state_dict(stored[0])
    return moments, stored[1]


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
        for features, labels, _ in _one_class(other.blocks(ROWS_AT_ONCE, scores=False)):
            moments.update(features, labels)
        return moments.mean


def _one_class(blocks: Iterable[Block]) -> Iterable[Block]:
    """Yield blocks without scores, all rows in one class."""
    for features, _, _ in blocks:
        yield features, torch.zeros(len(features), dtype=torch.int64), None


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
