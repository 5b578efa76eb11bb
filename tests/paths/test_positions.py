"""Tests of positions on a path: evenly spaced over a span, with more of them where a curve may exceed its barrier."""

import math

import pytest

from ckpt_probe.errors import UsageError
from ckpt_probe.paths.positions import MOST, barrier, barriers, curves, evenly, refined


def test_even_positions_include_both_ends() -> None:
    assert evenly(5) == [0, 0.25, 0.5, 0.75, 1]
    assert evenly(5, (-0.5, 1.5)) == [-0.5, 0, 0.5, 1, 1.5]
    assert evenly(3, (0.2, 0.8)) == [0, 0.2, 0.5, 0.8, 1]
    spaced = evenly(21, (-0.5, 1.5))
    assert (spaced.count(0), spaced.count(1), len(spaced)) == (1, 1, 21)
    for points, span in ((2, (0, 1)), (5, (1, 0)), (5, (0, math.inf)), (5, (math.nan, 1))):
        with pytest.raises(UsageError, match=r"at least 3 points|two increasing numbers"):
            evenly(points, span)


def refined_positions(*curves) -> list[float]:
    alphas = evenly(5)
    while more := refined(alphas, [[curve(alpha) for alpha in alphas] for curve in curves], [0] * len(curves)):
        assert not set(more) & set(alphas)
        alphas = sorted({*alphas, *more})
    return alphas


@pytest.mark.parametrize(
    "curve",
    [
        lambda a: 1 + math.sin(math.pi * a),
        lambda a: 2 + math.exp(-(((a - 0.31) / 0.12) ** 2)),
        lambda a: 5 * a + 4 * a * (1 - a) ** 3,
        lambda a: 1 / (1 + math.exp(-20 * (a - 0.4))),
    ],
)
def test_refined_positions_give_the_barrier_to_one_per_cent(curve) -> None:
    alphas = refined_positions(curve)
    value = barrier(alphas, [curve(a) for a in alphas])[""]
    fine = [i / 5000 for i in range(5001)]
    assert value == pytest.approx(barrier(fine, [curve(a) for a in fine])[""], rel=0.011)
    assert len(alphas) < 30


def test_a_straight_or_convex_curve_is_not_refined() -> None:
    assert refined_positions(lambda a: 3 - a) == evenly(5)
    assert refined_positions(lambda a: 3 + (a - 0.5) ** 2) == evenly(5)


def test_the_jumps_of_an_error_are_refined_to_one_row() -> None:
    records = [{"alpha": alpha, "split": "test", "samples": 50, "loss": None, "accuracy": None} for alpha in evenly(5)]
    flips = (0.1234, 0.31, 0.4321, 0.7, 0.8765)

    def correct(alpha: float) -> float:
        return 1 - (sum(alpha > flip for flip in flips[:3]) - sum(alpha > flip for flip in flips[3:])) / 50

    while True:
        records = [{**record, "accuracy": correct(record["alpha"])} for record in records]
        more = refined(*curves(records, ["test"]))
        if not more:
            break
        alphas = sorted([*more, *(record["alpha"] for record in records)])
        records = [{**records[0], "alpha": alpha} for alpha in alphas]
    assert len(records) < 20
    assert barriers(records, "test", "none")["barrier.error"] == pytest.approx(3 / 50 - 0.7 / 50, abs=1 / 50)


def test_the_number_of_refined_positions_is_limited() -> None:
    assert len(refined_positions(lambda a: 1 + math.sin(200 * a) ** 2, lambda a: abs(math.sin(31 * a)))) <= MOST
