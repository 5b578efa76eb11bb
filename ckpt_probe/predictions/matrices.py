"""Matrices of disagreement, divergence and agreement among errors between the checkpoints of a run, or between runs."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ckpt_probe.analysis import Similarity
from ckpt_probe.analysis.series import find_dumps
from ckpt_probe.errors import DataError
from ckpt_probe.groups import Sources
from ckpt_probe.predictions.agreement import all_pairs, compare_predictions, divergences, symmetric
from ckpt_probe.predictions.scores import probability_blocks
from ckpt_probe.predictions.series import Predictions, common_splits, read_runs
from ckpt_probe.progress import NullProgress, Progress

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
    if len(read) == 1:
        return (matrix for predictions in read[0] for matrix in step_matrices(predictions, progress=progress))
    return (matrix for ends in common_splits(read) for matrix in run_matrices(ends, progress=progress))


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
    if not pairs or not all(run.with_logits for run in runs) or len({run.classes for run in runs}) > 1:
        return np.full(len(pairs), math.nan)
    paths = runs[0].paths if len(runs) == 1 else [run.paths[-1] for run in runs]
    return divergences(probability_blocks(paths, runs[0].split, rows), pairs)


def step_matrices(
    predictions: Predictions, *, rows: np.ndarray | None = None, progress: Progress | None = None
) -> Iterator[Similarity]:
    """Compare every two checkpoints of a run.

    Args:
        predictions: The predictions.
        rows: Indices of the rows for the divergence, in ascending order; all if None.
        progress: Receives messages.

    Raises:
        DataError: If fewer than two checkpoints have predictions.
    """
    if len(predictions.members) < 2:
        raise DataError(
            f"{predictions.run}: {predictions.split}: one checkpoint has predictions; two are needed to compare"
        )
    yield from _matrices([predictions], predictions.names, predictions.predicted, "steps", rows, progress)


def run_matrices(ends: Sequence[Predictions], *, progress: Progress | None = None) -> Iterator[Similarity]:
    """Compare every two runs at their last checkpoints; the runs have the same rows."""
    predicted = np.stack([run.predicted[-1] for run in ends])
    yield from _matrices(ends, [run.run for run in ends], predicted, "runs", None, progress)


def _matrices(
    runs: Sequence[Predictions],
    names: Sequence[str],
    predicted: np.ndarray,
    kind: str,
    rows: np.ndarray | None,
    progress: Progress | None,
) -> Iterator[Similarity]:
    first, pairs, count = runs[0], all_pairs(len(names)), len(names)
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
        progress.message(
            f"{first.split}: no divergence: it needs the logits of equally many classes at every checkpoint"
        )
    if first.labels is not None:
        yield matrix(ERROR_AGREEMENT, agreement.error_agreement, 1.0, predicted.shape[1])
