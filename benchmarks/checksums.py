"""Cost of checksums: extraction and analysis of dumps with Fletcher-32 checksums against dumps without, in turn.

Extracts N images of 28 × 28 with the built-in cnn, D features each, and analyzes a dump of N rows: NC1 to NC4 only (the
fastest analysis), and the complete record. Prints the median of the ratios of the pairs. "Without" means that datasets
are made without the filter; everything else, such as the hash of names and attributes, stays. Times are processor
times.

Run: OMP_NUM_THREADS=1 python benchmarks/checksums.py [--samples 20000] [--pairs 7]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import torch
from scaling import write

from ckpt_probe import extract
from ckpt_probe.analysis import analyze
from ckpt_probe.models import build_model

FEATURES, CLASSES, BATCH = 512, 10, 256
WANTED = 1.03


@contextmanager
def plain() -> Iterator[None]:
    """Make datasets without the filter inside the `with` block."""
    create_dataset = h5py.Group.create_dataset

    def create_without_filter(group: h5py.Group, *args: Any, fletcher32: bool = False, **kwargs: Any) -> h5py.Dataset:
        return create_dataset(group, *args, **kwargs)

    h5py.Group.create_dataset = create_without_filter  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        h5py.Group.create_dataset = create_dataset


def seconds(function: Callable[[], Any]) -> float:
    """Return the processor time of a call in all threads, so that a writing thread counts too."""
    started = time.process_time()
    function()
    return time.process_time() - started


def compare(description: str, checked: Callable[[], Any], bare: Callable[[], Any], pairs: int) -> None:
    """Time both calls in turn, without the first pair, which warms up, and print the ratio."""
    times = [(seconds(checked), seconds(bare)) for _ in range(pairs + 1)][1:]
    ratio = statistics.median(with_them / without for with_them, without in times)
    verdict = "" if ratio <= WANTED else f"   MORE THAN {WANTED}"
    print(
        f"{description}: {statistics.median(t for t, _ in times):.2f} s, {ratio:.3f} of that without{verdict}",
        flush=True,
    )


def main() -> None:
    """Measure the extraction and the analysis."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = build_model(
        "cnn", {"channels": [16, 32], "hidden": FEATURES, "input_shape": [1, 28, 28], "classes": CLASSES}
    )
    images, labels = torch.rand(arguments.samples, 1, 28, 28), torch.arange(arguments.samples) % CLASSES
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)

        def run_extraction() -> None:
            extract(model, zip(images.split(BATCH), labels.split(BATCH), strict=True), out / "x.h5", overwrite=True)

        def run_plain_extraction() -> None:
            with plain():
                run_extraction()

        compare(f"extraction of {arguments.samples:,} samples", run_extraction, run_plain_extraction, arguments.pairs)
        write(out / "checked.h5", arguments.samples, FEATURES, CLASSES)
        with plain():
            write(out / "plain.h5", arguments.samples, FEATURES, CLASSES)
        for description, only in (("NC1 to NC4", ("nc",)), ("the whole record", None)):
            first, second = (
                lambda name=name, only=only: list(analyze(out / name, only=only)) for name in ("checked.h5", "plain.h5")
            )
            compare(f"{description} of {arguments.samples:,} × {FEATURES}", first, second, arguments.pairs)


if __name__ == "__main__":
    main()
