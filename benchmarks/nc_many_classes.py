"""Neural collapse for few and many classes: `only=("nc",)`, the complete record, and rhubarbwu/neural-collapse.

Few: N = 60,000, D = 512, C = 10. Many: N = 100,000, D = 512, C = 5,000. Float32 features around the weights of their
labels, in memory; alternating runs in one process, the median of each. The other package is measured with the same rows
if its source is given: class means, within-class covariance, variances, decisions (float32, blocks of 8,192 rows), then
NC1 by pseudo-inverse, CDNV, the distance from the simplex ETF, duality and agreement. For many classes its CDNV would
need C × C × D numbers, 51 GB; it is measured without, and with `--cdnv` in tiles of 64.

Three plain passes in float32 are measured too. With `--dump` the analysis also runs on a dump of the same rows with
their logits, as `extract` writes it, for which NC4 need not compute logits.

Run: python benchmarks/nc_many_classes.py [--neural-collapse DIR] [--case few|many] [--repeats 3] [--whole] [--dump]
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckpt_probe import analyze_features
from ckpt_probe.analysis import analyze
from ckpt_probe.dumps import DumpWriter

CASES = {"few": (60_000, 512, 10), "many": (100_000, 512, 5_000)}
ROWS = 8192


def labelled_features(samples: int, features: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (N, D) around the weights (C, D) of their labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(classes, features, generator=generator)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    rows = torch.randn(samples, features, generator=generator).mul_(2)
    for start in range(0, samples, ROWS):
        rows[start : start + ROWS] += weights[labels[start : start + ROWS]]
    return rows, labels, weights


def write_rows(path: Path, rows: Tensor, labels: Tensor, weights: Tensor) -> Path:
    """Write a dump of the rows, their labels and logits, and the classifier."""
    with DumpWriter(path, None, classes=len(weights), features=weights.shape[1]) as writer:
        writer.write_classifier(weights)
        writer.start_split("test", len(rows))
        for block, numbers in zip(rows.split(ROWS), labels.split(ROWS), strict=True):
            writer.append("test", block, numbers, block @ weights.T)
    return path


def theirs(source: Path, rows: Tensor, labels: Tensor, weights: Tensor, *, tiles: int | None) -> dict[str, float]:
    """Return the numbers of the other package, computed in the order of its own example."""
    if str(source) not in sys.path:
        sys.path.insert(0, str(source))
    from neural_collapse import accumulate, measure  # pyright: ignore[reportMissingImports]

    blocks = list(zip(rows.split(ROWS), labels.split(ROWS), strict=True))
    size = weights.shape
    averages = accumulate.MeanAccumulator(*size)
    for block, numbers in blocks:
        averages.accumulate(block, numbers)
    means, centre = averages.compute()
    spreads, products = (
        accumulate.VarNormAccumulator(*size, M=means),
        accumulate.CovarAccumulator(*size, M=means),
    )
    decisions = accumulate.DecAccumulator(*size, M=means, W=weights)
    for block, numbers in blocks:
        products.accumulate(block, numbers, means)
        if tiles is not None:
            spreads.accumulate(block, numbers, means)
        decisions.accumulate(block, numbers, weights, means)
    results = {
        "nc1.pinv": measure.covariance_ratio(products.compute(), means, centre),
        "nc2": measure.simplex_etf_error(means, centre),
        "nc3": measure.self_duality_error(weights, means, centre),
        "nc4": 1 - measure.clf_ncc_agreement(decisions),
    }
    if tiles is not None:
        variances, _ = spreads.compute()
        results["nc1.cdnv"] = measure.variability_cdnv(variances, means, tile_size=tiles)
    return results


def plain(rows: Tensor, labels: Tensor, weights: Tensor) -> dict[str, float]:
    """Make three float32 passes without safeguards: class means, the within-class covariance, the nearest means."""
    classes, features = weights.shape
    blocks = list(zip(rows.split(ROWS), labels.split(ROWS), strict=True))
    means, within = torch.zeros(classes, features), torch.zeros(features, features)
    for block, numbers in blocks:
        means.index_add_(0, numbers, block)
    means /= torch.bincount(labels, minlength=classes)[:, None]
    for block, numbers in blocks:
        centred = block - means[numbers]
        within.addmm_(centred.T, centred)
    sizes = means.square().sum(dim=1)
    for block, _ in blocks:
        (2 * (block @ means.T) - sizes).argmax(dim=1)
    return {}


def time_call(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call, and its result."""
    started = time.perf_counter()
    value = function()
    return time.perf_counter() - started, value


def measure_case(case: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Time all functions of a case in turn; print each with its ratio to the other package's."""
    rows, labels, weights = labelled_features(*CASES[case])
    functions: dict[str, Callable[[], Any]] = {
        "three float32 passes": lambda: plain(rows, labels, weights),
        "only nc": lambda: analyze_features(rows, labels, weights, only=("nc",)),
        "only nc, float32": lambda: analyze_features(rows, labels, weights, only=("nc",), precision="float32"),
    }
    if arguments.whole:
        functions["whole record"] = lambda: analyze_features(rows, labels, weights)
    if arguments.dump:
        path = write_rows(folder / f"{case}.h5", rows, labels, weights)
        functions["only nc, of a dump"] = lambda: analyze(path, only=("nc",))[0]
        if arguments.whole:
            functions["whole, of a dump"] = lambda: analyze(path)[0]
    if arguments.neural_collapse:
        tiles = 64 if arguments.cdnv else None
        functions["neural-collapse"] = lambda: theirs(arguments.neural_collapse, rows, labels, weights, tiles=tiles)
    spent: dict[str, list[float]] = {name: [] for name in functions}
    results: dict[str, Any] = {}
    for _ in range(arguments.repeats + 1):
        for name, function in functions.items():
            seconds, results[name] = time_call(function)
            spent[name].append(seconds)
    samples, features, classes = CASES[case]
    print(f"N {samples:,} D {features} C {classes:,}")
    # The first round warms up.
    medians = {name: statistics.median(times[1:]) for name, times in spent.items()}
    for name, seconds in medians.items():
        ratios = [a / b for a, b in zip(spent[name][1:], spent.get("neural-collapse", [])[1:], strict=False)]
        beside = f"  {statistics.median(ratios):5.2f} × neural-collapse" if ratios else ""
        values = {
            key: value
            for key, value in results[name].items()
            if key in ("nc1.pinv", "nc1.cdnv", "nc4.disagreement", "nc4")
        }
        print(
            f"  {name:18} {seconds:7.2f} s{beside}  " + "  ".join(f"{k} {v:.12g}" for k, v in values.items()),
            flush=True,
        )


def main() -> None:
    """Measure the requested cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--whole", action="store_true", help="the whole record too")
    parser.add_argument("--dump", action="store_true", help="from a dump with logits too")
    parser.add_argument("--neural-collapse", type=Path, metavar="DIR", help="source of rhubarbwu/neural-collapse")
    parser.add_argument("--cdnv", action="store_true", help="its CDNV too")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        for case in [arguments.case] if arguments.case else CASES:
            measure_case(case, arguments, Path(folder))


if __name__ == "__main__":
    main()
