"""Share of exponents within two standard errors on draws of a power law, alone and above a bulk.

    python benchmarks/tail_errors.py [--draws 400] [--seed 0]

Draws `n` values of a Pareto law with exponent alpha; above a bulk, 30 % of the values are of the law, and the others
are uniform below it.
"""

import argparse
import math

import numpy as np

from ckpt_probe.trajectories.eigenvalues import fit_tail


def main() -> None:
    """Print a table of shares with the error of this package, and with (alpha - 1)/sqrt(k)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random = np.random.default_rng(options.seed)
    for law in ("Pareto", "Pareto above a bulk"):
        for n in (64, 128, 256, 512, 1024):
            for alpha in (2.0, 4.0, 6.0):
                inside, plain = 0, 0
                for _ in range(options.draws):
                    values = random.uniform(size=n) ** (-1 / (alpha - 1))
                    if law != "Pareto":
                        values = np.where(random.uniform(size=n) < 0.3, values, random.uniform(0.05, 1, n))
                    tail = fit_tail(values)
                    assert tail is not None
                    away = abs(tail.alpha - alpha)
                    inside += away <= 2 * tail.stderr
                    plain += away <= 2 * (tail.alpha - 1) / math.sqrt(tail.count)
                shares = [100 * count / options.draws for count in (inside, plain)]
                print(f"{law}, n {n}, alpha {alpha:.0f}: {shares[0]:.1f} %; by (alpha - 1)/sqrt(k) {shares[1]:.1f} %")


if __name__ == "__main__":
    main()
