"""Motion of weights from checkpoint to checkpoint: lengths, angles, changed signs, and the plane of the trajectory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NAMES = ("norm", "from_first", "step", "cosine", "sign_changes", "path", "path_ratio")
"""Names of the numbers of motion, without their prefix."""
FIRST, BROKEN_BEFORE = "the first checkpoint", "the checkpoint before has NaN or infinite weights"


class Route:
    """Sums over the tensors of a group, of which all numbers of motion are made.

    Args:
        arrays: Arrays with one row for each tensor of a series.
        rows: Rows of the group.
        exact: Whether changed signs are known.

    Attributes:
        squares: ‖θ_t‖², shape (T,).
        distances: ‖θ_t − θ_0‖², shape (T,).
        steps: Squared lengths of displacements ‖Δ_t‖², Δ_t = θ_{t+1} − θ_t, shape (T − 1,).
        next: ⟨Δ_t, Δ_{t+1}⟩, shape (T − 2,).
        signs: Numbers of entries whose sign changed, (T − 1,); None if they are unknown.
        broken: Whether a tensor has NaN or infinities, (T,).
        entries: Number of entries.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], rows: Sequence[int], *, exact: bool) -> None:
        sums = {name: arrays[name][rows].sum(axis=0) for name in ("squares", "distances", "steps", "next", "signs")}
        self.squares, self.distances, self.steps, self.next, signs = sums.values()
        self.signs = signs if exact else None
        self.broken = np.asarray(arrays["broken"][rows].any(axis=(0, 2)))
        self.entries = int(arrays["entries"][rows].sum())

    def numbers(self) -> list[dict[str, float | str | None]]:
        """Compute the numbers of every checkpoint; `missing` has the reasons for absent ones.

        A checkpoint with NaN or infinities has none, and the next one is compared with the last one before it.
        """
        rows: list[dict[str, float | str | None]] = []
        path, before, previous = 0.0, None, None
        for t, square in enumerate(self.squares):
            if self.broken[t]:
                absent = dict.fromkeys([f"motion.{name}" for name in NAMES])
                rows.append({**absent, "missing": "motion.*: NaN or infinite weights"})
                continue
            step = self._step(before, t)
            path += 0.0 if isinstance(step, str) else step
            distance = math.sqrt(max(self.distances[t], 0.0))
            start = 0.0 if self.broken[0] else math.sqrt(self.squares[0])
            no_start = "the weights of the first checkpoint are zero, or not finite"
            no_distance = "no distance from the first checkpoint"
            values: dict[str, float | str] = {
                "norm": math.sqrt(square),
                "from_first": distance / start if start > 0 else no_start,
                "step": step,
                "cosine": self._cosine(previous, before, t),
                "sign_changes": self._sign_changes(before, t),
                "path": path,
                "path_ratio": path / distance if distance > 0 and not self.broken[0] else no_distance,
            }
            rows.append(_with_reasons(values))
            previous, before = before, t
        return rows

    def _step(self, before: int | None, t: int) -> float | str:
        """Return the distance from the checkpoint before, or the reason why it is unknown."""
        if before is None:
            return FIRST
        if t - before > 2:
            return f"{t - before - 1} checkpoints before have NaN or infinite weights"
        if t - before == 2:
            return math.sqrt(max(self.steps[before] + 2 * self.next[before] + self.steps[before + 1], 0.0))
        return math.sqrt(self.steps[before])

    def _sign_changes(self, before: int | None, t: int) -> float | str:
        if before is None:
            return FIRST
        if self.signs is None:
            return "needs both checkpoints at once; `sketch=False` reads them"
        return float(self.signs[before]) / self.entries if before == t - 1 else BROKEN_BEFORE

    def _cosine(self, first: int | None, second: int | None, t: int) -> float | str:
        """Return the cosine of the displacement since the checkpoint before and the one before that."""
        if first is None or second is None:
            return "needs two checkpoints before"
        if t - first > 2:
            return BROKEN_BEFORE
        lengths = math.sqrt(self.steps[t - 1] * self.steps[t - 2])
        return max(-1.0, min(1.0, float(self.next[t - 2]) / lengths)) if lengths > 0 else "no motion"


def _with_reasons(values: dict[str, float | str]) -> dict[str, float | str | None]:
    """Return the numbers of a checkpoint, None for a text, which is a reason that `missing` states."""
    reasons: dict[str, list[str]] = {}
    for name, value in values.items():
        if isinstance(value, str):
            reasons.setdefault(value, []).append(f"motion.{name}")
    missing = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    numbers = {f"motion.{name}": None if isinstance(value, str) else value for name, value in values.items()}
    return {**numbers, "missing": missing or None}


@dataclass(frozen=True)
class Trajectory:
    """Trajectory of a series in the plane of its two main directions.

    Attributes:
        coordinates: Positions (T, 2) relative to the mean of all checkpoints.
        shares: Shares of the variance of the two directions.
        walk_shares: Shares of a random walk with as many steps of equal length in many dimensions.
        weights: Coefficients (2, T) of the checkpoints in the two directions of length 1, each with sum 0.
    """

    coordinates: np.ndarray
    shares: tuple[float, float]
    walk_shares: tuple[float, float]
    weights: np.ndarray

    def numbers(self, t: int) -> dict[str, float]:
        """Return the coordinates of a checkpoint, and the shares."""
        return {
            **{f"motion.pca_{i + 1}": float(self.coordinates[t, i]) for i in (0, 1)},
            **{f"motion.pca_share_{i + 1}": self.shares[i] for i in (0, 1)},
            **{f"motion.walk_share_{i + 1}": self.walk_shares[i] for i in (0, 1)},
        }


def gram_from_first(steps: np.ndarray) -> np.ndarray:
    """Compute the Gram matrix (T, T) of θ_t − θ_0 from that of successive displacements (T − 1, T − 1)."""
    return np.pad(steps, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)


def distances_of(steps: np.ndarray) -> np.ndarray:
    """Compute the distances (T, T) between checkpoints from the Gram matrix of successive displacements."""
    count = len(steps) + 1
    squared = np.zeros((count, count))
    for i in range(count - 1):
        # ‖θ_j − θ_i‖² = ‖θ_{j−1} − θ_i‖² + ‖Δ_{j−1}‖² + 2 ⟨θ_{j−1} − θ_i, Δ_{j−1}⟩.
        moved = np.zeros(count - 1)
        for j in range(i + 1, count):
            squared[i, j] = squared[i, j - 1] + steps[j - 1, j - 1] + 2 * moved[j - 1]
            moved = moved + steps[j - 1]
    ways = np.concatenate([[0.0], np.cumsum(np.sqrt(np.diag(steps)))])
    # A distance below the rounding of the way between the two is zero.
    squared = np.where(squared > 8 * np.finfo(float).eps * (ways[None] - ways[:, None]) ** 2, squared, 0.0)
    return np.sqrt(squared + squared.T)


def trajectory_of(steps: np.ndarray) -> Trajectory | None:
    """Compute the plane of a trajectory from the Gram matrix of successive displacements; None without motion.

    A random walk has large shares too: 61 % and 15 % for many steps (Antognini and Sohl-Dickstein 2018).

    Args:
        steps: Gram matrix (T − 1, T − 1), T ≥ 3.
    """
    gram = _centred(gram_from_first(steps))
    if not len(steps) > 1 or np.trace(gram) <= 0:
        return None
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    # The last checkpoint has positive coordinates.
    vectors = vectors * np.where(vectors[-1] < 0, -1.0, 1.0)
    lengths = np.sqrt(values[:2])
    coordinates = vectors[:, :2] * lengths
    walk = np.linalg.eigvalsh(_centred(gram_from_first(np.eye(len(steps)))))[::-1]
    weights = np.divide(vectors[:, :2].T, lengths[:, None], out=np.zeros((2, len(gram))), where=lengths[:, None] > 0)
    return Trajectory(coordinates, _two(values), _two(walk), weights)


def _two(values: np.ndarray) -> tuple[float, float]:
    return float(values[0] / values.sum()), float(values[1] / values.sum())


def _centred(gram: np.ndarray) -> np.ndarray:
    rows = gram.mean(axis=0, keepdims=True)
    return gram - rows - rows.T + gram.mean()
