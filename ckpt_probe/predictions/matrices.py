"""Compare predictions of the same rows: disagreement, divergence, agreement among errors; of checkpoints or runs."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ckpt_probe.analysis import Similarity
from ckpt_probe.analysis.series import find_dumps
from ckpt_probe.errors import DataError
from ckpt_probe.groups import Sources
from ckpt_probe.predictions.scores import probability_blocks
from ckpt_probe.predictions.series import Predictions, common_splits, read_runs
from ckpt_probe.progress import NullProgress, Progress

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


def symmetric(values: np.ndarray, count: int, diagonal: float) -> np.ndarray:
    """Return the matrix (count, count) of values of every pair (i, j), i < j, with equal values on its diagonal."""
    matrix = np.full((count, count), diagonal)
    above = np.triu_indices(count, 1)
    matrix[above] = matrix.T[above] = values
    return matrix


DISAGREEMENT, DIVERGENCE, ERROR_AGREEMENT = "disagreement", "divergence", "error_agreement"


def function_similarity(
    dumps: Sources, *, splits: str | Sequence[str] | None = None, progress: Progress | None = None
) -> Iterator[Similarity]:
    """Compare the functions of networks by their predictions of the same rows, split by split.

    The checkpoints of one run are compared with each other (step × step); several runs at their last checkpoints (run
    × run). Measures are the share of rows that are predicted differently ("disagreement"), the mean Jensen–Shannon
    divergence of the softmax in nats ("divergence", only with logits), and the share of common errors in which both
    predict one wrong class ("error_agreement", only with labels).

    Args:
        dumps: Runs and groups of runs, as for `examples`.
        splits: Names of splits; all if None.
        progress: Receives messages and bars.

    Returns:
        The matrices, each computed when the iterator reaches it.

    Raises:
        DataError: If no dump has predictions, the runs have other rows, or there is a single checkpoint.
    """
    progress, runs = progress or NullProgress(), find_dumps(dumps, progress)
    read = read_runs(runs, splits, progress)
    compared = [[predictions] for predictions in read[0]] if len(read) == 1 else common_splits(read)
    return (matrix for of_split in compared for matrix in compare_functions(of_split, progress=progress))


def mean_divergences(
    runs: Sequence[Predictions], pairs: Sequence[tuple[int, int]], rows: np.ndarray | None = None
) -> np.ndarray:
    """Compute the divergence of pairs of checkpoints of one run, or of several runs at their last checkpoints.

    Args:
        runs: One run, or several with the same rows.
        pairs: Pairs of checkpoints or runs.
        rows: Indices of some rows in ascending order; all if None.

    Returns:
        Array of shape (len(pairs),), NaN without the logits of equally many classes.
    """
    if not pairs or not all(run.classes for run in runs) or len({run.classes for run in runs}) > 1:
        return np.full(len(pairs), math.nan)
    first = runs[0]
    paths = first.paths if len(runs) == 1 else [run.paths[-1] for run in runs]
    return divergences(probability_blocks(paths, first.split, first.predicted.shape[1], first.classes, rows), pairs)


def compare_functions(
    runs: Sequence[Predictions], *, rows: np.ndarray | None = None, progress: Progress | None = None
) -> Iterator[Similarity]:
    """Compare every two checkpoints of one run, or several runs with the same rows at their last checkpoints.

    Args:
        runs: Predictions of one split.
        rows: Indices of the rows for the divergence, in ascending order; all if None.
        progress: Receives messages.

    Raises:
        DataError: If there is a single checkpoint.
    """
    first, kind = runs[0], "steps" if len(runs) == 1 else "runs"
    names = first.names if kind == "steps" else [run.run for run in runs]
    predicted = first.predicted if kind == "steps" else np.stack([run.predicted[-1] for run in runs])
    if len(names) < 2:
        raise DataError(f"{first.run}: {first.split}: one checkpoint has predictions; two are needed")
    count, pairs = len(names), [*combinations(range(len(names)), 2)]
    agreement = compare_predictions(predicted, first.labels, pairs)

    def matrix(measure: str, values: np.ndarray, diagonal: float, samples: int) -> Similarity:
        cells = tuple(
            tuple(None if math.isnan(value) else value for value in row)
            for row in symmetric(values, count, diagonal).tolist()
        )
        return Similarity(kind, measure, first.split, tuple(names), tuple(names), cells, samples)

    yield matrix(DISAGREEMENT, agreement.disagreement, 0.0, predicted.shape[1])
    divergence = mean_divergences(runs, pairs, rows)
    if not np.isnan(divergence).any():
        yield matrix(DIVERGENCE, divergence, 0.0, predicted.shape[1] if rows is None else len(rows))
    elif progress is not None:
        progress.message(f"{first.split}: no divergence: it needs logits of equally many classes at every checkpoint")
    if first.labels is not None:
        yield matrix(ERROR_AGREEMENT, agreement.error_agreement, 1.0, predicted.shape[1])
