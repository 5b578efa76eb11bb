"""What one checkpoint costs by N, D, C and the model's size: measured, fitted, and projected to runs nobody has here.

Eight points or more of each; every analysis in a process of its own, its peak memory above the imports with it. A fit
has non-negative coefficients and minimises relative errors; one larger point that it has not seen tests it. Of the
model's size the forward pass is timed, `extract`'s own share of it is what `extraction.py` measures.

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
"""N, D and C."""
BASE = (20_000, 256, 10)
SAMPLES = (2_000, 5_000, 10_000, 20_000, 40_000, 80_000, 160_000, 320_000)
WIDTHS = (32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048)
CLASSES = (2, 10, 50, 100, 250, 500, 1000, 2000)
LARGE = (50_000, 512, 50_304)
"""A head of a language model: other routes, with float32 products whose decisions are exact."""
UNSEEN = (200_000, 768, 1000)
BUDGET, PROBES, STEPS = 2 * 2**30, 8, 20
"""`memory`, and what sampling keeps beside it: so many vectors as long as the joint matrix."""
MODELS = (
    ("resnet18", 64), ("resnet18", 128), ("resnet34", 128), ("resnet50", 128), ("resnet50", 224),
    ("vit_tiny_patch16_224", 224), ("vit_small_patch16_224", 224), ("vit_base_patch16_224", 224),
)  # fmt: skip
FAMILIES = ("class,nc", "sample")
EXACT = 256
"""`exact_limit`: as large cases have it, joint entropies are sampled at the small points too."""


@dataclass(frozen=True)
class Case:
    """A series that is priced: how many checkpoints, of how many rows, width, classes, parameters, and operations."""

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
    """What an analysis does, in units of work, by name; joint entropies are sampled (see EXACT)."""
    shared = {"1": 1.0, "N·D": n * d, "N·D²": n * d * d, "C·D": c * d, "C·D²": c * d * d, "D³": d**3}
    return shared if family == "sample" else shared | {"N·C·D": n * c * d, "C²·D": c * c * d}


def analyze(path: Path, family: str) -> None:
    """One analysis in this process: its seconds, and the peak of memory above the imports, MiB."""
    from ckpt_probe.analysis import analyze
    from ckpt_probe.moments import Moments

    Moments(2)
    imported = memory()
    started = time.perf_counter()
    [record] = analyze(path, only=family.split(","), exact_limit=EXACT)
    print(time.perf_counter() - started, memory() - imported, record.get("route"))


def measured(folder: Path, point: Point) -> dict[str, tuple[float, float]]:
    """Seconds and MiB of each family at N, D and C."""
    path = folder / "rows.h5"
    write(path, *point)
    found = {}
    for family in FAMILIES:
        words = [sys.executable, __file__, "--analyze", str(path), family]
        seconds, mebibytes, route = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
        found[family] = float(seconds), float(mebibytes)
        print(f"  N {point[0]:7,} D {point[1]:5,} C {point[2]:5,}  {family:9} {float(seconds):7.2f} s "
              f"{float(mebibytes):6.0f} MiB  [{route}]", flush=True)  # fmt: skip
    path.unlink()
    return found


@dataclass(frozen=True)
class Fit:
    """Coefficients by term, and the relative errors of the points that it was made from."""

    coefficients: dict[str, float]
    errors: np.ndarray

    @staticmethod
    def of(rows: list[dict[str, float]], values: list[float]) -> "Fit":
        """The one of smallest relative errors whose coefficients are not negative."""
        names = list(rows[0])
        table, target = np.array([[row[name] for name in names] for row in rows]), np.array(values)
        scale = np.abs(table).max(axis=0)
        found, _ = nnls(table / scale / target[:, None], np.ones(len(target)))
        errors = table / scale @ found / target - 1
        return Fit(dict(zip(names, found / scale, strict=True)), errors)

    def at(self, row: dict[str, float]) -> float:
        """What it says of another point."""
        return sum(self.coefficients[name] * row[name] for name in row)

    def told(self) -> str:
        """In one line."""
        kept = " + ".join(f"{value:.2e}·{name}" for name, value in self.coefficients.items() if value)
        return f"{kept}; error: median {np.median(abs(self.errors)):.0%}, at most {abs(self.errors).max():.0%}"


def forward(samples: int) -> Fit:
    """Seconds a sample of a forward pass by its operations (2 a multiplication), over models of many sizes."""
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
    """Fits of seconds and MiB by family, told with what they say of a point that they have not seen."""
    fits = {}
    for family in FAMILIES:
        rows = [terms(family, *point) for point in points if point != unseen]
        for place, unit in ((0, "seconds"), (1, "MiB")):
            fit = Fit.of(rows, [max(found[family][place], 1e-3) for point, found in points.items() if point != unseen])
            fits[family, unit] = fit
            said, found = fit.at(terms(family, *unseen)), points[unseen][family][place]
            print(f"{family} {unit} = {fit.told()}; unseen point: {said:.1f} for {found:.1f}")
    return lambda family, unit, case: fits[family, unit].at(terms(family, case.rows, case.features, case.classes))


def project(cost: Callable[[str, str, Case], float], rate: Fit) -> None:
    """Hours, bytes and memory of the cases. Bytes: features as float32, labels, and the checkpoints that are read.

    Memory is not extrapolated, as the budget bounds what the fits have seen grow.
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
    """Measure, fit, project."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Smaller points, to try the benchmark itself.")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--analyze", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.analyze:
        analyze(Path(asked.analyze[0]), asked.analyze[1])
        return
    shrink = 16 if asked.quick else 1
    n, d, c = BASE[0] // shrink, BASE[1], BASE[2]
    unseen = (UNSEEN[0] // shrink, UNSEEN[1] // shrink, UNSEEN[2] // shrink)
    points = [(size // shrink, d, c) for size in SAMPLES]
    points += [(n, max(2, size // shrink), c) for size in WIDTHS] + [(n, d, max(2, size // shrink)) for size in CLASSES]
    if not asked.quick:
        points.append(LARGE)
    print(f"{os.cpu_count()} cores, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}")
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        found = {point: measured(Path(folder), point) for point in [*dict.fromkeys(points), unseen]}
    cost = fitted(found, unseen)
    rate = forward(2 if asked.quick else 16)
    print(f"seconds a sample = {rate.told()}")
    project(cost, rate)


if __name__ == "__main__":
    main()
