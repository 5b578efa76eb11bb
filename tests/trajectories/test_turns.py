"""Tests of turns and exchanges against routes of points, which are reordered and measured one by one."""

from itertools import pairwise

import numpy as np
import pytest

from ckpt_probe.trajectories.turns import (
    MOST_CANDIDATES,
    SHORTER,
    Turns,
    _shortening,
    last_two_exchanged,
)
from tests.trajectories.conftest import distances_between


def length_around(points: np.ndarray, positions: tuple[int, int]) -> float:
    """Return the length of the steps to and from two positions of a route."""
    steps = {k for i in positions for k in (i - 1, i) if 0 <= k < len(points) - 1}
    return sum(float(np.linalg.norm(points[k + 1] - points[k])) for k in steps)


def walk(seed: int, count: int, drift: float) -> np.ndarray:
    """Return a route of points (count, 60) with random steps about a direction."""
    random = np.random.default_rng(seed)
    lengths = np.exp(0.4 * random.normal(size=(count, 1)))
    return np.cumsum(lengths * (random.normal(size=(count, 60)) + drift), axis=0)


@pytest.mark.parametrize("least_at_ends", [1.1, np.inf])
@pytest.mark.parametrize("count", [4, 5, 9, 17])
def test_exchanges_that_shorten_a_route_are_those_of_its_reordered_points(count: int, least_at_ends: float) -> None:
    for seed in range(10):
        points = walk(seed, count, 0.3)
        points[[0, 2]], points[[1, count - 2]] = points[[2, 0]], points[[count - 2, 1]]
        expected, saved = {}, {}
        for i in range(count):
            for j in range(i + 1, count):
                ends = i == 0 or j == count - 1
                if ends and j == i + 1:
                    continue
                order = np.arange(count)
                order[[i, j]] = j, i
                before, after = length_around(points, (i, j)), length_around(points[order], (i, j))
                if before / after > (least_at_ends if ends else SHORTER):
                    expected[i, j], saved[i, j] = before / after, before - after
        found = _shortening(distances_between(points), least_at_ends)
        # Some exchanges give one another's reversed route.
        assert [saved[pair] for pair in found] == pytest.approx(sorted(saved.values(), reverse=True)[:MOST_CANDIDATES])
        assert found == pytest.approx({pair: expected[pair] for pair in found}, rel=1e-10)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def excess_of_the_last_turn(points: np.ndarray) -> float:
    """Return by how much the last turn exceeds 0.45 times the turn ratio of the other order, −1 if it is no return."""
    before, first, last = points[-3:]
    if len(points) < 5 or np.linalg.norm(last - before) >= np.linalg.norm(first - before):
        return -1.0

    def ratio(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
        return float((np.linalg.norm(b - a) + np.linalg.norm(c - b)) / np.linalg.norm(c - a))

    repaired = ratio(before, last, first)
    if repaired > max(1.65, *(ratio(*points[t - 1 : t + 2]) for t in range(1, len(points) - 2))):
        return -1.0
    *others, turn = (cosine(a, b) for a, b in pairwise(np.diff(points, axis=0)))
    trend = cosine(points[-4] - points[max(0, len(points) - 6)], last - first)
    return min(others) - turn - trend - 0.45 * repaired


def test_the_last_two_are_exchanged_if_the_last_cosine_is_far_below_all_others() -> None:
    outcomes = []
    for seed in range(400):
        points = walk(seed, 4 + seed % 7, (0.0, 0.1, 0.2, 0.4)[seed % 4])
        if seed % 3:
            points[[-1, -2]] = points[[-2, -1]]
        expected = excess_of_the_last_turn(points)
        assert last_two_exchanged(distances_between(points)) == (expected > 0), seed
        outcomes.append(expected)
    near = [value for value in outcomes if value != -1 and abs(value) < 0.1]
    assert min(len(near), sum(value > 0 for value in outcomes), outcomes.count(-1.0)) > 10


@pytest.mark.parametrize(("turning", "expected"), [(2, 0), (3, 3), (5, 5)])
def test_three_consecutive_returns_are_an_oscillation(turning: int, expected: int) -> None:
    points = np.zeros((turning + 8, 2))
    points[:, 0] = np.arange(len(points))
    points[4 : 4 + turning : 2, 1] = 1.2
    points[5 : 4 + turning : 2, 1] = -1.2
    turns = Turns(distances_between(points * [0.8, 1.0]))
    assert (turns.oscillation, turns.exchanged, turns.strays) == (expected, (), ())
    assert np.count_nonzero(turns.ratios > 1.5) >= turning
