"""Entropies at sample level of features minus their mean, in further passes over the rows, and those of each half."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.rows import Array, as_labels, as_tensor
from ckpt_probe.metrics.rows import centred as less_mean
from ckpt_probe.metrics.stochastic import FEWEST
from ckpt_probe.moments.accumulator import Moments
from ckpt_probe.moments.entropies.levels import CentredParts, LevelEntropies, Options
from ckpt_probe.moments.errors.sample import Sample
from ckpt_probe.moments.errors.subset import halves_of

RowsAndDocuments = Callable[[], Iterable[tuple[Array, Array, Array | None]]]
"""Starts a new pass over blocks of features (n, D), labels (n,) and documents (n,) or None, always in one order."""


def centred_levels(
    moments: Moments,
    weights: Array | None,
    blocks: RowsAndDocuments,
    options: Options,
    sample: Sample | None = None,
) -> tuple[LevelEntropies, CentredParts]:
    """Compute the entropies of all rows minus their mean, and of parts minus their own means if there is a sample.

    The mean depends on the weight of each row too: with m the mean, weight w_j moves all rows by −w_j (z_j − m)/N, and
    the rows of the sample stand for all others.

    Args:
        moments: Class moments of the rows, which contain their mean.
        weights: Classifier weights, (C, D), or None.
        blocks: Starts a new pass over the rows.
        options: Options of the record, of which those of sampling matter.
        sample: Rows along whose weights the entropies get gradients, or None.

    Raises:
        DataError: If the centred features have no direction, as when all of them are equal.
    """

    def empty() -> Moments:
        return Moments(moments.classes, memory=moments.memory, only=["sample"], precision=moments.precision)

    with_errors = sample is not None and sample.reason is None
    halves = [0, 1] if with_errors and moments.halves else []
    of_all, *parts = [empty() for _ in (None, *halves)]
    counts = torch.zeros(0, dtype=torch.int64)
    for features, labels, documents in blocks():
        of_all.update(moments.centred(features), labels)
        numbers = as_labels(labels).to(torch.int64)
        owners = None if documents is None else as_labels(documents)
        numbers_of_halves = halves_of(numbers, owners, [counts]) if halves else None
        counts = torch.nn.utils.rnn.pad_sequence([counts, torch.bincount(numbers.cpu())]).sum(dim=1)
        for half, part in zip(halves, parts, strict=True):
            chosen = numbers_of_halves == half
            part.update(moments.centred(as_tensor(features, "features")[chosen], half), numbers[chosen])

    def centred() -> Iterable[tuple[Tensor, Array]]:
        return ((moments.centred(features), labels) for features, labels, _ in blocks())

    options = replace(options, orders=(), families=frozenset({"sample"}), details=False)
    of_parts = replace(options, sampling=replace(options.sampling, probes=FEWEST))

    def of_rows(rows: Tensor, labels: Tensor) -> LevelEntropies:
        part = empty()
        part.update(less_mean(rows), labels)
        return part.inputs(weights, options=of_parts).sample_level

    try:
        inputs = of_all.inputs(weights, options=options, rows=centred)
        if sample is not None and with_errors and inputs.unit is not None:
            away = moments.centred(sample.features)
            moved = replace(sample, features=away - sample.weights @ away / sample.design.samples)
            inputs.unit, inputs.sample = inputs.unit.along(moved), moved
        of_halves = [part.inputs(weights, options=of_parts).sample_level if part.samples else None for part in parts]
        return inputs.sample_level, CentredParts(of_halves, of_rows)
    except DataError as error:
        raise DataError(f"less their mean, {error}") from error
