"""Analysis of a language model's head: N = 1,000,000 positions, D = 768, C = 50,257 tokens, a dump in float16.

Three parts, each in a separate process, with its time and its peak memory above the imports:
collapse: class level (entropies, MIR, HDR) and NC1 to NC3 with CDNV and generalised NC2;
sample: sample-level MIR with an error bar of a relative 1e-2;
nearest: NC4 over a share of the rows, relative to the float32 product of the same rows and the class means in blocks.
Predictions are stored in the dump, as extraction does for a language model.

Tokens follow Zipf's law, so that class sizes are as uneven as in text and some tokens never occur.

Run: python benchmarks/language_head.py [--scale 0.05] [--part collapse|sample|nearest] [--growth] [--folder DIR]
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAMPLES, FEATURES, CLASSES = 1_000_000, 768, 50_257
PARTS = ("collapse", "sample", "nearest")
ROWS = 4096
TOLERANCE = 1e-2
MEMORY = 3 * 2**30
NEAREST_SHARE = 0.1
GIB = 2**30


@dataclass(frozen=True)
class Size:
    """Numbers of samples, features and classes."""

    samples: int
    features: int
    classes: int

    @staticmethod
    def of(scale: float) -> "Size":
        """Return a share of the positions and tokens of the full size, with all features."""
        return Size(round(SAMPLES * scale), FEATURES, max(3000, round(CLASSES * scale)))


def write(folder: Path, size: Size) -> None:
    """Write a dump of features around the weights of their tokens, with the prediction at each position."""
    from ckpt_probe.dumps import DumpWriter

    generator = np.random.default_rng(0)
    shares = 1 / (np.arange(size.classes) + 10.0)
    weights = generator.standard_normal((size.classes, size.features), dtype=np.float32)
    labels = generator.choice(size.classes, size.samples, p=shares / shares.sum())
    shared = generator.standard_normal(size.features, dtype=np.float32)
    path = folder / "head.h5"
    with DumpWriter(path, None, classes=size.classes, features=size.features, feature_dtype="float16") as writer:
        writer.write_classifier(weights)
        writer.start_split("test", size.samples, logits=False)
        for start in range(0, size.samples, ROWS):
            mine = labels[start : start + ROWS]
            rows = generator.standard_normal((len(mine), size.features), dtype=np.float32)
            writer.append("test", 2 * rows + weights[mine] + shared, mine)
    guesses = np.where(generator.random(size.samples) < 0.4, labels, generator.integers(0, size.classes, size.samples))
    np.save(folder / "predictions.npy", guesses.astype(np.int32))


def measure(part: str, folder: Path) -> None:
    """Run a part in this process, and print its time, memory and results."""
    from ckpt_probe.dumps import open_dump

    imported = peak()
    with open_dump(folder / "head.h5") as dump:
        view = dump["test"]
        if part == "nearest":
            results = nearest(folder, view, round(NEAREST_SHARE * view.samples))
        else:
            results = record(part, folder, dump, view)
    print(f"{results}; peak {peak():.2f} GiB, {peak() - imported:.2f} above the imports")


def record(part, folder: Path, dump, view) -> str:
    """Return time and numbers of a record of some families as a text."""
    from ckpt_probe.analysis import Settings, compute_from_blocks
    from ckpt_probe.moments.quality import Scored

    only = ("sample",) if part == "sample" else ("class", "nc1", "nc2", "nc3")
    predictions = np.load(folder / "predictions.npy", mmap_mode="r")

    def blocks():
        start = 0
        for features, labels, _ in view.blocks(8 * ROWS):
            stop = start + len(labels)
            yield features, labels, Scored(predictions[start:stop], np.zeros(len(labels)))
            start = stop

    started = time.perf_counter()
    detailed = compute_from_blocks(
        blocks, dump.weights, None, Settings(only=only, tolerance=TOLERANCE, memory=MEMORY)
    ).record
    spent = time.perf_counter() - started
    names = (
        "sample.mir",
        "sample.mir_computing_error",
        "sample.probes",
        "class.mir",
        "class.mir_computing_error",
        "class.probes",
    )
    names += (
        "class.hdr",
        "nc1.pinv",
        "nc1.cdnv",
        "gnc2.uniformity",
        "gnc2.spread",
        "nc3.uniformity",
        "classes_present",
    )
    return f"{part}: {spent:.1f} s; " + ", ".join(
        f"{name} {detailed[name]:.6g}" for name in names if detailed.get(name)
    )


def nearest(folder: Path, view, rows: int) -> str:
    """Return the time of NC4's pass over the first rows and of the product, as a text."""
    import torch

    from ckpt_probe.analysis.nearest import Predictions, count_nearest
    from ckpt_probe.moments import Moments
    from ckpt_probe.moments.quality import Scored

    predictions = torch.from_numpy(np.load(folder / "predictions.npy")).long()
    moments = Moments(only=("nc3",))
    for features, labels, _ in view.blocks(8 * ROWS):
        moments.update(features, labels)
    blocks_in_memory = [(torch.from_numpy(f), torch.from_numpy(y)) for f, y, _ in first_rows(view, rows)]
    means = moments.class_means
    present = means[~means[:, 0].isnan()].float()

    def blocks():
        start = 0
        for features, labels in blocks_in_memory:
            some = predictions[start : start + len(labels)]
            yield features, labels, Scored(some, torch.zeros(len(labels)))
            start += len(labels)

    started = time.perf_counter()
    for features, _ in blocks_in_memory:
        for part in features.float().split(1024):
            for some in present.split(2048):
                _ = part @ some.T
    bare = time.perf_counter() - started
    started = time.perf_counter()
    (counted,) = count_nearest(blocks, [means], Predictions(None))
    spent = time.perf_counter() - started
    ratio = f"{spent:.1f} s for {counted.samples:,} rows, {spent / bare:.2f} × the bare product"
    return f"nearest: {ratio}; NC4 {counted.disagreement:.4f}, nearest mean accuracy {counted.accuracy:.4f}"


def first_rows(view, rows: int):
    """Return blocks of the first rows of a split."""
    for block in view.blocks(ROWS):
        yield block
        rows -= len(block[1])
        if rows <= 0:
            return


def peak() -> float:
    """Return the peak memory of this process so far in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def main() -> None:
    """Write the dump of every size and measure the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the positions and tokens of the full size")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--growth", action="store_true", help="also half as many samples, classes, features")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure[0], Path(arguments.measure[1]))
        return
    full = Size.of(arguments.scale)
    halves = [
        Size(full.samples // 2, full.features, full.classes),
        Size(full.samples, full.features, full.classes // 2),
        Size(full.samples, full.features // 2, full.classes),
    ]
    print(f"{os.cpu_count()} cores")
    for size in [full, *(halves if arguments.growth else [])]:
        print(f"N {size.samples:,} D {size.features} C {size.classes:,}", flush=True)
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            write(Path(folder), size)
            for part in arguments.part or PARTS:
                words = [sys.executable, __file__, "--measure", part, folder]
                done = subprocess.run(words, check=True, capture_output=True, text=True)
                print(f"  {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
