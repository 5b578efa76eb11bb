"""Cost of a record with errors and biases against one without, from rows to record, in processor time of one thread.

    python benchmarks/errors_cost.py [--case exact|nc|sampled] [--scale 1.0]

`exact`: N = 4,000, D = 128, C = 10, all families. `nc`: N = 60,000, D = 512, C = 10, only NC1 to NC3. `sampled`: a
joint matrix that is sampled, N = 50,000, D = 2,048, C = 1,000, scaled down by `--scale`. Runs alternate; the fastest of
each kind count, because other processes slow down the others.
"""

import argparse
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from ckpt_probe.moments import Moments

CASES = {"exact": (4_000, 128, 10, None), "nc": (60_000, 512, 10, ["nc"]), "sampled": (50_000, 2_048, 1_000, None)}


def main() -> None:
    """Time both in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="exact")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kind", choices=("both", "with", "without"), default="both", help="records to time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    samples, features, classes, only = CASES[arguments.case]
    samples, features, classes = (max(2, round(size * arguments.scale)) for size in (samples, features, classes))
    if arguments.case != "sampled":
        samples, features, classes, only = CASES[arguments.case]
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(classes, features, generator=generator)
    labels = torch.arange(samples) % classes
    rows = weights[labels] + torch.randn(samples, features, generator=generator)
    kinds = {"both": (False, True), "with": (True,), "without": (False,)}[arguments.kind]
    times: dict[bool, list[float]] = {kind: [] for kind in kinds}
    limit = 256 if arguments.scale < 1 else None

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        return zip(rows.split(8192), labels.split(8192), strict=True)

    for _ in range(arguments.repeats):
        for errors in times:
            began = time.process_time()
            moments = Moments(classes, only=only, halves=errors, subset=2048 if errors else 0)
            for part, of_part in blocks():
                moments.update(part, of_part)
            accumulated = time.process_time() - began
            record = moments.compute(weights, errors=errors, exact_limit=limit, rows=blocks)
            times[errors].append(time.process_time() - began)
            spent = f"{times[errors][-1]:.2f} s, of which update {accumulated:.2f} s"
            print(f"errors={errors}: {spent}, {record.get('route')}")
    fastest = [min(times[kind]) for kind in kinds]
    ratio = f", x{fastest[1] / fastest[0]:.2f}" if len(kinds) == 2 else ""
    shape = f"N = {samples:,}, D = {features}, C = {classes}"
    print(f"{arguments.case}, {shape}: {', '.join(f'{seconds:.2f} s' for seconds in fastest)}{ratio}")


if __name__ == "__main__":
    main()
