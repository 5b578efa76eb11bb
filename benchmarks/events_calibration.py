"""Error rates of events, orders and verdicts on simulated runs: the tables of docs/findings.md.

Run: python benchmarks/events_calibration.py [nulls looks smooth planted detectable order groups saturated baselines
     time] --trials 1000
"""

import argparse
import math
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ckpt_probe.analysis.comparison.paired import band, difference_p
from ckpt_probe.findings.detection import FEWEST, LEVEL, OF_CHANGES, OF_LEVELS, analyses, find_events, positions
from ckpt_probe.findings.findings import GROWTH, LEVEL_OF_LOOK, OFTEN, findings_of
from ckpt_probe.findings.intervals import Family, families
from ckpt_probe.findings.noise import COEFFICIENTS, INNOVATIONS, Noise, simulate
from ckpt_probe.findings.series import Series

CHECKPOINTS, CORRELATIONS = (12, 24, 44, 100, 200), (0.0, 0.3, 0.5, 0.7)
CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "power −0.5": lambda steps: steps**-0.5,
    "power −1": lambda steps: 1 / (1 + steps / steps[0]),
    "half cosine": lambda steps: np.cos(np.pi * steps / steps[-1]),
    "full cosine": lambda steps: np.cos(2 * np.pi * steps / steps[-1]),
    "exponential, T/8": lambda steps: np.exp(-8 * steps / steps[-1]),
    "exponential, T/50": lambda steps: np.exp(-50 * steps / steps[-1]),
}


def grid(spacing: str, count: int) -> np.ndarray:
    """Return steps with linear or logarithmic spacing."""
    return np.linspace(100, 100 * count, count) if spacing == "linear" else np.geomspace(1, 10_000, count)


def events_alone(values: np.ndarray, steps: np.ndarray, level: float = LEVEL) -> list[list[dict]]:
    """Return the events of each series (m, n), tested as the only metric of its run."""
    results = []
    for analysis in analyses([Series("", "", {}, "m", steps, row) for row in values]):
        of_changes, of_levels = level * OF_CHANGES, level * OF_LEVELS
        changes_p = analysis.line.p_value(analysis.of_line.max())
        levels_p = analysis.level.p_value(analysis.of_level.max())
        events = list(analysis.changes(of_changes)) if changes_p <= of_changes else []
        results.append(events + (list(analysis.onset_and_end(of_levels)) if levels_p <= of_levels else []))
    return results


def share(hits: Iterable[object]) -> str:
    """Return a share in percent with the half width of its 95 % interval."""
    flags = np.array([bool(hit) for hit in hits])
    mean = flags.mean()
    error = 1.96 * math.sqrt(max(mean * (1 - mean), 0.25 / len(flags)) / len(flags))
    return f"{100 * mean:.1f} ± {100 * error:.1f}"


def row(*cells: object) -> None:
    """Print a row of a Markdown table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def header(*cells: str) -> None:
    """Print the first two rows of a Markdown table."""
    print()
    row(*cells)
    row(*["---"] * len(cells))


def nulls(trials: int) -> None:
    """Print the share of series without a change that have an event: constant ones, and lines (only changes count)."""
    header("checkpoints", "spacing", *(f"φ = {phi}" for phi in CORRELATIONS))
    for count in CHECKPOINTS:
        for spacing in ("linear", "logarithmic"):
            steps = grid(spacing, count)
            cells = []
            for phi in CORRELATIONS:
                generator = np.random.default_rng([count, spacing == "linear", round(10 * phi)])
                noise = simulate(generator, phi, trials, count)
                cells.append(share(events_alone(noise, steps)))
            row(count, spacing, *cells)


def looks(trials: int) -> None:
    """Print the share of series without a change that have an event at any time while they grow, as seen by probes."""
    counts = [*range(FEWEST, OFTEN + 1)]
    while counts[-1] < 100:
        counts.append(math.ceil(counts[-1] * GROWTH))
    steps = grid("linear", counts[-1])
    header(f"φ, {len(counts)} looks up to {counts[-1]} checkpoints", "any event, %")
    noise = {phi: simulate(np.random.default_rng(round(10 * phi)), phi, trials, counts[-1]) for phi in CORRELATIONS}
    alarms = {phi: np.zeros(trials, dtype=bool) for phi in CORRELATIONS}
    # All coefficients at one length, whose critical values are simulated once.
    for count in counts:
        for phi, values in noise.items():
            alarms[phi] |= [bool(each) for each in events_alone(values[:, :count], steps[:count], LEVEL_OF_LOOK)]
    for phi in CORRELATIONS:
        row(phi, share(alarms[phi]))


def smooth(trials: int) -> None:
    """Print the share of smooth curves with an abrupt change, by noise relative to the range."""
    noises = (0.001, 0.01, 0.03)
    header("curve", "spacing", "checkpoints", *(f"σ = {sigma:.1%} of the range" for sigma in noises))
    for name, curve in CURVES.items():
        for spacing in ("linear", "logarithmic"):
            for count in (24, 44, 100, 200):
                steps = grid(spacing, count)
                values = curve(steps) / np.ptp(curve(steps))
                cells = []
                for sigma in noises:
                    noise = sigma * simulate(np.random.default_rng(1), 0.3, trials, count)
                    events = events_alone(values + noise, steps)
                    cells.append(share(any(event.get("abrupt") for event in each) for each in events))
                row(name, spacing, count, *cells)


def planted(trials: int) -> None:
    """Print coverage and width of intervals around a planted jump, against tests that know σ and φ."""
    header("checkpoints", "φ", "height", "covered, %", "median width / best possible", "abrupt, %", "others, %")
    for count in (24, 44, 100, 200):
        for phi in (0.0, 0.5):
            steps = grid("logarithmic", count)
            x = positions(steps)
            oracle = known_noise(x, phi)
            for height in (2, 4, 8, 16, 32):
                generator = np.random.default_rng(height)
                at = generator.integers(count // 4, 3 * count // 4, trials)
                values = simulate(generator, phi, trials, count) + height * (np.arange(count) >= at[:, None])
                best = oracle(values, at)
                covered, ratios, abrupt, others = [], [], [], []
                for events, jump, width in zip(events_alone(values, steps), at, best, strict=True):
                    changes = [event for event in events if event["kind"] == "change"]
                    hits = [e for e in changes if e["from_step"] < steps[jump] <= e["to_step"] * (1 + 1e-9)]
                    covered.append(hits)
                    others.append(len(changes) > len(hits))
                    abrupt.append(any(event["abrupt"] for event in hits))
                    if hits and np.isfinite(width):
                        ends = positions(np.array([steps[0], hits[0]["from_step"], hits[0]["to_step"]]))
                        ratios.append((ends[2] - ends[1]) / width)
                ratio = f"{np.median(ratios):.2f}" if ratios else "–"
                row(count, phi, f"{height} σ", share(covered), ratio, share(abrupt), share(others))


def detectable(trials: int) -> None:
    """Print the share of covered jumps in the middle: of 8 σ, with known noise, and of the reported smallest size."""
    header("checkpoints", "φ", "printed, σ", "covered at that size, %", "covered at 8 σ, %", "8 σ with known noise, %")
    for count in (24, 44, 100):
        for phi in (0.0, 0.5):
            steps, middle = grid("logarithmic", count), count // 2
            noise = simulate(np.random.default_rng(7), phi, trials, count)
            tested = analyses([Series("", "", {}, "m", steps, row) for row in noise])
            printed = np.array([each.limit(LEVEL * OF_CHANGES)["smallest_detectable"] for each in tested])
            shares = []
            for height in (printed, np.full(trials, 8.0)):
                values = noise + height[:, None] * (np.arange(count) >= middle)
                changes = [[e for e in events if e["kind"] == "change"] for events in events_alone(values, steps)]
                inside = [
                    [e["from_step"] < steps[middle] <= e["to_step"] * (1 + 1e-9) for e in each] for each in changes
                ]
                shares.append(share(map(any, inside)))
            widths = known_noise(positions(steps), phi)(values, np.full(trials, middle))
            row(count, phi, f"{np.median(printed):.1f}", *shares, share(np.isfinite(widths)))


def known_noise(x: np.ndarray, phi: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return a function that gives the width of the narrowest significant interval around a jump for known noise."""
    model, _, _ = families(tuple(x.tolist()))
    nearest = int(np.abs(COEFFICIENTS - phi).argmin())
    family = Family(model, 1)

    def noise(rows: int) -> Noise:
        scale = np.full((rows, len(x)), INNOVATIONS[nearest])
        return Noise(scale, np.full(rows, nearest), scale)

    family.learn(simulate(np.random.default_rng(2), phi, 2000, len(x)), noise(2000))
    critical = family.critical(LEVEL)

    def widths(values: np.ndarray, at: np.ndarray) -> np.ndarray:
        significant = family.statistics(values, noise(len(values))) > critical
        result = np.full(len(values), np.inf)
        for each, flags in zip(family.intervals, significant, strict=True):
            inside = flags & (each.start < at) & (at < each.stop)
            result[inside] = np.minimum(result[inside], x[each.stop - 1] - x[each.start])
        return result

    return widths


def pair_of(seed: int, lag: float, noise: tuple[float, float], power: float | None) -> list[Series]:
    """Return two metrics of one seed: logistic, the second later by `lag` in log step, or a power of the first.

    Without a power, both begin to move at one step: the first within 0.2 in log step, the second within 1.2, and back.
    """
    generator = np.random.default_rng(seed)
    steps = np.unique(np.geomspace(1, 6000, 44).round())
    x = positions(steps)
    centre = 5 + 0.3 * generator.normal()
    curves = [1 / (1 + np.exp(-(x - centre - shift) / 0.12)) for shift in (0, lag)]
    if power is None:
        ramps = [np.clip((x - centre - start) / width, 0, 1) for start, width in ((0, 0.2), (0, 1.2), (1.5, 0.8))]
        curves = [ramps[0], ramps[1] - ramps[2]]
    else:
        curves[1] = curves[1] ** power
    return [
        Series("g", str(seed), {}, name, steps, curve + sigma * generator.normal(size=len(x)))
        for name, curve, sigma in zip("AB", curves, noise, strict=True)
    ]


def order(trials: int) -> None:
    """Print the share of groups of six, and of single runs, for which an order is reported."""
    spacing = math.log(6001 / 2) / 43
    cases: list[tuple[str, float, tuple[float, float], float | None]] = [
        (f"one process, B = A^{power:.2g}", 0.0, (0.02, 0.02), power) for power in (1, 3, 1 / 3)
    ]
    cases += [("one process, B 10 times as noisy", 0.0, (0.005, 0.05), 1.0)]
    cases += [("equal onsets, B gradual and back", 0.0, (0.02, 0.02), None)]
    cases += [(f"B later by {lag} spacings", lag * spacing, (0.02, 0.02), 1.0) for lag in (1, 3, 6)]
    header("case", "A before B, six seeds, %", "B before A, six seeds, %", "an order in a single run, %")
    for name, lag, noise, power in cases:
        first, second, single = [], [], []
        for trial in range(trials):
            runs = {("g", str(seed)): pair_of(100 * trial + seed, lag, noise, power) for seed in range(6)}
            edges = [each for each in findings_of(runs).orders if each["relation"] == "before"]
            first.append(any(edge["before"] == "A" for edge in edges))
            second.append(any(edge["before"] == "B" for edge in edges))
            key = ("g", "0")
            single.append(findings_of({key: runs[key]}).orders)
        row(name, share(first), share(second), share(single))


def groups(trials: int) -> None:
    """Print the share of A/A groups reported as different, at one step and at equal loss, and of different groups."""
    header("pairs", "shift / standard deviation", "different at one step, %", "different at equal loss, %")
    for pairs in (3, 4, 6, 10):
        for shift in (0, 2):
            generator = np.random.default_rng(pairs)
            curves = generator.normal(size=(trials, pairs, 25)).cumsum(axis=2) / 5 + shift * math.sqrt(2)
            single = [difference_p(each[:, -1].tolist()) <= 0.05 for each in curves]
            together = [band(each, 0.95, 500, 0).p_value <= 0.05 for each in curves]
            row(pairs, shift, share(single), share(together))


def saturated(trials: int) -> None:
    """Print the share of A/A groups with few errors of accuracy reported as different at any of 20 steps."""
    header("pairs", "errors per run", "different at any step, %", "without the bound of half a sample, %")
    for pairs in (3, 4, 6):
        for errors in (1, 3, 10):
            counts = np.random.default_rng(pairs).poisson(errors, (2, trials, 20, pairs))
            p_values = [
                [[difference_p(step, grain) for step in run] for run in (counts[0] - counts[1])] for grain in (1, 0)
            ]
            row(pairs, errors, *(share(20 * min(run) <= 0.05 for run in each) for each in p_values))


def baselines(trials: int) -> None:
    """Print the share of series without a change for which other detectors raise an alarm."""
    header("detector", *(f"φ = {phi}" for phi in CORRELATIONS))
    x = positions(grid("logarithmic", 44))
    series = {phi: simulate(np.random.default_rng(3), phi, trials, 44) + x for phi in CORRELATIONS}
    detectors: dict[str, Callable[[np.ndarray], bool]] = {
        **{f"{k} σ of first differences": lambda row, k=k: beyond(row, k) for k in (2, 3, 5)},
        "PELT, constant pieces, penalty 2 σ² log n": pelt,
        "Gaussian HMM of 2 states against 1, BIC": hidden_markov,
    }
    for name, detector in detectors.items():
        row(name, *(share(map(detector, rows)) for rows in series.values()))


def beyond(values: np.ndarray, k: float) -> bool:
    """Return whether a first difference is further than k standard deviations from their mean."""
    steps = np.diff(values)
    return bool((np.abs(steps - steps.mean()) > k * steps.std()).any())


def pelt(values: np.ndarray) -> bool:
    """Return whether optimal segmentation into constant pieces (Killick et al. 2012) has more than one piece."""
    sigma2 = np.median(np.abs(np.diff(values))) ** 2 / 0.91  # the median of |N(0, 2)| is 0.954
    penalty = 2 * sigma2 * math.log(len(values))
    sums, squares = np.r_[0, values.cumsum()], np.r_[0, (values**2).cumsum()]
    best, last = np.full(len(values) + 1, np.inf), np.zeros(len(values) + 1, dtype=int)
    best[0] = -penalty
    for end in range(1, len(values) + 1):
        start = np.arange(end)
        cost = squares[end] - squares[:end] - (sums[end] - sums[:end]) ** 2 / (end - start)
        total = best[:end] + cost + penalty
        last[end] = int(total.argmin())
        best[end] = total.min()
    return last[len(values)] > 0


def hidden_markov(values: np.ndarray) -> bool:
    """Return whether BIC prefers a hidden Markov model of two Gaussian states to a single Gaussian (Baum–Welch)."""
    count = len(values)
    single = -0.5 * count * (math.log(2 * math.pi * values.var()) + 1)
    mean, sigma = np.quantile(values, [0.25, 0.75]), np.full(2, values.std())
    move, likelihood = np.array([[0.9, 0.1], [0.1, 0.9]]), -math.inf
    for _ in range(30):
        density = np.exp(-0.5 * ((values[:, None] - mean) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi)) + 1e-300
        forward, scale = np.empty((count, 2)), np.empty(count)
        state = np.full(2, 0.5)
        for t in range(count):
            state = (state if t == 0 else state @ move) * density[t]
            scale[t] = state.sum()
            forward[t] = state = state / scale[t]
        backward = np.ones((count, 2))
        for t in range(count - 2, -1, -1):
            backward[t] = move @ (density[t + 1] * backward[t + 1]) / scale[t + 1]
        likelihood = float(np.log(scale).sum())
        weight = forward * backward
        joint = forward[:-1, :, None] * move * (density[1:] * backward[1:] / scale[1:, None])[:, None, :]
        move = joint.sum(axis=0) / joint.sum(axis=(0, 2))[:, None]
        mean = (weight * values[:, None]).sum(axis=0) / weight.sum(axis=0)
        sigma = np.sqrt((weight * (values[:, None] - mean) ** 2).sum(axis=0) / weight.sum(axis=0)).clip(1e-3)
    return 2 * (likelihood - single) > (7 - 2) * math.log(count)


def seconds(_trials: int) -> None:
    """Print the time of 500 checkpoints and 40 metrics, simulation included."""
    steps = np.linspace(10, 5000, 500)
    values = simulate(np.random.default_rng(4), 0.3, 40, 500)
    began = time.perf_counter()
    find_events([Series("", "", {}, f"m{index}", steps, each) for index, each in enumerate(values)])
    wall = time.perf_counter() - began
    print(f"\n500 checkpoints × 40 metrics: {wall:.1f} s", flush=True)


PARTS = {
    "nulls": nulls,
    "looks": looks,
    "smooth": smooth,
    "planted": planted,
    "detectable": detectable,
    "order": order,
    "groups": groups,
    "saturated": saturated,
    "baselines": baselines,
    "time": seconds,
}


def main(words: Sequence[str] | None = None) -> None:
    """Print the requested tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--trials", type=int, default=1000)
    options = parser.parse_args(words)
    for part in options.parts:
        began = time.perf_counter()
        PARTS[part](options.trials)
        print(f"\n{part}: {options.trials} trials, {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
