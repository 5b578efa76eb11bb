"""The one place that decides how a joint entropy is computed, and says why."""

import math
from dataclasses import dataclass

DENSE_LIMIT = 12_000
"""Largest side of a matrix that is handed to the dense eigensolver (about 1.2 GB and minutes)."""

LEAST_LIMIT = 256
"""A side that is handed to the dense eigensolver whatever the budget: half a megabyte is always at hand."""

GRAM, MOMENTS, STOCHASTIC = "dense-gram", "dense-moments", "stochastic"


@dataclass(frozen=True)
class Route:
    """How a joint entropy is computed, None where it cannot be, and the reason in words."""

    name: str | None
    reason: str


OF_ONE = Route(MOMENTS, "one of the two Gram matrices has rank one: their product has the eigenvalues of the other")


def dense_limit(memory: int, most: int | None = None) -> int:
    """The largest side of a matrix that fits `memory` bytes twice (the eigensolver works on a copy); at least 256.

    most: a caller's own limit.
    """
    return min(DENSE_LIMIT if most is None else most, max(LEAST_LIMIT, math.isqrt(memory // 16)))


def choose(n: int, side: int, *, kind: str, limit: int, needed: int = 0, rows: bool = False) -> Route:
    """The route for n rows whose moment form has `side` = D·r: the smaller matrix where it is at most `limit`.

    kind: what is held of the rows, as `UnitMoments` names it; needed: bytes that second moments by class would take;
    rows: whether the rows can be read again, which the stochastic route needs where they are not held either by class.
    """
    if kind == "rows" and n <= min(side, limit):
        return Route(GRAM, f"N = {n} is at most D·r = {side}")
    if kind in {"rows", "classes"} and side <= limit:
        return Route(MOMENTS, f"D·r = {side} is less than N = {n}")
    if kind != "total":
        why = f"N = {n} and D·r = {side} are both over {limit}, the largest side for a dense eigensolver"
        return Route(STOCHASTIC, why)
    why = f"the classes' second moments would take {needed / 2**30:.2f} GiB, over the memory budget"
    if rows:
        return Route(STOCHASTIC, why)
    return Route(None, f"{why}, and the stochastic route needs them, or the rows themselves")
