"""Compare predictions of the same rows: disagreement, agreement among errors, and Jensen–Shannon divergence."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

ROWS = 2**16
"""Rows that are compared at once."""


@dataclass(frozen=True)
class Agreement:
    """Comparisons of pairs of networks, NaN where a value is undefined.

    Attributes:
        disagreement: Share of rows that are predicted differently.
        error_agreement: Share of the rows that both predict wrongly for which both predict one wrong class.
        wins: Share of rows that the second predicts correctly and the first does not.
        losses: Share of rows that the first predicts correctly and the second does not.
    """

    disagreement: np.ndarray
    error_agreement: np.ndarray
    wins: np.ndarray
    losses: np.ndarray


def compare_predictions(
    predicted: np.ndarray, labels: np.ndarray | None, pairs: Sequence[tuple[int, int]]
) -> Agreement:
    """Compare the predictions of pairs of networks.

    The share of rows predicted differently is the churn of Milani Fard et al. 2016 ("Launch and Iterate"), whose wins
    and losses are counted too.

    Args:
        predicted: Predicted classes, shape (T, N).
        labels: Class indices, shape (N,), or None: then only the disagreement is defined.
        pairs: Pairs (i, j) of rows of `predicted`.

    Returns:
        Arrays of shape (len(pairs),).
    """
    counts = np.zeros((5, len(pairs)), dtype=np.int64)
    samples = predicted.shape[1]
    for start in range(0, samples, ROWS):
        block = predicted[:, start : start + ROWS]
        right = np.zeros_like(block, dtype=bool) if labels is None else block == labels[None, start : start + ROWS]
        for number, (i, j) in enumerate(pairs):
            same = block[i] == block[j]
            wrong = ~(right[i] | right[j])
            counts[:, number] += [
                np.count_nonzero(same),
                np.count_nonzero(wrong),
                np.count_nonzero(same & wrong),
                np.count_nonzero(right[j] > right[i]),
                np.count_nonzero(right[i] > right[j]),
            ]
    same, wrong, same_wrong, wins, losses = counts.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = same_wrong / wrong if labels is not None else np.full(len(pairs), math.nan)
        unknown = 0.0 if labels is not None else math.nan
        return Agreement((samples - same) / samples, errors, wins / samples + unknown, losses / samples + unknown)


def divergences(blocks: Iterable[np.ndarray], pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Compute the mean Jensen–Shannon divergence over rows for pairs of networks, in nats (at most log 2).

    JS(p, q) = H((p + q)/2) − (H(p) + H(q))/2 (Lin 1991). Sums over rows are taken in float64, so that a value carries
    an absolute error of about 1e−15; that of equal probabilities is 0.

    Args:
        blocks: Probabilities of the same rows for all networks, each block of shape (T, n, C).
        pairs: Pairs (i, j) of networks.

    Returns:
        Array of shape (len(pairs),), NaN without rows.
    """
    totals, differ, rows = np.zeros(len(pairs)), np.zeros(len(pairs), dtype=bool), 0
    for block in blocks:
        rows += block.shape[1]
        # Parts of a row of numbers that fit into the cache of the processor.
        flat = block.reshape(len(block), -1)
        for start in range(0, flat.shape[1], 2**14):
            part = np.ascontiguousarray(flat[:, start : start + 2**14])
            logarithms = np.log(part)
            entropies = np.einsum("ij,ij->i", part, logarithms)
            mixed, powers = np.empty(part.shape[1]), np.empty(part.shape[1])
            for number, (i, j) in enumerate(pairs):
                np.add(part[i], part[j], out=mixed)
                np.log(mixed, out=powers)
                differ[number] = differ[number] or not np.array_equal(part[i], part[j])
                totals[number] += entropies[i] + entropies[j] - np.dot(mixed, powers)
    if not rows:
        return np.full(len(pairs), math.nan)
    return np.where(differ, np.maximum(math.log(2) + totals / (2 * rows), 0.0), 0.0)


def all_pairs(count: int) -> list[tuple[int, int]]:
    """Return every pair (i, j) with i < j < count."""
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def symmetric(values: np.ndarray, count: int, diagonal: float) -> np.ndarray:
    """Return the matrix (count, count) of the values of `all_pairs(count)`, with equal values on its diagonal."""
    matrix = np.full((count, count), diagonal)
    for value, (i, j) in zip(values, all_pairs(count), strict=True):
        matrix[i, j] = matrix[j, i] = value
    return matrix
