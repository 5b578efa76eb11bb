"""A report of many checkpoints: seconds to write it, its size, and in a browser seconds of first plots and of a step.

The input has 500 checkpoints, 40 metrics and 2 splits as records, or with --dumps as many dumps of small features,
whose matrices, spectra and classes also follow the slider.

Run: python benchmarks/report.py [--checkpoints 500] [--metrics 40] [--dumps] [--folder DIR]
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from chromium import browser, missing, open_page

STEP = """
const slider = document.getElementById("checkpoint");
slider.value = arguments[0];
const started = performance.now();
slider.dispatchEvent(new Event("input"));
// Styles and layout are part of what a step costs.
document.body.getBoundingClientRect();
const computed = performance.now() - started;
const done = arguments[arguments.length - 1];
requestAnimationFrame(() => setTimeout(() => done([computed, performance.now() - started]), 0));
"""
TIMES = """
const [paint] = performance.getEntriesByName("first-contentful-paint");
return [performance.getEntriesByName("drawn")[0].startTime, paint ? paint.startTime : null];
"""
SPLITS = ("train", "test")


def write_records(path: Path, checkpoints: int, metrics: int) -> None:
    """Write records of a run with decreasing, noisy numbers."""
    generator = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for index in range(checkpoints):
            for split in SPLITS:
                falling = {f"metric.{n:02d}": math.exp(-index / (20 + 9 * n)) for n in range(metrics)}
                values = {name: value + 0.05 * generator.random() for name, value in falling.items()}
                file.write(
                    json.dumps({"checkpoint": f"step-{index}", "step": 100 * index, "split": split, **values}) + "\n"
                )


def write_dumps(folder: Path, checkpoints: int, classes: int = 10, features: int = 32) -> None:
    """Write dumps whose classes become separated."""
    from ckpt_probe.dumps import DumpWriter

    generator = np.random.default_rng(0)
    weights = generator.normal(size=(classes, features))
    folder.mkdir()
    for index in range(checkpoints):
        spread = 0.2 + 2 * math.exp(-index / 60)
        with DumpWriter(folder / f"step-{100 * index:06d}.h5", None, classes=classes, features=features) as writer:
            writer.write_classifier(weights)
            for split in SPLITS:
                labels = np.arange(200) % classes
                writer.start_split(split, len(labels), logits=False)
                rows = weights[labels] + spread * generator.normal(size=(len(labels), features))
                writer.append(split, rows.astype(np.float32), labels)


def measure(page: Path) -> list[str]:
    """Return the times of the browser as texts: medians of three loads, and of steps over the complete slider."""
    if reason := missing():
        return [f"in the browser: {reason}"]
    loads = []
    with browser() as driver:
        for _ in range(3):
            open_page(driver, page, seconds=300)
            loads.append(driver.execute_script(TIMES))
        last = driver.execute_script("return Number(document.getElementById('checkpoint').max)")
        steps = [driver.execute_async_script(STEP, round(position * last / 20)) for position in range(21)]
    drawn, painted = (statistics.median(load[i] for load in loads if load[i] is not None) for i in (0, 1))
    computed, redrawn = (sorted(step[i] for step in steps) for i in (0, 1))
    return [
        f"first plots drawn after {drawn:.0f} ms, first paint after {painted:.0f} ms (limit 2000)",
        f"a step of the slider: {statistics.median(computed):.0f} ms, at most {computed[-1]:.0f} ms; "
        f"until it is on the screen {statistics.median(redrawn):.0f} ms, at most {redrawn[-1]:.0f} ms (limit 100)",
    ]


def main() -> None:
    """Write the input, time the command in a separate process, then the page in a browser."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=500)
    parser.add_argument("--metrics", type=int, default=40)
    parser.add_argument("--dumps", action="store_true")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        source, page = folder / ("dumps" if arguments.dumps else "records.jsonl"), folder / "report.html"
        if not source.exists():
            write_dumps(source, arguments.checkpoints) if arguments.dumps else write_records(
                source, arguments.checkpoints, arguments.metrics
            )
        command = [sys.executable, "-m", "ckpt_probe", "report", str(source), "-o", str(page), "--overwrite"]
        if arguments.dumps:
            # The first call analyzes the dumps; the timed one reads their records from the cache.
            subprocess.run(command, check=True, capture_output=True)
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - started
        kind = (
            "dumps, analyzed before"
            if arguments.dumps
            else f"checkpoints × {arguments.metrics} metrics × {len(SPLITS)} splits"
        )
        print(f"{os.cpu_count()} cores; {arguments.checkpoints} {kind}")
        print(f"written in {seconds:.1f} s (limit 10), {page.stat().st_size / 1e6:.2f} MB (limit 6)")
        print("\n".join(measure(page)))


if __name__ == "__main__":
    main()
