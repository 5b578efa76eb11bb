"""False alarms of the audit on clean series, and faults that it finds, over runs with every kind of schedule.

    python benchmarks/series_audit.py [--runs 250] [--series 8] [--seed 0]
    python benchmarks/series_audit.py --planted DIR... [--draws 200]

Trains `--runs` small networks on the packaged digits at once, with SGD or Adam, and a constant, falling, cosine,
restarted, warmed-up or too large learning rate. From each, `--series` series of 5 to 30 checkpoints are drawn, evenly,
logarithmically or randomly spaced. Prints the rate of alarms on clean series, and the share of copies and of exchanges
of every kind that is found and named correctly. 250 runs take about 90 s on one core. With `--planted`, the faults are
planted in the checkpoints of directories instead, each kind `--draws` times over all of them.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.checkpoints import open_series
from ckpt_probe.data import load_data
from ckpt_probe.progress import NullProgress
from ckpt_probe.trajectories.layout import WeightOptions
from ckpt_probe.trajectories.motion import distances_of
from ckpt_probe.trajectories.series import measured_series
from ckpt_probe.trajectories.turns import Turns

SCHEDULES: tuple[str, ...] = ("constant", "drops", "cosine", "restarts", "warm-up", "too large")
STEPS, EVERY, BATCH, WIDTH = 1200, 10, 32, 24
CALM = 1.41
"""Largest turn ratio of a run in which an exchange can be seen at all: at random it is √2."""
EXCHANGES: tuple[str, ...] = ("exchange", "with an end", "first two", "last two")
"""Exchanges: of two inner checkpoints, of an inner one and the first or the last, of the first two and the last two."""


def rates(kinds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return learning rates (R, steps) relative to the base rate."""
    t = np.arange(STEPS) / STEPS
    rows = np.ones((len(kinds), STEPS))
    for row, kind in zip(rows, kinds, strict=True):
        if kind == "drops":
            for at in random.uniform(0.2, 0.9, random.integers(1, 4)):
                row[t > at] *= random.choice([0.1, 0.2, 0.5])
        elif kind == "cosine":
            row[:] = (1 + np.cos(np.pi * t)) / 2
        elif kind == "restarts":
            row[:] = (1 + np.cos(np.pi * (t * random.integers(2, 7) % 1))) / 2
        elif kind == "warm-up":
            row[:] = np.minimum(t / random.uniform(0.03, 0.3), 1) * (1 if random.random() < 0.5 else 1 - t)
    return rows


def train(runs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Train networks side by side; return their parameters (R, T, P) and the names of their schedules."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    inputs, labels = load_data("digits").split("train").batch(slice(None))
    assert isinstance(inputs, Tensor)
    inputs = inputs.flatten(1).float()
    inputs = (inputs - inputs.mean()) / inputs.std()
    kinds = np.array(SCHEDULES)[random.integers(0, len(SCHEDULES), runs)]
    adam, momentum = random.random(runs) < 0.35, random.choice([0.0, 0.9], runs)
    base = 10 ** random.uniform(-2, 0, runs) / np.where(momentum > 0, 8, 1) * np.where(kinds == "too large", 3, 1)
    base = np.where(adam, 10 ** random.uniform(-3.5, -1.8, runs), base)
    rate = torch.tensor(rates(kinds, random) * base[:, None]).float()
    decay = torch.tensor(random.choice([0.0, 1e-3, 1e-2], runs)).float().view(-1, 1, 1)
    is_adam, beta = torch.tensor(adam).view(-1, 1, 1), torch.tensor(momentum).float().view(-1, 1, 1)
    shapes = ((64, WIDTH), (1, WIDTH), (WIDTH, 10), (1, 10))
    weights = [torch.randn(runs, *s) / s[0] ** 0.5 if s[0] > 1 else torch.zeros(runs, *s) for s in shapes]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    saved = []
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            saved.append(torch.cat([w.flatten(1) for w in weights], 1).numpy().copy())
        if step == STEPS:
            break
        rows = torch.randint(len(inputs), (BATCH,))
        for w, m, v, gradient in zip(
            weights, first, second, gradients(weights, inputs[rows], labels[rows]), strict=True
        ):
            g = (gradient + decay * w).clamp(-10, 10)
            m.mul_(torch.where(is_adam, 0.9, beta)).add_(g * torch.where(is_adam, 0.1, 1.0))
            v.mul_(0.99).addcmul_(g, g, value=0.01)
            scaled = (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8)
            w.sub_(rate[:, step].view(-1, 1, 1) * torch.where(is_adam, scaled, m))
    return np.stack(saved, 1), kinds


def gradients(weights: list[Tensor], inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of the mean cross-entropy of each network."""
    w1, b1, w2, b2 = weights
    hidden = (inputs.expand(len(w1), -1, -1) @ w1 + b1).relu()
    error = (hidden @ w2 + b2).softmax(-1)
    error[:, torch.arange(len(labels)), labels] -= 1
    error /= len(labels)
    inner = (error @ w2.transpose(1, 2)) * (hidden > 0)
    outer = inputs.T.expand(len(w1), -1, -1) @ inner, inner.sum(1, True)
    return *outer, hidden.transpose(1, 2) @ error, error.sum(1, True)


def drawn_steps(random: np.random.Generator, count: int) -> np.ndarray:
    """Return indices of the checkpoints of one series."""
    size = random.integers(5, 31)
    chosen = (
        np.linspace(0, count - 1, size),
        np.concatenate([[0], np.geomspace(1, count - 1, size - 1)]),
        random.choice(count, size, replace=False),
    )[random.integers(0, 3)]
    return np.unique(np.round(chosen).astype(int))


def plant(directories: list[Path], draws: int, seed: int) -> None:
    """Print the faults that are found in checkpoints of directories, and the alarms without a fault."""
    random, routes = np.random.default_rng(seed), []
    for directory in directories:
        series = measured_series(open_series(directory), WeightOptions(parts=("audit",)), NullProgress())
        assert series.audit is not None
        # A first update with learning rate 0 leaves two checkpoints with the same weights, of which one is taken.
        distinct = [
            t for t in range(len(series.members)) if t not in {t for g in series.audit.turns.equal for t in g[1:]}
        ]
        routes.append((directory.name, distances_of(series.measured.gram)[np.ix_(distinct, distinct)]))
        print(f"{directory}: {len(series.members)} checkpoints, {len(series.audit.alarms)} alarms")
    for kind in ("copy", "copy of a neighbour", *EXCHANGES):
        detected = named = 0
        missed: Counter[str] = Counter()
        for draw in range(draws):
            name, route = routes[draw % len(routes)]
            count = len(route)
            i = int(random.integers(1, count - 3))
            j = i + 1 if kind == "copy of a neighbour" else int(random.integers(i + 2, count - 1))
            if kind.startswith("copy"):
                order = np.arange(count)
                order[i] = j
                copies = Turns(route[np.ix_(order, order)], [(i, j)]).copies
                detected, named = detected + 1, named + (copies == ((i,),))
            else:
                ends = {"first two": (0, 1), "last two": (count - 2, count - 1)}
                ends["with an end"] = (0, j) if draw % 2 else (i, count - 1)
                i, j = ends.get(kind, (i, j))
                turns = Turns(exchanged(route, i, j))
                detected += bool(turns.exchanged or turns.strays)
                named += turns.exchanged == ((i, j),)
                missed[name] += not (turns.exchanged or turns.strays)
        print(f"{kind}: {detected} of {draws} found, {named} named correctly")
        for name, count in (+missed).items():
            print(f"  not found: {count} in {name}")


def exchanged(distances: np.ndarray, i: int, j: int) -> np.ndarray:
    """Return the distances with two checkpoints exchanged."""
    order = np.arange(len(distances))
    order[[i, j]] = j, i
    return distances[np.ix_(order, order)]


def main() -> None:
    """Print false alarms by schedule, and found faults."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=250)
    parser.add_argument("--series", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--planted", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args()
    if options.planted:
        plant(options.planted, options.draws, options.seed)
        return
    parameters, kinds = train(options.runs, options.seed)
    random = np.random.default_rng(options.seed)
    alarms, clean = dict.fromkeys(SCHEDULES, 0), dict.fromkeys(SCHEDULES, 0)
    counts = {kind: [0, 0] for kind in ("copy", *EXCHANGES)}
    for run, kind in zip(parameters, kinds, strict=True):
        if not np.isfinite(run).all():
            continue
        moved = run.astype(np.float64) - run[0]
        gram = moved @ moved.T
        squares = np.diag(gram)
        distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * gram, 0))
        for _ in range(options.series):
            steps = drawn_steps(random, len(distances))
            series, count = distances[np.ix_(steps, steps)], len(steps)
            if count < 5:
                continue
            turns = Turns(series)
            clean[str(kind)] += 1
            alarms[str(kind)] += bool(turns.exchanged or turns.strays)
            i, j = sorted(random.choice(np.arange(1, count - 1), 2, replace=False).tolist())
            if turns.ratios[1:-1].max() < CALM:
                end = (0, max(2, j)) if random.random() < 0.5 else (min(i, count - 3), count - 1)
                for name, pair in zip(EXCHANGES, ((i, j), end, (0, 1), (count - 2, count - 1)), strict=True):
                    counts[name][0] += Turns(exchanged(series, *pair)).exchanged == (pair,)
                    counts[name][1] += 1
            if j - i > 1:
                order = np.arange(count)
                order[i] = j
                counts["copy"][0] += Turns(series[np.ix_(order, order)], [(i, j)]).copies == ((i,),)
                counts["copy"][1] += 1
    for kind in SCHEDULES:
        print(f"{kind:10} {alarms[kind]} alarms in {clean[kind]:,} clean series")
    print(f"all        {sum(alarms.values())} alarms in {sum(clean.values()):,} clean series")
    for kind, (right, count) in counts.items():
        print(f"{kind:10} {right:,} of {count:,} found and named correctly")


if __name__ == "__main__":
    main()
