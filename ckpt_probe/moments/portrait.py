"""What a page draws of one checkpoint and split beside its record: small, whatever N, D and C are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ckpt_probe.metrics.gram import directions

MOST_BLOCKS = 64
"""Rows of a cosine matrix: more classes than that are averaged in blocks of neighbours."""

EVERY_RANK, RATIO = 20, 1.25
"""So many of the largest eigenvalues of a spectrum are kept each, then one wherever the rank has grown by the ratio."""


@dataclass(frozen=True)
class Portrait:
    """Cosines between class means and between classifier rows, and each spectrum at some of its ranks.

    blocks: the classes of each row of the matrices, one each up to `MOST_BLOCKS`. cosines: "means" (centred) and
    "weights", b × b; between blocks the mean over their pairs of different classes; None where a block has no
    direction. spectra: by name of the Gram ("class.means", …, and "within", the mean over classes) its ranks, from 1,
    and the eigenvalues there, in descending order. counts: how many eigenvalues each spectrum has.
    """

    blocks: list[list[int]]
    cosines: dict[str, list[list[float | None]]]
    spectra: dict[str, tuple[list[int], list[float]]]
    counts: dict[str, int]


def portrait_of(labels: Sequence[int], sides: Mapping[str, Tensor], spectra: Mapping[str, Tensor]) -> Portrait:
    """The portrait of rows (k, D) by name, one for each of k labels, and of eigenvalues by name of their Gram."""
    edges = block_edges(len(labels))
    within = [values for name, values in spectra.items() if name.startswith("within.")]
    shown = {name: values for name, values in spectra.items() if not name.startswith("within.")}
    if within:
        shown["within"] = _mean_by_rank(within)
    return Portrait(
        [list(labels[low:high]) for low, high in pairwise(edges)],
        {name: block_cosines(rows) for name, rows in sides.items()},
        {name: some_ranks(values) for name, values in shown.items()},
        {name: len(values) for name, values in shown.items()},
    )


def block_edges(count: int) -> list[int]:
    """Where `MOST_BLOCKS` blocks of `count` rows begin and end, as even as they can be; one row each where they fit."""
    blocks = min(count, MOST_BLOCKS)
    return [count * block // blocks for block in range(blocks + 1)] if blocks else [0]


def block_cosines(rows: Tensor) -> list[list[float | None]]:
    """Mean cosine between the rows (k, D) of each two blocks, (b, b): within a block over pairs of different rows.

    From the blocks' mean directions, so that nothing k × k is formed: the mean of all cosines between two blocks is the
    product of these. A row by itself has cosine 1 with itself; rows of zero length count in no mean.
    """
    edges = block_edges(len(rows))
    unit, kept = directions(rows)
    block_of = torch.bucketize(
        torch.arange(len(rows), device=rows.device)[kept], _tensor(edges[1:-1], rows), right=True
    )
    size = len(edges) - 1
    counts = torch.bincount(block_of, minlength=size).to(unit.dtype)
    means = unit.new_zeros(size, unit.shape[1]).index_add_(0, block_of, unit) / counts.clamp(min=1)[:, None]
    found = (means @ means.T).clamp(-1, 1)
    own = found.diagonal()
    several = counts > 1
    pairs = (own * counts**2 - counts) / (counts * (counts - 1)).clamp(min=1)
    own.copy_(torch.where(several, pairs, torch.ones_like(own)))
    absent = counts == 0
    return [
        [None if absent[i] or absent[j] else float(value) for j, value in enumerate(row)]
        for i, row in enumerate(found.tolist())
    ]


def some_ranks(eigenvalues: Tensor) -> tuple[list[int], list[float]]:
    """Some ranks, from 1, and the eigenvalues (n,) at them, descending; the same whatever n is."""
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
