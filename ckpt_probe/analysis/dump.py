"""Compute the records of a dump: one for each split, or one for each layer of a split."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ckpt_probe.analysis.context import (
    TRAIN,
    Context,
    documents_of,
    fill_moments,
    layers_of,
    mean_of_outside,
    means_of_training,
    one_class,
    rows_at_once,
)
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
    FirstPass,
    accumulate,
    add_documents,
    centred_entropies,
    compute_from_moments,
)
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.dumps import PENULTIMATE, Dump, LayerView, Pass, SplitView
from ckpt_probe.dumps.schema import MOMENTS
from ckpt_probe.errors import DataError
from ckpt_probe.metrics.covariance import line_through
from ckpt_probe.moments import DetailedRecord, Moments
from ckpt_probe.moments.quality import Quality
from ckpt_probe.moments.record import RecordBuilder, compute_record
from ckpt_probe.moments.registry import DOCUMENTS, FAMILIES, METRICS, SERIES, TRAIN_MEANS

NO_LABELS = "the data have no labels"
UNLABELLED = {
    "sample": ("sample.entropy_features", "sample.entropy_normalized", "sample.effective_rank"),
    "spectrum": ("rankme", "alpha_req", *FIT_RANGE, "participation_ratio"),
}
"""Metrics by family that need no labels."""

NO_SPECTRUM = "the rows have too few directions, or an earlier version stored moments without covariance"

CENTRED_RANK = "centred.effective_rank"
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
    records, means = [], {}
    for view in [dump[name] for name in dict.fromkeys(splits or dump.splits)]:
        team = shared if shared is not None and shared.contains(view) else None
        outside = None if settings.outside is None else mean_of_outside(dump, view, settings.outside)
        records += _Split(dump, view, settings, team, outside, means).records()
    return records


@dataclass(frozen=True)
class _Split:
    """Computes the records of one split.

    Attributes:
        dump: The dump.
        view: The split.
        settings: Options of the analysis.
        shared: Divides the rows of the split among workers; None if this process reads all of them.
        outside: Mean feature (D,) of data of other classes, or None.
        train_means: Class means (C, D) of the training split by layer, None for a layer without them; the training
            split adds its own, and another split those that it needs.
    """

    dump: Dump
    view: SplitView
    settings: Settings
    shared: SharedSplits | None
    outside: Tensor | None
    train_means: dict[str, Tensor | None]

    def records(self) -> list[DetailedRecord]:
        """Compute the record of each layer, that of the classifier's input last."""
        view, settings = self.view, self.settings
        try:
            if not view.samples:
                raise DataError("no samples; choose the other splits with `splits=`")
            last = self._record(PENULTIMATE, view)
            layers = layers_of(view).values() if settings.layers else []
            records = [self._record_of_layer(layer) for layer in layers if isinstance(layer, LayerView)]
        except DataError as error:
            raise DataError(f"{self.dump.path}: {view.name}: {error}") from error
        records.append(_with_fitted_line(last, records, settings) if records else last)
        return [_with_position(record, self.dump, view, settings) for record in records]

    def _record_of_layer(self, layer: LayerView) -> DetailedRecord:
        position = {"layer": layer.name, "depth": layer.depth}
        try:
            detailed = self._record(layer.name, layer)
        except DataError as error:
            raise DataError(f"layer {layer.name}: {error}") from error
        per_class = [{**position, **row} for row in detailed.per_class]
        return replace(detailed, record={**position, **detailed.record}, per_class=per_class, portrait=None)

    def _record(self, name: str, layer: SplitView) -> DetailedRecord:
        """Compute the record of the classifier's input, or of an earlier layer.

        An earlier layer may have any width; at sample level the classifier weights stand for the labels.
        """
        dump, settings, last = self.dump, self.settings, name == PENULTIMATE
        context = self._context(name)
        if not self.view.labelled:
            return _compute_unlabelled(layer, settings, context)
        weights, bias, label_rows = (dump.weights, dump.bias, None) if last else (None, None, dump.weights)
        if not last:
            families = settings.families & OF_LAYERS
            settings = replace(settings, only=tuple(families) or ("quality",), centred=False)
        blocks = None
        if layer.features is not None:
            blocks = Pass(layer, rows_at_once(layer, settings), scores=last)
        first = self._first_pass(layer, blocks, settings)
        if context.training:
            self.train_means[name] = first.moments.means_of_classes(settings.min_samples).cpu()
        return compute_from_moments(
            first, weights, bias, settings=settings, blocks=blocks, context=context, label_rows=label_rows
        )

    def _first_pass(self, layer: SplitView, blocks: Pass | None, settings: Settings) -> FirstPass:
        """Return the stored moments of a layer, or make the first pass over its rows."""
        dump, last = self.dump, layer is self.view
        if last and blocks is not None:
            if self.shared is not None:
                return self.shared.accumulate(dump, self.view, settings, blocks.rows)
            return accumulate(blocks, dump.weights, dump.bias, settings)
        moments = settings.moments(None if dump.weights is None else len(dump.weights))
        numbers = fill_moments(moments, layer, 0 if blocks is None else blocks.rows)
        if last:
            try:
                return FirstPass(moments, Quality.from_numbers(numbers))
            except (KeyError, ValueError, TypeError, OverflowError) as error:
                raise DataError("stored moments: scored, right and summed_loss are missing; extract again") from error

        if blocks is None:
            return FirstPass(moments)

        def second(class_means: Sequence[Tensor], confusion: bool) -> list[NearestCounts]:
            return count_nearest(blocks, class_means, Predictions(None), confusion=confusion)

        return FirstPass(moments, second=second)

    def _context(self, name: str) -> Context:
        """Return what the record of a layer takes from documents, the training split and other data."""
        view, settings, training = self.view, self.settings, self.view.name == TRAIN
        if not training and "nc4" in settings.families and name not in self.train_means:
            self.train_means[name] = means_of_training(self.dump, name, settings)
        of_ranges = None
        if self.shared is not None and name == PENULTIMATE:
            of_ranges = partial(self.shared.documents, self.dump, view, settings)
        train_means = None if training else self.train_means.get(name)
        context = documents_of(view, name, settings, of_ranges)
        return replace(context, outside_mean=self.outside, training=training, train_means=train_means)


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
    at_once = rows_at_once(view, settings)
    # Earlier dumps have no second moment of rows without labels.
    only = UNLABELLED if view.features is not None or f"{MOMENTS}/within" in view.arrays() else ("sample",)
    moments = Moments(None, memory=settings.memory, only=only, precision=settings.precision)
    fill_moments(moments, view, at_once, labelled=False)
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
            centred, _ = centred_entropies(
                lambda: one_class(view.blocks(at_once, scores=False)), moments, None, settings
            )
            record[CENTRED_RANK] = float(torch.as_tensor(centred.values["first"][1.0]).exp())
        except DataError as error:
            reason = str(error)
    absent = [name for name, value in record.items() if value is None and name not in REFERENCES]
    groups: dict[str, list[str]] = {NO_LABELS: [], NO_SPECTRUM: [], reason: []}
    for name in absent:
        cause = NO_SPECTRUM if name in UNLABELLED["spectrum"] else reason if name == CENTRED_RANK else NO_LABELS
        groups[cause].append(name)
    reasons = [f"{', '.join(names)}: {cause}" for cause, names in groups.items() if names]
    of_documents = _record_of_documents(moments, context, settings)
    record |= {**of_documents, "missing": join_reasons(*reasons, of_documents["missing"])}
    return replace(computed, record=settled(record), per_class=[])


def _record_of_documents(moments: Moments, context: Context, settings: Settings) -> Record:
    """Return the metrics of documents of rows without labels, and `missing`."""
    inputs, record = moments.inputs(), RecordBuilder()
    add_documents(inputs, context)
    if context.documents is not None:
        record.put("documents", context.documents.count)
    record.evaluate(inputs, settings.families & {"documents"})
    return record.finish()


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
