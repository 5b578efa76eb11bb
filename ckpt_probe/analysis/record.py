"""Compute the record of one split in three stages: accumulate class moments, pass over the rows again, compute."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

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
from ckpt_probe.keywords import from_arguments
from ckpt_probe.metrics.rows import Array, as_labels, as_tensor
from ckpt_probe.metrics.stochastic import MOST
from ckpt_probe.moments import MEMORY, DetailedRecord, Moments, registry
from ckpt_probe.moments.centred import centred_levels
from ckpt_probe.moments.class_sums import rows_at_once
from ckpt_probe.moments.design import RecordWithErrors
from ckpt_probe.moments.documents import DocumentNumbers
from ckpt_probe.moments.entropies import LevelEntropies
from ckpt_probe.moments.errors import Sample
from ckpt_probe.moments.inputs import CentredParts, Inputs
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


ROWS_AT_ONCE = 8192
MANY_CLASSES = 1000
"""Number of classes from which a block of `ROWS_AT_ONCE` rows would have few rows per class."""

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


@dataclass(frozen=True)
class Context:
    """Inputs of the record of a split from elsewhere than its rows and the classifier.

    Attributes:
        outside_mean: Mean feature of data of other classes, shape (D,), or None.
        training: Whether the split is the training split.
        train_means: Class means of the training split, shape (C, D), NaN for absent classes; None without such a split.
        documents: Numbers of each document, or None if rows have no documents.
        reference: Numbers of each document of the reference dump, or None.
        unavailable: Reason for each requirement of metrics that the split and the settings name, but that is not
            fulfilled.
    """

    outside_mean: Tensor | None = None
    training: bool = False
    train_means: Tensor | None = None
    documents: DocumentNumbers | None = None
    reference: DocumentNumbers | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict)

    def add_to(self, inputs: Inputs) -> None:
        """Provide the documents and the reference to the metrics of `inputs`."""
        inputs.documents, inputs.reference = self.documents, self.reference
        fulfilled = {registry.DOCUMENTS: self.documents, registry.REFERENCE: self.reference}
        inputs.provided |= {name for name, value in fulfilled.items() if value is not None} | self.unavailable.keys()
        inputs.unavailable |= self.unavailable


def analyze_features(
    features: Array,
    labels: Array,
    weights: Array | None = None,
    bias: Array | None = None,
    *,
    logits: Array | None = None,
    only: str | Iterable[str] | None = None,
    centred: bool = False,
    errors: bool = False,
    orders: float | Sequence[float] = (),
    min_samples: int = 1,
    tolerance: float = 1e-3,
    budget: float | None = None,
    seed: int = 0,
    probes: int = MOST,
    exact_limit: int | None = None,
    precision: str = "float64",
    memory: int = MEMORY,
) -> Record:
    """Compute the record of features, labels and a classifier; numpy or torch.

    Args:
        features: Features of the samples, shape (N, D).
        labels: Classes of the samples, shape (N,), whole numbers from 0.
        weights: Classifier weights, shape (C, D). Without weights and logits, C is the highest label plus 1.
        bias: Classifier bias, shape (C,).
        logits: Logits of the samples, shape (N, C); computed from `weights` and `bias` if None.
        only: Metrics, families of metrics or patterns to compute, such as "nc,class" or ("MIR", "nc1.*"); the usual
            ones if None.
        centred: Whether to compute MIR, HDR and effective rank also of features minus their mean.
        errors: Whether to add the standard error `NAME_stderr` and the bias `NAME_bias` of each metric; rows count as
            independent.
        orders: Rényi orders of entropies that are computed beside those of order 1, such as (0.5, 2).
        min_samples: Smallest number of samples of a class that enters metrics of class means.
        tolerance: Relative standard error of MIR at which sampling stops.
        budget: Seconds after which sampling stops; no limit if None.
        seed: Seed of the sampling.
        probes: Largest number of probes of the sampling.
        exact_limit: Largest side of a joint matrix that is solved exactly; larger ones are sampled. 12,000, or as
            `memory` allows, if None.
        precision: "float64", or "float32" for products of rows in single precision (about six digits).
        memory: Largest size of moments and matrices in bytes.

    Returns:
        Values by name, entropies in nats. A value that is undefined or not finite is None, with the reason in
        `missing`.

    Raises:
        DataError: If features are NaN or infinite, a label is outside 0 … C−1, shapes do not match, or, with C unknown,
            the class means would take more than `memory` bytes.
        UsageError: If an argument is invalid.
    """
    settings = from_arguments(Settings, locals())
    # Arrays in files are read in parts; lists have no shape.
    features = as_tensor(features, "features") if isinstance(features, list | tuple | Tensor) else features
    for name, values in (("features", features), ("labels", labels), ("logits", logits)):
        optional = name == "logits" and values is None
        if not (optional or isinstance(values, list | tuple) or getattr(values, "shape", ())):
            raise DataError(f"{name}: expected an array with a row for each sample, found {values!r}")
    logits = as_tensor(logits, "logits") if isinstance(logits, list | tuple) else logits
    if logits is not None and len(logits) != len(features):
        raise DataError(f"{len(features)} rows of features but {len(logits)} rows of logits")
    if len(features) != len(labels):
        raise DataError(f"{len(features)} rows of features but {len(labels)} labels")
    rows = ROWS_AT_ONCE
    if weights is not None and features.ndim == 2 and len(weights) > MANY_CLASSES:
        rows = max(rows, rows_at_once(features.shape[1], len(weights)))

    def blocks() -> Iterable[Block]:
        for start in range(0, len(features), rows):
            part = slice(start, start + rows)
            yield features[part], labels[part], None if logits is None else logits[part]

    detailed = compute_from_blocks(blocks, weights, bias, settings)
    return RecordWithErrors(detailed.record, detailed.influences) if errors else detailed.record


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
    context.add_to(inputs)
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
