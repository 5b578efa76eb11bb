"""Turns of a run in weight space, which show copied or exchanged files: the route then turns back sharply.

The turn ratio (‖θ_t − θ_{t−1}‖ + ‖θ_{t+1} − θ_t‖) / ‖θ_{t+1} − θ_{t−1}‖ is 1 on a straight route and at most √2 for
independent steps. Runs with a large learning rate exceed √2 at many consecutive checkpoints, so a high ratio alone is
no alarm; what counts is whether one repair of the series removes it. benchmarks/series_audit.py measures the limits.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np

SHORTER = 1.01
"""Ratio by which an exchange of two checkpoints must shorten the route around them to be proposed."""
SHORTER_END = 1.1
"""The least such ratio if one of them is the first or the last checkpoint, around which the route has one side."""
RESTORED = 1.65
"""Largest turn ratio that a series may still have after the exchanges."""
INDEPENDENT, SHORTER_IN_NOISE = 1.42, 1.15
"""Largest turn ratio of independent steps, and the least ratio of shortening in a route that turns more: there chance
shortens it too."""
MOST_EXCHANGES, MOST_CANDIDATES = 3, 100
"""Largest number of exchanges, of which there is also no more than one for four checkpoints, and of pairs tried."""
TURNED = 0.45
"""Excess of the last turn over every other turn of the run, as a multiple of the turn ratio of the other order, from
which the last two checkpoints count as exchanged."""
FAR = 4.0
"""Turn ratio of a single checkpoint that belongs to another route, if all others turn less than `USUAL`."""
USUAL = 2.0
OSCILLATING, CONSECUTIVE = 1.5, 3
"""Turn ratio that consecutive checkpoints of an oscillating run exceed, and the least number of these."""


def turn_ratios(distances: np.ndarray) -> np.ndarray:
    """Compute the turn ratio of every inner checkpoint.

    Args:
        distances: Distances (T, T) between checkpoints.

    Returns:
        Ratios (T,), NaN at both ends and for three equal checkpoints.
    """
    ratios = np.full(len(distances), np.nan)
    inner = np.arange(1, len(distances) - 1)
    around = distances[inner, inner - 1] + distances[inner, inner + 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios[1:-1] = around / distances[inner - 1, inner + 1]
    return ratios


class Turns:
    """Copied, exchanged and stray checkpoints of a series, by their indices in it.

    Args:
        distances: Distances (T, T) between checkpoints.
        equal: Groups of usable checkpoints with equal parameters.
        usable: Checkpoints whose distances are defined, in order; all if None.

    Attributes:
        ratios: Turn ratio (T,) of each checkpoint; NaN for the first and the last, infinite for a return.
        equal: Groups of checkpoints with equal parameters.
        copies: For each group, the checkpoints whose removal shortens the route most; empty if that cannot be decided.
        exchanged: Pairs of checkpoints whose exchange restores the route.
        strays: Checkpoints far from the route of all others.
        oscillation: Number of consecutive checkpoints that turn back; 0 without oscillation.
    """

    def __init__(
        self, distances: np.ndarray, equal: Sequence[Sequence[int]] = (), usable: Sequence[int] | None = None
    ) -> None:
        usable = range(len(distances)) if usable is None else usable
        self.ratios = np.full(len(distances), np.nan)
        self.ratios[usable] = turn_ratios(distances[np.ix_(usable, usable)])
        self.equal = tuple(tuple(group) for group in equal)
        self.copies = tuple(_copies(distances, group, usable) for group in self.equal)
        # The checkpoint of each group that fits best remains; the others are left out of the further search.
        removed = {i for group, wrong in zip(self.equal, self.copies, strict=True) for i in wrong or group[1:]}
        left = np.array([i for i in usable if i not in removed], dtype=int)
        route = distances[np.ix_(left, left)]
        unrepaired = route
        exchanged, route = _exchanges(route)
        ends, route = _exchanged_ends(route)
        exchanged += ends
        if len(exchanged) > 1 and _stray(unrepaired) is not None:
            # One checkpoint of another route needs several exchanges to come to an end of it.
            exchanged, route = [], unrepaired
        self.exchanged = tuple((int(left[i]), int(left[j])) for i, j in exchanged)
        far = _stray(route)
        self.strays = () if far is None else (int(left[far]),)
        turns_back = turn_ratios(route)[1:-1] > OSCILLATING
        self.oscillation = 0 if self.strays or exchanged else _longest_run(turns_back)


def _stray(distances: np.ndarray) -> int | None:
    """Return the one checkpoint that turns far more than all others, which do not turn without it; None without one."""
    inner = turn_ratios(distances)[1:-1]
    if len(inner) < 2 or inner.max() <= FAR or np.sort(inner)[-2] >= max(USUAL, inner.max() / 2):
        return None
    far = int(np.argmax(inner)) + 1
    rest = np.delete(np.arange(len(distances)), far)
    others = turn_ratios(distances[np.ix_(rest, rest)])[1:-1]
    return far if not len(others) or others.max() < USUAL else None


def _copies(distances: np.ndarray, group: Sequence[int], usable: Sequence[int]) -> tuple[int, ...]:
    """Return all checkpoints of a group but the one at which the route is shortest; empty if two fit equally well."""
    others = np.array([i for i in usable if i not in group], dtype=int)
    lengths = []
    for remaining in group:
        route = np.sort(np.append(others, remaining))
        lengths.append(float(distances[route[:-1], route[1:]].sum()))
    first, *rest = np.sort(lengths)
    if not len(others) or rest[0] <= first * (1 + 1e-6):
        return ()
    best = group[int(np.argmin(lengths))]
    return tuple(i for i in group if i != best)


def _exchanges(distances: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Return the fewest exchanges that leave no sharp turn, and the distances in the repaired order.

    They are those of the first or the last two, and pairs that are sought once among inner checkpoints and once with
    the ends. Of equally many exchanges those with the shortest route are taken, before others whose route is as long,
    such as the reversed one.
    """
    repaired = []
    ends, route = _exchanged_ends(distances)
    if ends and _largest_turn(route) < RESTORED:
        repaired.append((ends, route))
    for least_at_ends in (np.inf, SHORTER_END):
        pairs, route = [], distances
        while len(pairs) < min(MOST_EXCHANGES, len(route) // 4) and (candidates := _shortening(route, least_at_ends)):
            restoring = (pair for pair, gain in candidates.items() if _is_restored(_reordered(route, *pair), gain))
            pair = next(restoring, None)
            pairs.append(pair or next(iter(candidates)))
            route = _reordered(route, *pairs[-1])
            if pair:
                repaired.append((pairs, route))
                break
    length = np.diag(distances, 1).sum()

    def rank(pairs_and_route: tuple[list[tuple[int, int]], np.ndarray]) -> tuple[int, float]:
        pairs, route = pairs_and_route
        return len(pairs), round(float(np.diag(route, 1).sum() / length), 9)

    return min(repaired, key=rank, default=([], distances))


def _exchanged_ends(distances: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Return the first two and the last two if they are exchanged, and the distances in the repaired order."""
    count, ends = len(distances), []
    for pair, towards in (((0, 1), distances[::-1, ::-1]), ((count - 2, count - 1), distances)):
        if last_two_exchanged(towards):
            ends.append(pair)
    for pair in ends:
        distances = _reordered(distances, *pair)
    return ends, distances


def _largest_turn(distances: np.ndarray) -> float:
    return float(turn_ratios(distances)[1:-1].max(initial=0.0))


def _is_restored(distances: np.ndarray, gain: float) -> bool:
    """Return whether an exchange that shortened the way around it by the ratio `gain` leaves no sharp turn."""
    largest = _largest_turn(distances)
    return largest < RESTORED and (largest < INDEPENDENT or gain > SHORTER_IN_NOISE)


def last_two_exchanged(distances: np.ndarray) -> bool:
    """Return whether the last two checkpoints of a route are exchanged.

    The last is then nearer to the one before them, and the last step turns back: its cosine with the step before it is
    far below every other cosine of the run. A fall of the learning rate turns a run back too, out of its noise, but not
    against the direction that it had two checkpoints earlier, which the noise does not touch; the cosine with that
    direction is added.

    Args:
        distances: Distances (T, T) between checkpoints.
    """
    before, last = len(distances) - 3, len(distances) - 1
    if before < 2 or distances[before, last] >= distances[before, last - 1]:
        return False
    repaired = float(turn_ratios(_reordered(distances, last - 1, last))[-2])
    if repaired > max(RESTORED, turn_ratios(distances)[1:-2].max()):
        return False
    squared = distances**2

    def cosine(a: int, b: int, c: int, d: int) -> float:
        """Return the cosine between the ways from a to b and from c to d."""
        lengths = max(float(distances[a, b] * distances[c, d]), np.finfo(float).tiny)
        return float(squared[a, d] + squared[b, c] - squared[a, c] - squared[b, d]) / (2 * lengths)

    *others, turn = (cosine(t - 1, t, t, t + 1) for t in range(1, last))
    return min(others) - turn - cosine(max(0, before - 3), before - 1, last - 1, last) > TURNED * repaired


def _reordered(distances: np.ndarray, i: int, j: int) -> np.ndarray:
    """Return the distances with two checkpoints exchanged."""
    order = np.arange(len(distances))
    order[[i, j]] = order[[j, i]]
    return distances[np.ix_(order, order)]


def _shortening(distances: np.ndarray, least_at_ends: float) -> dict[tuple[int, int], float]:
    """Return pairs of checkpoints whose exchange shortens the route, those first that shorten it most.

    The value is the ratio by which the way around them becomes shorter. With the first or the last checkpoint it is at
    least `least_at_ends`. The first two and the last two are left out: the route has no other side there.
    """
    count = len(distances)
    # Beyond both ends lies a position at distance 0 from every checkpoint.
    padded = np.pad(distances, 1)
    steps = np.diag(padded, 1)
    positions = np.arange(1, count + 1)
    i, j = np.meshgrid(positions, positions, indexing="ij")
    before = steps[i - 1] + steps[i] + steps[j - 1] + steps[j]
    after = padded[i - 1, j] + padded[j, i + 1] + padded[j - 1, i] + padded[i, j + 1]
    k = np.arange(count - 1)
    before[k, k + 1] = steps[k] + steps[k + 1] + steps[k + 2]
    after[k, k + 1] = padded[k, k + 2] + steps[k + 1] + padded[k + 1, k + 3]
    at_end = (i == 1) | (j == count)
    least = np.where(at_end, least_at_ends, SHORTER)
    least[(j <= i) | (at_end & (j == i + 1))] = np.inf
    with np.errstate(over="ignore"):
        gains = before / np.maximum(after, np.finfo(float).tiny)
    shorter = np.argwhere(gains > least)
    longest_first = np.argsort((after - before)[tuple(shorter.T)])
    return {(int(a), int(b)): float(gains[a, b]) for a, b in shorter[longest_first[:MOST_CANDIDATES]]}


def _longest_run(flags: np.ndarray) -> int:
    longest = max((len([*run]) for flag, run in groupby(flags) if flag), default=0)
    return longest if longest >= CONSECUTIVE else 0
