"""Tables of the study of weights: when tensors stop moving, whether the exponent settles, and the trajectory.

python sample_configs/weights/tables.py RUN…      RUN-network.jsonl and RUN-tensors.jsonl, which weights has written
"""

import json
import math
import sys
from collections import defaultdict
from pathlib import Path

SHARE = 0.95
"""Share of its total path length after which a tensor counts as settled."""


def read(file: str) -> list[dict]:
    """Return the records of a file."""
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def settled(values: list[float | None], errors: list[float | None]) -> int | None:
    """Return the first index from which on a number stays within two standard errors of its last value."""
    if values[-1] is None or errors[-1] is None:
        return None
    for start in range(len(values)):
        pairs = zip(values[start:], errors[start:], strict=True)
        if all(v is not None and abs(v - values[-1]) <= 2 * math.hypot(e or 0.0, errors[-1]) for v, e in pairs):
            return start
    return None


def main(runs: list[str]) -> None:
    """Print the tables of every run."""
    for run in runs:
        network = read(f"{run}-network.jsonl")
        steps = [record["step"] for record in network]
        ratios = [record["audit.turn_ratio"] for record in network if record["audit.turn_ratio"] is not None]
        first = network[0]
        print(f"{run}: {len(steps)} checkpoints, turn ratios {min(ratios):.2f} to {max(ratios):.2f}, path ratio "
              f"{network[-1]['motion.path_ratio']:.2f}")  # fmt: skip
        shares = [first[f"motion.{kind}_share_{i}"] for kind in ("pca", "walk") for i in (1, 2)]
        print("  plane: {:.0%} and {:.0%} of the variance, a random walk as long {:.0%} and {:.0%}".format(*shares))
        tensors = defaultdict(list)
        for record in read(f"{run}-tensors.jsonl"):
            if record.get("spectrum.stable_rank") is not None:
                tensors[record["tensor"]].append(record)
        for name, records in tensors.items():
            path = [record["motion.path"] for record in records]
            stopped = next(i for i, length in enumerate(path) if length >= SHARE * path[-1])
            half = next(i for i, length in enumerate(path) if length >= 0.5 * path[-1])
            alpha = [record["spectrum.alpha"] for record in records]
            errors = [record["spectrum.alpha_stderr"] for record in records]
            index = settled(alpha, errors)
            text = "no exponent"
            if alpha[0] is not None and alpha[-1] is not None:
                since = "never" if index is None else f"step {steps[index]}"
                text = f"α {alpha[0]:.2f} → {alpha[-1]:.2f} ± {errors[-1]:.2f}, settled at {since}"
            spikes = [records[i]["spectrum.spikes"] for i in (0, -1)]
            ranks = " → ".join(f"{records[i]['spectrum.stable_rank']:.1f}" for i in (0, -1))
            way = f"half of its way at step {steps[half]}, {SHARE:.0%} at {steps[stopped]}"
            print(f"  {name}: {way}; {text}; stable rank {ranks}; spikes {spikes[0]} → {spikes[1]}")


if __name__ == "__main__":
    main(sys.argv[1:])
