"""Histories of examples: when each is predicted correctly for good, and how often it is forgotten."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Histories:
    """Numbers of every example over the checkpoints of a run.

    Attributes:
        first_learned: Index of the first checkpoint from which on the example is always predicted correctly, shape
            (N,); T if it is predicted wrongly at the last one.
        forgotten: Number of times that it was predicted correctly at a checkpoint and wrongly at the next, shape (N,).
        never_learned: Whether it is predicted correctly at no checkpoint, shape (N,).
        right: Number of checkpoints at which it is predicted correctly, shape (N,).
        changed: Number of times that its predicted class changed from a checkpoint to the next, shape (N,).
    """

    first_learned: np.ndarray
    forgotten: np.ndarray
    never_learned: np.ndarray
    right: np.ndarray
    changed: np.ndarray


def histories(predicted: np.ndarray, labels: np.ndarray) -> Histories:
    """Compute when examples are learned, and how often they are forgotten (Toneva et al. 2019, "forgetting events").

    Args:
        predicted: Predicted classes at every checkpoint in order, shape (T, N).
        labels: Class indices, shape (N,).
    """
    steps, samples = predicted.shape
    first = np.full(samples, steps)
    forgotten, right, changed = (np.zeros(samples, dtype=np.int64) for _ in range(3))
    before: np.ndarray | None = None
    for step in range(steps):
        now = predicted[step] == labels
        if before is not None:
            forgotten += before & ~now
            changed += predicted[step] != predicted[step - 1]
        first = np.where(now, np.minimum(first, step), steps)
        right += now
        before = now
    return Histories(first, forgotten, right == 0, right, changed)


def worst_first(numbers: Histories, loss: np.ndarray | None) -> np.ndarray:
    """Return the indices of the examples, those that were learned worst first.

    Examples that were never learned come first, then those that were forgotten most often, then those that were learned
    latest, then those of the largest loss at the last checkpoint.

    Args:
        numbers: Histories of N examples.
        loss: Loss at the last checkpoint, shape (N,), or None.
    """
    last = np.zeros(len(numbers.right)) if loss is None else np.nan_to_num(loss, nan=np.inf)
    keys = (last, numbers.first_learned, numbers.forgotten, numbers.never_learned)
    return np.lexsort([-key.astype(np.float64) for key in keys])


def counts_by_class(values: np.ndarray, labels: np.ndarray, classes: np.ndarray, bins: int) -> np.ndarray:
    """Count the examples of every class with each value.

    Args:
        values: Numbers from 0 to bins − 1, shape (N,).
        labels: Class indices, shape (N,).
        classes: Class indices in ascending order, shape (K,).
        bins: Number of values.

    Returns:
        Counts, shape (K, bins).
    """
    rows = np.searchsorted(classes, labels)
    return np.bincount(rows * bins + values, minlength=len(classes) * bins).reshape(len(classes), bins)
