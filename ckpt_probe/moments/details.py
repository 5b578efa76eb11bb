"""Details of a record: one row for each class, with standard errors, and the data of the drawings on the report page.

A number of a class depends on the rows of this class alone. The sum of a number over all classes therefore has, along
the weight of a row, the derivative of the number of the row's own class: one backward pass returns the influences on
the numbers of all classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ckpt_probe.metrics.rows import directions, row_lengths
from ckpt_probe.moments.errors.design import FEWEST_ROWS
from ckpt_probe.moments.errors.sample import FEW_DOCUMENTS, FEW_ROWS, FIXED, NOT_FINITE, Sample
from ckpt_probe.moments.inputs import Inputs

NEAREST_OWN = "nearest.own"
FEW_OF_CLASS = f"fewer than {FEWEST_ROWS} rows of the class were kept for standard errors"
NO_VALUE = "the class has no value"

MOST_BLOCKS = 64
"""Largest number of rows of a cosine matrix; more classes are averaged in blocks of neighbours."""

EVERY_RANK, RATIO = 20, 1.25
"""All of the largest eigenvalues up to the first rank are stored, then one whenever the rank has grown by the ratio."""

Value = float | int | str | None


def rows_of_classes(inputs: Inputs) -> list[dict[str, Value]]:
    """Return a record of each class that has enough samples.

    If the inputs have a sample, each number has a standard error, the share of rows nearest to their own class mean
    has one too, and `missing` states the reasons for missing ones.
    """
    scatter, present, sample = inputs.scatter, inputs.present, inputs.sample
    lengths = row_lengths(scatter.means[present]) * scatter.unit
    columns = {
        "mean_norm": (present, lengths),
        "variance": (present, inputs.variances * scatter.unit * scatter.unit),
    }
    if "within" in inputs.options.families:
        columns["within.entropy"] = present[:0], lengths[:0]
        if (within := inputs.within_classes) is not None:
            columns["within.entropy"] = within.labels, within.entropies[1.0]
    if sample is not None and inputs.nearest is not None and inputs.nearest.accuracy is not None:
        nearest = inputs.nearest_of_sample
        columns |= {} if nearest is None else {NEAREST_OWN: _shares_of_classes(sample, nearest == sample.labels)}
    influences = {name: _influences(sample, values) for name, (_, values) in columns.items()}
    values = {name: dict(zip(*(each.tolist() for each in column), strict=True)) for name, column in columns.items()}
    rows: list[dict[str, Value]] = []
    for label, count in zip(present.tolist(), scatter.counts[present].tolist(), strict=True):
        row, reasons = {"class": label, "samples": count}, dict[str, list[str]]()
        mask = None if sample is None else sample.design.labels == label
        for name, of_class in values.items():
            row |= {} if name == NEAREST_OWN else {name: of_class.get(label)}
            if sample is not None and mask is not None:
                error, reason = _error_of_class(sample, mask, count, of_class.get(label), influences[name])
                row[f"{name}_stderr"] = error
                if reason is not None:
                    reasons.setdefault(reason, []).append(f"{name}_stderr")
        message = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        rows.append(row | ({"missing": message} if message else {}))
    return rows


def _error_of_class(
    sample: Sample, mask: Tensor, count: int, value: float | None, influences: Tensor | None
) -> tuple[float | None, str | None]:
    """Return the standard error of a number of a class, or the reason for its absence.

    Args:
        sample: Rows for standard errors.
        mask: Which of them belong to the class, (m,).
        count: Number of all rows of the class.
        value: The number, or None.
        influences: Influences of the rows on the number of their own class, (m,), or None.
    """
    if value is None:
        return None, NO_VALUE
    if sample.reason is not None:
        return None, sample.reason
    if count < FEWEST_ROWS:
        return None, FEW_ROWS
    if int(mask.sum()) < FEWEST_ROWS:
        return None, FEW_OF_CLASS
    documents = sample.design.documents
    if documents is not None and len(documents[mask].unique()) < FEWEST_ROWS:
        return None, FEW_DOCUMENTS
    if influences is None:
        return None, FIXED
    of_class = torch.where(mask, influences, 0.0)
    return sample.stderr(value, of_class) if bool(of_class.isfinite().all()) else (None, NOT_FINITE)


def _shares_of_classes(sample: Sample, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labels of classes (k,) and the share of their rows in the sample that a mask (m,) selects, (k,)."""
    design = sample.design
    labels, each = torch.unique(design.labels, return_inverse=True)
    empty, values, weights = torch.zeros(len(labels), dtype=torch.float64), correct.double().cpu(), sample.weights.cpu()
    sizes = empty.index_add(0, each, design.shares)
    shares = empty.index_add(0, each, design.shares * values) / sizes
    changes = weights * (values - shares[each]) / (sizes[each] * design.samples)
    return labels, shares.index_add(0, each, changes)


def _influences(sample: Sample | None, values: Tensor) -> Tensor | None:
    """Return the influences (m,) of the rows on the number of their own class; None without a gradient."""
    if sample is None or sample.reason is not None or not values.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(values.sum(), sample.weights, retain_graph=True, allow_unused=True)
    return None if gradient is None else sample.design.samples * gradient.cpu()


@dataclass(frozen=True)
class Portrait:
    """Cosines between class means and between classifier rows, and each spectrum at some of its ranks.

    Attributes:
        blocks: Classes of each row of the cosine matrices; one class each up to `MOST_BLOCKS`.
        cosines: Matrices (b, b) of "means" (centred) and "weights"; between blocks the mean over pairs of different
            classes, None if a block has no direction.
        spectra: Ranks from 1, and the eigenvalues at these ranks in descending order, by name of the Gram matrix
            ("class.means", …, and "within", the mean over classes).
        counts: Number of eigenvalues of each spectrum.
    """

    blocks: list[list[int]]
    cosines: dict[str, list[list[float | None]]]
    spectra: dict[str, tuple[list[int], list[float]]]
    counts: dict[str, int]


def portrait_of(labels: Sequence[int], sides: Mapping[str, Tensor], spectra: Mapping[str, Tensor]) -> Portrait:
    """Return the portrait of a record.

    Args:
        labels: Labels of the classes, k of them.
        sides: Rows (k, D) of class means and classifier weights by name.
        spectra: Eigenvalues by name of the Gram matrix.
    """
    edges = block_edges(len(labels))
    within = [values for name, values in spectra.items() if name.startswith("within.")]
    drawn = {name: values for name, values in spectra.items() if not name.startswith("within.")}
    if within:
        drawn["within"] = _mean_by_rank(within)
    return Portrait(
        [list(labels[low:high]) for low, high in pairwise(edges)],
        {name: block_cosines(rows) for name, rows in sides.items()},
        {name: some_ranks(values) for name, values in drawn.items()},
        {name: len(values) for name, values in drawn.items()},
    )


def block_edges(count: int) -> list[int]:
    """Return the edges of at most `MOST_BLOCKS` blocks of `count` rows, whose sizes differ by at most one."""
    blocks = min(count, MOST_BLOCKS)
    return [count * block // blocks for block in range(blocks + 1)] if blocks else [0]


def block_cosines(rows: Tensor) -> list[list[float | None]]:
    """Return the mean cosine between the rows (k, D) of each two blocks, (b, b); in a block over different rows.

    The mean of all cosines between two blocks is the product of their mean directions, so that no k × k matrix is
    formed. A single row has cosine 1 with itself; rows of zero length are left out.
    """
    edges = block_edges(len(rows))
    unit, directed = directions(rows)
    block_of = torch.bucketize(
        torch.arange(len(rows), device=rows.device)[directed], _tensor(edges[1:-1], rows), right=True
    )
    size = len(edges) - 1
    counts = torch.bincount(block_of, minlength=size).to(unit.dtype)
    means = unit.new_zeros(size, unit.shape[1]).index_add_(0, block_of, unit) / counts.clamp(min=1)[:, None]
    cosines = (means @ means.T).clamp(-1, 1)
    diagonal = cosines.diagonal()
    several = counts > 1
    pairs = (diagonal * counts**2 - counts) / (counts * (counts - 1)).clamp(min=1)
    diagonal.copy_(torch.where(several, pairs, torch.ones_like(diagonal)))
    absent = counts == 0
    return [
        [None if absent[i] or absent[j] else float(value) for j, value in enumerate(row)]
        for i, row in enumerate(cosines.tolist())
    ]


def some_ranks(eigenvalues: Tensor) -> tuple[list[int], list[float]]:
    """Return some ranks, from 1, and the eigenvalues (n,) at these ranks in descending order."""
    values = eigenvalues.sort(descending=True).values.clamp(min=0)
    ranks = list(range(1, min(len(values), EVERY_RANK) + 1))
    while ranks and (after := math.ceil(RATIO * ranks[-1])) <= len(values):
        ranks.append(after)
    return ranks, values[_tensor(ranks, values) - 1].tolist()


def _mean_by_rank(spectra: Sequence[Tensor]) -> Tensor:
    total = spectra[0].new_zeros(max(len(values) for values in spectra))
    for values in spectra:
        total[: len(values)] += values.sort(descending=True).values
    return total / len(spectra)


def _tensor(numbers: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=like.device)
