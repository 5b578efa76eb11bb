"""Order of the onsets of metrics: over the seeds of a group as a partial order, or within a single run."""

from collections.abc import Mapping, Sequence
from itertools import combinations, compress, product
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from ckpt_probe.findings.detection import LEVEL, name_of, positions
from ckpt_probe.findings.intervals import families, first_departure
from ckpt_probe.findings.noise import COEFFICIENTS, INNOVATIONS, simulate
from ckpt_probe.findings.series import Series

FEWEST_SEEDS = 6
"""Number of seeds below which no order over seeds is tested: 2 · 2⁻⁶ = 0.031 is the smallest two-sided p-value."""

MOST_FLIPS = 4096
"""Number of sign patterns of which all are enumerated; of more, this number is drawn."""

MATCHED = 20
"""Number of draws of noise that make a cleaner metric as noisy as another."""

IN_TIME = 2.6
"""Standard errors by which the correlation of residuals in time must exceed that of the noise."""

BEYOND_NOISE = 4.0
"""Covariance of neighbouring residuals, relative to the variance of the noise, that no steep curve explains."""

Record = dict[str, Any]
Onset = tuple[float, float]
"""Ends of the interval of an onset, as log step."""


def order_in_run(series: Sequence[Series], events: Sequence[Record]) -> list[Record]:
    """Return pairs of metrics of one run whose onsets lie in disjoint intervals, without those that others imply.

    Two metrics that are scales of one process have no order.

    Args:
        series: Series of the run.
        events: Its events.
    """
    by_name = {each.name: each for each in series}
    onsets = {name_of(event): event for event in events if event["kind"] == "onset"}
    before = {
        (first, second)
        for first, second in product(onsets, onsets)
        if onsets[first]["to_step"] <= onsets[second]["from_step"]
        and not is_one_process([(by_name[first], by_name[second])])
    }
    return [
        {
            "group": onsets[first]["group"],
            "seed": onsets[first]["seed"],
            "before": first,
            "after": second,
            "first_by": onsets[first]["to_step"],
            "second_from": onsets[second]["from_step"],
        }
        for first, second in _without_implied(before)
    ]


def order_over_seeds(runs: Mapping[str, Sequence[Series]], events: Mapping[str, Sequence[Record]]) -> list[Record]:
    """Return the relation of every two metrics that have an onset in every run of a group.

    First of all, pairs whose values lie on one monotone curve, with residuals that have no order in time, are two
    scales of one process: neither leads. For the others, the difference of their onsets in log step, less the lag that
    unequal noise alone produces, is tested over the seeds by flips of its sign, with the largest statistic over all
    pairs.

    Args:
        runs: Series of each seed.
        events: Events of each seed.

    Returns:
        One record per pair: `relation` is "one process", "before" or "undecided".
    """
    seeds = list(runs)
    series = {seed: {each.name: each for each in runs[seed]} for seed in seeds}
    onsets = {seed: _onsets(events[seed], series[seed]) for seed in seeds}
    names = [name for name in onsets[seeds[0]] if all(name in onsets[seed] for seed in seeds)]
    relations, tested = [], []
    for first, second in combinations(names, 2):
        pair = [(series[seed][first], series[seed][second]) for seed in seeds]
        if is_one_process(pair):
            relations.append({"before": first, "after": second, "relation": "one process"})
        else:
            tested.append((first, second, pair))
    if tested and len(seeds) >= FEWEST_SEEDS:
        lags = np.array([[lag(onsets[seed][a], onsets[seed][b]) for seed in seeds] for a, b, _ in tested])
        noise_lags = np.array([[noise_lag(*of_seed) for of_seed in pair] for *_, pair in tested])
        p_values = flip_p_values(_towards_zero(lags, noise_lags))
        for (first, second, _), of_pair, of_noise, p_value in zip(tested, lags, noise_lags, p_values, strict=True):
            earlier, later = (first, second) if of_pair.sum() >= 0 else (second, first)
            relations.append(
                {
                    "before": earlier,
                    "after": later,
                    "relation": "before" if p_value <= LEVEL else "undecided",
                    "lag_factor": float(np.exp(abs(of_pair.mean()))),
                    "noise_lag_factor": float(np.exp(abs(of_noise.mean()))),
                    "p_value": float(p_value),
                }
            )
    group = runs[seeds[0]][0].group if runs[seeds[0]] else ""
    edges = {(each["before"], each["after"]) for each in relations if each["relation"] == "before"}
    kept_edges = set(_without_implied(edges))
    return [
        {"group": group, "seeds": len(seeds), **each}
        for each in relations
        if each["relation"] != "before" or (each["before"], each["after"]) in kept_edges
    ]


def is_one_process(pair: Sequence[tuple[Series, Series]]) -> bool:
    """Return whether two metrics, over seeds and steps, lie on one monotone curve but for residuals without order.

    The residuals of an isotonic fit are without order in time if their lag-one correlation is not larger than that of
    the noise, or is small and explained by it. If one metric saturates, only it is a function of the other; so either
    direction suffices.
    """
    common = [_at_common_steps(first, second) for first, second in pair]
    used = [(each, of_run) for each, of_run in zip(common, pair, strict=True) if len(each[0]) >= 4]
    if not used:
        return False
    noise = [(_noise_of(first), _noise_of(second)) for _, (first, second) in used]
    correlation = float(np.mean([COEFFICIENTS[max(first[1], second[1])] for first, second in noise]))
    common = [each for each, _ in used]
    count = sum(len(steps) for steps, _, _ in common)
    for explained, explaining in ((1, 2), (2, 1)):
        scales, limits = np.array([each[explained - 1] for each in noise]).T
        variance = float(np.mean((scales / INNOVATIONS[limits.astype(int)]) ** 2))
        in_time, covariance = _order_in_time(common, explained, explaining)
        ordered = in_time > correlation + IN_TIME / np.sqrt(count)
        clearly = in_time > IN_TIME / np.sqrt(count) and covariance > BEYOND_NOISE * variance
        if not (ordered or clearly):
            return True
    return False


def lag(first: Onset, second: Onset) -> float:
    """Return the difference of two onsets in log step, positive if the first is earlier; 0 if they overlap."""
    if first[1] <= second[0] or second[1] <= first[0]:
        return (sum(second) - sum(first)) / 2
    return 0.0


def noise_lag(first: Series, second: Series) -> float:
    """Return the lag that the difference in noise alone produces, in log step; positive if the first seems earlier.

    Noise is added to the cleaner metric, in relation to its range, until both are equally noisy; the median shift of
    the end of its onset over some draws is the lag.
    """
    noise_of = _noise_of(first), _noise_of(second)
    noisiness = [scale / np.ptp(each.values) for (scale, _), each in zip(noise_of, (first, second), strict=True)]
    cleaner = 0 if noisiness[0] < noisiness[1] else 1
    series = (first, second)[cleaner]
    added = np.sqrt(max(0.0, max(noisiness) ** 2 - min(noisiness) ** 2)) * np.ptp(series.values)
    if added <= 0:
        return 0.0
    x = positions(series.steps)
    model, family, _ = families(tuple(x.tolist()))
    limit = noise_of[cleaner][1]
    drawn = simulate(np.random.default_rng(0), float(COEFFICIENTS[limit]), MATCHED + 1, len(x))
    drawn[0] = 0
    values = series.values + added * drawn / INNOVATIONS[limit]
    significant = family.statistics(values, model.estimate(values)) > family.critical(LEVEL)
    onsets = []
    for column in significant.T:
        earliest = first_departure(compress(family.intervals, column))
        onsets.append(x[-1] if earliest is None else x[earliest.stop - 1])
    shift = max(0.0, float(np.median(onsets[1:])) - onsets[0])
    return shift if cleaner == 0 else -shift


def flip_p_values(lags: np.ndarray) -> np.ndarray:
    """Return the p-value of each pair (pairs, seeds), adjusted over pairs by the largest statistic of every flip."""
    pairs, seeds = lags.shape
    if 2**seeds <= MOST_FLIPS:
        flips = np.array(list(product((1, -1), repeat=seeds)), dtype=float)
    else:
        flips = np.random.default_rng(0).choice((1.0, -1.0), size=(MOST_FLIPS, seeds))
        flips[0] = 1
    size = np.sqrt((lags**2).sum(axis=1))
    statistics = np.abs(flips @ lags.T) / np.where(size > 0, size, np.inf)
    largest = statistics.max(axis=1)
    return (largest[:, None] >= statistics[0] - 1e-9).mean(axis=0).reshape(pairs)


def _towards_zero(lags: np.ndarray, noise_lags: np.ndarray) -> np.ndarray:
    """Return lags less the part that noise alone produces, where that has the same sign."""
    share = np.where(lags * noise_lags > 0, np.minimum(np.abs(noise_lags), np.abs(lags)), 0)
    return lags - np.sign(lags) * share


def _order_in_time(common: Sequence[tuple[np.ndarray, ...]], of: int, by: int) -> tuple[float, float]:
    """Return lag-one correlation and covariance in time of the residuals of the isotonic fit of one metric by another.

    Args:
        common: Steps and values of both metrics, for each run.
        of: Index of the explained metric.
        by: Index of the explaining metric.
    """
    values, explaining = (np.concatenate([each[index] for each in common]) for index in (of, by))
    order = np.argsort(explaining, kind="stable")
    rests = []
    for increasing in (True, False):
        fit = np.empty_like(values)
        fit[order] = isotonic_regression(values[order], increasing=increasing).x
        rests.append(values - fit)
    best = min(rests, key=lambda rest: float((rest**2).sum()))
    residuals = np.split(best, np.cumsum([len(each[0]) for each in common])[:-1])
    square = sum(float((each**2).sum()) for each in residuals)
    products = sum(float((each[1:] * each[:-1]).sum()) for each in residuals)
    return (products / square if square > 0 else 0.0), products / len(values)


def _at_common_steps(first: Series, second: Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    steps, of_first, of_second = np.intersect1d(first.steps, second.steps, return_indices=True)
    return steps, first.values[of_first], second.values[of_second]


def _noise_of(series: Series) -> tuple[float, int]:
    """Return the scale of the innovations of a series, by second differences, and the index of the limit of φ."""
    model, _, _ = families(tuple(positions(series.steps).tolist()))
    noise = model.estimate(series.values[None])
    return float(noise.second.min()), int(noise.limit[0])


def _onsets(events: Sequence[Record], series: Mapping[str, Series]) -> dict[str, Onset]:
    result = {}
    for event in events:
        if event["kind"] == "onset":
            steps = series[name_of(event)].steps
            x = dict(zip(steps.tolist(), positions(steps).tolist(), strict=True))
            result[name_of(event)] = x[event["from_step"]], x[event["to_step"]]
    return result


def _without_implied(edges: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the edges of an order without those that follow from two others, sorted."""
    later: dict[str, set[str]] = {}
    for first, second in edges:
        later.setdefault(first, set()).add(second)
    return sorted(
        (first, second)
        for first, second in edges
        if not any(second in later.get(between, ()) for between in later[first] if between != second)
    )
