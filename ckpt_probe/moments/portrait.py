"""Data of the drawings of one checkpoint and split on the report page; small for any N, D and C."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ckpt_probe.metrics.rows import directions

MOST_BLOCKS = 64
"""Largest number of rows of a cosine matrix; more classes are averaged in blocks of neighbours."""

EVERY_RANK, RATIO = 20, 1.25
"""All of the largest eigenvalues up to the first rank are stored, then one whenever the rank has grown by the ratio."""


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
