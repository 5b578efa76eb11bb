"""Complete records from HDF5 for growing N: time of the streaming part, of the rest, and peak memory above the imports.

D = 512 and C = 10 in float32 dumps that are written first; each N runs in a separate process.

Run: python benchmarks/scaling.py [--samples 15000 ...] [--folder DIR]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SAMPLES, FEATURES, CLASSES = (15_000, 30_000, 60_000, 120_000), 512, 10


def write(path: Path, samples: int, features: int = FEATURES, classes: int = CLASSES) -> None:
    """Write a dump of features around the weights of their labels."""
    from ckpt_probe.dumps import DumpWriter

    generator = np.random.default_rng(0)
    weights = generator.normal(size=(classes, features))
    with DumpWriter(path, None, classes=classes, features=features) as writer:
        writer.write_classifier(weights)
        writer.start_split("train", samples, logits=False)
        for start in range(0, samples, 4096):
            labels = np.arange(start, min(start + 4096, samples)) % classes
            rows = weights[labels] + generator.normal(size=(len(labels), features))
            writer.append("train", rows.astype(np.float32), labels)


def measure(path: Path) -> None:
    """Compute the passes over one dump and the complete record in this process, and print their times."""
    from ckpt_probe.analysis import analyze
    from ckpt_probe.dumps import open_dump
    from ckpt_probe.moments import Moments

    imported = memory()
    started = time.perf_counter()
    with open_dump(path) as dump:
        moments = Moments(CLASSES)
        for features, labels, _ in dump["train"].blocks(4096):
            moments.update(features, labels)
    streaming = time.perf_counter() - started
    del moments
    started = time.perf_counter()
    [record] = analyze(path)
    total = time.perf_counter() - started
    print(f"{record['samples']} {streaming} {total} {memory() - imported} {record['route']} {record['sample.mir']}")


def memory() -> float:
    """Return the peak memory of this process so far in MiB."""
    # ru_maxrss would start with the memory of the process that started this one.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


def main() -> None:
    """Measure each N in a separate process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, action="append")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    print(f"{os.cpu_count()} cores; D {FEATURES} C {CLASSES}")
    before = None
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for samples in arguments.samples or SAMPLES:
            path = Path(folder) / f"rows-{samples}.h5"
            write(path, samples)
            words = [sys.executable, __file__, "--measure", str(path)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            count, streaming, total, peak, route, mir = done.stdout.split()
            grown = f"{float(streaming) / before:.2f} ×" if before else ""
            print(
                f"N {int(count):7,}  streaming {float(streaming):6.2f} s {grown:7}  whole record {float(total):6.2f} s "
                f"peak above imports {float(peak):5.0f} MiB  MIR {float(mir):.6f}  [{route}]",
                flush=True,
            )
            before = float(streaming)
            path.unlink()


if __name__ == "__main__":
    main()
