"""Cost of a checkpoint by N, D, C and the model's size: measured, fitted, and projected to larger runs.

Measures at least eight points for each variable, every analysis in a separate process with its peak memory above the
imports. A fit has non-negative coefficients and minimises relative errors; it is tested on a larger point that was not
used for it. For the model's size the forward pass is timed; `extraction.py` measures the overhead of `extract`.

Run: python benchmarks/cost.py [--quick] [--folder DIR]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scaling import memory, write
from scipy.optimize import nnls

Point = tuple[int, int, int]
"""Values of N, D and C."""
BASE = (20_000, 256, 10)
SAMPLES = (2_000, 5_000, 10_000, 20_000, 40_000, 80_000, 160_000, 320_000)
WIDTHS = (32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048)
CLASSES = (2, 10, 50, 100, 250, 500, 1000, 2000)
LARGE = (50_000, 512, 50_304)
"""Size of the head of a language model, for which other algorithms are used (float32 products, exact decisions)."""
UNSEEN = (200_000, 768, 1000)
BUDGET, PROBES, STEPS = 2 * 2**30, 8, 20
"""Argument `memory`, and the number of probes and steps of sampling, each a vector as long as the joint matrix."""
MODELS = (
    ("resnet18", 64), ("resnet18", 128), ("resnet34", 128), ("resnet50", 128), ("resnet50", 224),
    ("vit_tiny_patch16_224", 224), ("vit_small_patch16_224", 224), ("vit_base_patch16_224", 224),
)  # fmt: skip
FAMILIES = ("class,nc", "sample")
EXACT = 256
"""Argument `exact_limit`: joint entropies of small points are sampled too, as those of large cases are."""


@dataclass(frozen=True)
class Case:
    """A series of checkpoints whose cost is projected: numbers of rows, features, classes and operations per row."""

    name: str
    checkpoints: int
    rows: int
    features: int
    classes: int
    parameters: float
    operations: float


CASES = (
    Case("(a) ResNet-50, ImageNet", 100, 1_281_167, 2048, 1000, 25.6e6, 8.2e9),
    Case("(b) ViT-L/16, ImageNet", 500, 1_281_167, 1024, 1000, 304e6, 123e9),
    Case("(c) 1.4-billion language model, 10 million positions", 154, 10_000_000, 2048, 50_304, 1.4e9, 2.8e9),
)
WORKERS = (1, 8, 64)


def terms(family: str, n: float, d: float, c: float) -> dict[str, float]:
    """Return the work of an analysis by terms; joint entropies are sampled (see EXACT)."""
    shared = {"1": 1.0, "N·D": n * d, "N·D²": n * d * d, "C·D": c * d, "C·D²": c * d * d, "D³": d**3}
    return shared if family == "sample" else shared | {"N·C·D": n * c * d, "C²·D": c * c * d}


def analyze(path: Path, family: str) -> None:
    """Analyze a dump in this process; print the seconds, and the peak memory above the imports in MiB."""
    from ckpt_probe.analysis import analyze
    from ckpt_probe.moments import Moments

    Moments(2)
    imported = memory()
    started = time.perf_counter()
    [record] = analyze(path, only=family.split(","), exact_limit=EXACT)
    print(time.perf_counter() - started, memory() - imported, record.get("route"))


def measured(folder: Path, point: Point) -> dict[str, tuple[float, float]]:
    """Return seconds and MiB of each family at N, D and C."""
    path = folder / "rows.h5"
    write(path, *point)
    costs = {}
    for family in FAMILIES:
        words = [sys.executable, __file__, "--analyze", str(path), family]
        seconds, mebibytes, route = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
        costs[family] = float(seconds), float(mebibytes)
        print(f"  N {point[0]:7,} D {point[1]:5,} C {point[2]:5,}  {family:9} {float(seconds):7.2f} s "
              f"{float(mebibytes):6.0f} MiB  [{route}]", flush=True)  # fmt: skip
    path.unlink()
    return costs


@dataclass(frozen=True)
class Fit:
    """Coefficients by term, and the relative errors at the points of the fit."""

    coefficients: dict[str, float]
    errors: np.ndarray

    @staticmethod
    def of(rows: list[dict[str, float]], values: list[float]) -> "Fit":
        """Return the fit with the smallest relative errors and non-negative coefficients."""
        names = list(rows[0])
        table, target = np.array([[row[name] for name in names] for row in rows]), np.array(values)
        scale = np.abs(table).max(axis=0)
        solution, _ = nnls(table / scale / target[:, None], np.ones(len(target)))
        errors = table / scale @ solution / target - 1
        return Fit(dict(zip(names, solution / scale, strict=True)), errors)

    def at(self, row: dict[str, float]) -> float:
        """Return the value of the fit at another point."""
        return sum(self.coefficients[name] * row[name] for name in row)

    def text(self) -> str:
        """Return the fit as a line of text."""
        formula = " + ".join(f"{value:.2e}·{name}" for name, value in self.coefficients.items() if value)
        return f"{formula}; error: median {np.median(abs(self.errors)):.0%}, at most {abs(self.errors).max():.0%}"


def forward(samples: int) -> Fit:
    """Fit the seconds per sample of forward passes to their operations (2 per multiplication), over many models."""
    import timm
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    rows, values = [], []
    for name, side in MODELS:
        arguments: dict[str, Any] = {"img_size": side} if "vit" in name else {}
        model = timm.create_model(name, pretrained=False, num_classes=10, **arguments).eval()
        with torch.inference_mode():
            with FlopCounterMode(display=False) as counter:
                model(torch.zeros(1, 3, side, side))
            batch = torch.randn(samples, 3, side, side)
            model(batch)
            started = time.perf_counter()
            model(batch)
            seconds = (time.perf_counter() - started) / samples
        operations = counter.get_total_flops()
        parameters = sum(p.numel() for p in model.parameters())
        print(f"  {name:22} {side:4} px {parameters / 1e6:6.1f} M parameters {operations / 1e9:6.2f} GFLOP "
              f"{seconds * 1e3:7.1f} ms a sample, {operations / seconds / 1e9:5.0f} GFLOP/s", flush=True)  # fmt: skip
        rows.append({"operations": float(operations)})
        values.append(seconds)
    return Fit.of(rows, values)


def fitted(points: dict[Point, dict[str, tuple[float, float]]], unseen: Point) -> Callable[[str, str, Case], float]:
    """Fit seconds and MiB by family, print each fit with its prediction of the unseen point, and return the costs."""
    fits = {}
    for family in FAMILIES:
        rows = [terms(family, *point) for point in points if point != unseen]
        for index, unit in ((0, "seconds"), (1, "MiB")):
            fit = Fit.of(
                rows, [max(cost_of[family][index], 1e-3) for point, cost_of in points.items() if point != unseen]
            )
            fits[family, unit] = fit
            prediction, measurement = fit.at(terms(family, *unseen)), points[unseen][family][index]
            print(f"{family} {unit} = {fit.text()}; unseen point: {prediction:.1f} for {measurement:.1f}")
    return lambda family, unit, case: fits[family, unit].at(terms(family, case.rows, case.features, case.classes))


def project(cost: Callable[[str, str, Case], float], rate: Fit) -> None:
    """Print hours, bytes and memory of the cases.

    Bytes are those of features as float32, labels, and the checkpoints that are read. Memory is not extrapolated, since
    the budget limits the part that grows in the fits.
    """
    for case in CASES:
        passes = rate.at({"operations": case.operations}) * case.rows
        seconds = {family: cost(family, "seconds", case) for family in FAMILIES}
        side = min(case.rows, case.features * min(case.classes, case.features))
        largest = BUDGET + 8 * PROBES * STEPS * side
        dump, weights = case.rows * (4 * case.features + 8), 4 * case.parameters * case.checkpoints
        print(
            f"{case.name}: forward passes {passes / 3600:.1f} h a checkpoint here; analysis "
            + ", ".join(f"{family} {value / 60:.1f} min" for family, value in seconds.items())
            + f"; at most about {largest / 2**30:.1f} GiB; a dump of features {dump / 1e9:.1f} GB "
            f"(all: {dump * case.checkpoints / 1e12:.2f} TB), checkpoints {weights / 1e9:.0f} GB"
        )
        for workers in WORKERS:
            rounds = -(-case.checkpoints // workers)
            print(f"  {workers:2} workers: analysis {rounds * sum(seconds.values()) / 3600:8.1f} h, "
                  f"forward passes {rounds * passes / 3600:10,.0f} h")  # fmt: skip


def main() -> None:
    """Measure, fit and project."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Smaller points, to try the benchmark itself.")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--analyze", nargs=2, help=argparse.SUPPRESS)
    arguments_given = parser.parse_args()
    if arguments_given.analyze:
        analyze(Path(arguments_given.analyze[0]), arguments_given.analyze[1])
        return
    shrink = 16 if arguments_given.quick else 1
    n, d, c = BASE[0] // shrink, BASE[1], BASE[2]
    unseen = (UNSEEN[0] // shrink, UNSEEN[1] // shrink, UNSEEN[2] // shrink)
    points = [(size // shrink, d, c) for size in SAMPLES]
    points += [(n, max(2, size // shrink), c) for size in WIDTHS] + [(n, d, max(2, size // shrink)) for size in CLASSES]
    if not arguments_given.quick:
        points.append(LARGE)
    print(f"{os.cpu_count()} cores, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}")
    with tempfile.TemporaryDirectory(dir=arguments_given.folder) as folder:
        costs = {point: measured(Path(folder), point) for point in [*dict.fromkeys(points), unseen]}
    cost = fitted(costs, unseen)
    rate = forward(2 if arguments_given.quick else 16)
    print(f"seconds a sample = {rate.text()}")
    project(cost, rate)


if __name__ == "__main__":
    main()
