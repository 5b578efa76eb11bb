"""Compute the record of one split in three stages: accumulate class moments, pass over the rows again, compute."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ckpt_probe.analysis.context import Context
from ckpt_probe.analysis.entries import Record, in_order, settled
from ckpt_probe.analysis.nearest import (
    NearestCounts,
    Predictions,
    add_values_by_means,
    count_nearest,
    predicted_classes,
    without_scores,
)
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.errors import DataError
from ckpt_probe.metrics.rows import Array, as_labels
from ckpt_probe.moments import DetailedRecord, Moments, registry
from ckpt_probe.moments.entropies.centred import centred_levels
from ckpt_probe.moments.entropies.levels import CentredParts, LevelEntropies
from ckpt_probe.moments.errors.sample import Sample
from ckpt_probe.moments.inputs import Inputs
from ckpt_probe.moments.quality import LinearHead, Quality, Scored
from ckpt_probe.moments.record import compute_record
from ckpt_probe.moments.registry import COINCIDE, FEW_SAMPLES, LOGITS, OUTSIDE, SECOND_PASS, TRAIN_MEANS
from ckpt_probe.moments.selection import package_functions

Block = tuple[Array, Array, Array | Scored | None]
"""Features (n, D), labels (n,), and scores: logits (n, C), or predicted classes and losses, or None."""

Blocks = Callable[[], Iterable[Block]]
"""Function that starts a new pass over the blocks of rows, which have the same order in each pass. It may have the
attributes `start`, the index of the first row, and `documents(start, stop)`, the documents (n,) of the last rows."""

SecondPass = Callable[[Sequence[Tensor], bool], list[NearestCounts]]
"""Function that compares every row with some sets of class means (C, D), and returns the counts of each; the second
argument requests counts per class for the first set."""


class FirstPass(NamedTuple):
    """Results of the first pass over the rows.

    Attributes:
        moments: Class moments.
        quality: Accuracy and loss; None for a layer before the classifier's input.
        predicted: Whether the second pass knows the predicted classes.
        second: Makes the second pass; None if the rows are not available.
    """

    moments: Moments
    quality: Quality | None = None
    predicted: bool = False
    second: SecondPass | None = None


PREDICTED_SHARE = 8
"""Predictions of the first pass may take one eighth of the memory budget."""

SCORED = frozenset(metric.family for metric in registry.METRICS if LOGITS in metric.requires)
"""Families of metrics that need predicted classes."""

NO_OUTSIDE = "no data of other classes (`outside=`)"
NEEDS_FEATURES = (
    "needs the features, but only moments were stored (extract again with `store='both'` and `overwrite=True`)"
)
LAYER_NEEDS_FEATURES = (
    "needs the layer's features, not only moments (extract again with `layer_store='both'` and `overwrite=True`)"
)


def compute_from_blocks(
    blocks: Blocks,
    weights: Array | None,
    bias: Array | None = None,
    settings: Settings | None = None,
    context: Context | None = None,
) -> DetailedRecord:
    """Compute the record of a stream of blocks in two passes: one for the moments, one against the class means.

    One block at a time is in memory, except if N × N is the smaller matrix or rows are sampled.

    Args:
        blocks: Called without arguments, starts a new pass over the rows.
        weights: Classifier weights, shape (C, D).
        bias: Classifier bias, shape (C,).
        settings: Options of the analysis.
        context: What the record takes from elsewhere.

    Raises:
        DataError: As `analyze_features`.
    """
    settings = settings or Settings()
    first = accumulate(blocks, weights, bias, settings)
    return compute_from_moments(first, weights, bias, settings=settings, blocks=blocks, context=context)


def accumulate(
    blocks: Blocks, weights: Array | None, bias: Array | None, settings: Settings, before: Array | None = None
) -> FirstPass:
    """Make the first pass: add up class moments and quality, and remember predicted classes for the second pass.

    Args:
        blocks: Called without arguments, starts a pass over the rows.
        weights: Classifier weights, shape (C, D).
        bias: Classifier bias, shape (C,).
        settings: Options of the analysis.
        before: Labels of the rows before these, shape (n,), if these are a range of a split.

    Raises:
        DataError: If a row is invalid.
    """
    head, quality, families, all_blocks = LinearHead.of(weights, bias), Quality(), settings.families, blocks
    moments = settings.moments(None if head is None else len(head.weights))
    if before is not None:
        moments.follow(before)
    predictions = Predictions(head, settings.memory // PREDICTED_SHARE)
    if head is not None and not SCORED & families:
        blocks = without_scores(blocks)
    for features, labels, scores, indices, documents in _with_origin(blocks, wanted=settings.errors):
        _require_labels(features, labels, scores, moments)
        moments.update(features, labels, indices, documents)
        predictions.available = predictions.available or scores is not None
        if "quality" not in families:
            predicted = predicted_classes(scores)
            quality.unpredicted += 0 if predicted is None else int((predicted < 0).sum())
        elif scores is None and head is not None:
            predicted = quality.update_head(head, features, labels)
        else:
            predicted = quality.update_scores(scores, labels)
        if predicted is not None and "nc4" in families:
            predictions.remember(predicted)

    def second(means: Sequence[Tensor], confusion: bool) -> list[NearestCounts]:
        return count_nearest(all_blocks, means, predictions, confusion=confusion)

    return FirstPass(moments, quality, predictions.available, second)


def _with_origin(
    blocks: Blocks, *, wanted: bool
) -> Iterator[tuple[Array, Array, Array | Scored | None, Tensor | None, Array | None]]:
    """Yield blocks with indices and documents of their rows, (n,) each, None if not wanted or without documents."""
    start, documents = getattr(blocks, "start", 0), getattr(blocks, "documents", None)
    for features, labels, scores in blocks():
        first, start = start, start + len(features)
        of_rows = documents(first, start) if wanted and documents is not None else None
        yield features, labels, scores, torch.arange(first, start) if wanted else None, of_rows


def compute_from_moments(
    first: FirstPass,
    weights: Array | None,
    bias: Array | None = None,
    *,
    settings: Settings | None = None,
    blocks: Blocks | None = None,
    context: Context | None = None,
    label_rows: Array | None = None,
) -> DetailedRecord:
    """Compute the record of accumulated moments; values that need the features are None without `blocks`.

    Args:
        first: Results of the first pass.
        weights: Classifier weights, shape (C, D).
        bias: Classifier bias, shape (C,).
        settings: Options of the analysis.
        blocks: Called without arguments, starts a new pass over the rows; used if a joint entropy needs them.
        context: What the record takes from elsewhere.
        label_rows: Rows (C, E) that stand for the labels at sample level in place of `weights`.

    Raises:
        DataError: As `analyze_features`, and if a matrix has no eigenvalues.
    """
    moments, quality = first.moments, first.quality
    settings, context = settings or Settings(), context or Context()
    families = settings.families
    inputs = moments.inputs(
        weights,
        bias,
        settings.options,
        rows=None if blocks is None else lambda: ((rows, labels) for rows, labels, _ in without_scores(blocks)()),
        label_rows=label_rows,
        errors=settings.errors,
    )
    add_documents(inputs, context)
    dead = 0 if inputs.unit is None or quality is not None else inputs.unit.left_out
    if 2 * dead > inputs.samples:
        # A dead layer does not keep the other layers from their records.
        inputs.unavailable[registry.UNIT_ROWS] = f"{dead} of {inputs.samples} rows have zero length"
    inputs.provided.add(SECOND_PASS)
    if quality is not None:
        inputs.provided |= {LOGITS, registry.CENTRED, OUTSIDE}
        inputs.quality, inputs.outside_mean = quality, context.outside_mean
        if not (first.predicted or quality.samples):
            inputs.unavailable[LOGITS] = registry.NO_SCORES
        if context.outside_mean is None:
            inputs.unavailable[OUTSIDE] = NO_OUTSIDE
        if inputs.sample is not None and context.train_means is not None:
            add_values_by_means(inputs.sample, context.train_means)
    counts = NearestCounts()
    if "nc4" in families:
        counts = _compare_with_means(inputs, context, first, settings)
    if "centred" in families:
        try:
            if blocks is None:
                raise DataError(NEEDS_FEATURES)
            entropies = centred_entropies(blocks, moments, weights, settings, inputs.sample)
            inputs.centred, inputs.centred_parts = entropies
        except DataError as error:
            inputs.unavailable[registry.CENTRED] = str(error)
    try:
        detailed = compute_record(inputs)
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise DataError("no eigenvalues: the features overflow float64, or stored moments are damaged") from error
    record: Record = dict(detailed.record)
    for name, function in package_functions().items():
        if name in families:
            record |= {f"{name}.{key}": value for key, value in function(moments, weights, bias).items()}
    record = in_order(settled(record))
    per_class = [settled(counts.row_of_class(row)) for row in detailed.per_class]
    return replace(detailed, record=record, per_class=per_class)


def add_documents(inputs: Inputs, context: Context) -> None:
    """Provide the documents and the reference to the metrics of `inputs`, or the reasons for their absence."""
    inputs.documents, inputs.reference = context.documents, context.reference
    provided = {registry.DOCUMENTS: context.documents, registry.REFERENCE: context.reference}
    inputs.provided |= {name for name, value in provided.items() if value is not None} | context.unavailable.keys()
    inputs.unavailable |= context.unavailable


def _require_labels(features: Array, labels: Array, scores: Array | Scored | None, moments: Moments) -> None:
    numbers = as_labels(labels)
    if features.ndim != 2 or numbers.ndim != 1 or not len(numbers) or scores is None or isinstance(scores, Scored):
        return  # `Moments.update` raises the error for these.
    row = int(numbers.to(torch.int64).argmax())
    highest = int(numbers[row])
    if scores.ndim != 2 or highest >= scores.shape[1]:
        shape = tuple(scores.shape)
        raise DataError(f"labels: row {moments.samples + row} is {highest}, but logits have shape {shape}")


def _compare_with_means(inputs: Inputs, context: Context, first: FirstPass, settings: Settings) -> NearestCounts:
    """Provide the nearest class means of all rows, of this split and of the training split, by the second pass.

    Returns:
        Counts of the nearest class means of this split.
    """
    counts, of_train, means = NearestCounts(), None, context.train_means
    missing = of_train_missing = None
    if first.second is None:
        missing = LAYER_NEEDS_FEATURES if inputs.quality is None else NEEDS_FEATURES
    elif not (first.predicted or settings.per_class or settings.only is not None):
        # Without predictions and rows of classes nothing is compared, unless the family was named.
        missing = "needs a second pass, which only nc4 asks for here"
    elif not len(inputs.present):
        missing = FEW_SAMPLES
    elif inputs.coincide:
        missing = COINCIDE
    else:
        if means is not None and bool(means[:, 0].isnan().all()):
            means, of_train_missing = None, FEW_SAMPLES
        counts, *others = first.second(
            [inputs.all_means.cpu(), *([] if means is None else [means])], settings.per_class
        )
        of_train = others[0] if others else None
        if counts.samples != inputs.samples:
            raise DataError(f"the data changed between two passes: {inputs.samples} rows, then {counts.samples}")
    inputs.nearest, inputs.nearest_train = counts, counts if context.training else of_train
    inputs.unavailable |= {SECOND_PASS: missing} if missing else {}
    if context.training or context.train_means is not None:
        inputs.provided.add(TRAIN_MEANS)
        inputs.unavailable |= {TRAIN_MEANS: reason} if (reason := missing or of_train_missing) else {}
    return counts


def centred_entropies(
    blocks: Blocks, moments: Moments, weights: Array | None, settings: Settings, sample: Sample | None = None
) -> tuple[LevelEntropies, CentredParts]:
    """Compute the entropies at sample level of the features minus their mean, as `centred_levels`.

    Args:
        blocks: Called without arguments, starts a new pass over the rows.
        moments: Class moments of the rows, which contain their mean.
        weights: Classifier weights, shape (C, D).
        settings: Options of the analysis.
        sample: Rows for standard errors, or None.

    Raises:
        DataError: If the centred features have no direction, as when all of them are equal.
    """
    rows = without_scores(blocks)

    def with_documents() -> Iterable[tuple[Array, Array, Array | None]]:
        for features, labels, _, _, documents in _with_origin(rows, wanted=sample is not None):
            yield features, labels, documents

    return centred_levels(moments, weights, with_documents, settings.options, sample)
