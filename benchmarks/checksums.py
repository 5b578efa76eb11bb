"""What checksums cost: extraction and analysis of dumps with Fletcher-32 against the same without, in turn.

Extraction of N images of 28 × 28 by the built-in cnn, features of D numbers; analysis of a dump of N rows, NC1-NC4
alone (the fastest there is) and the whole record. The median of the ratios of the pairs. Without means that the
datasets are made without the filter; all else, such as the hash of names and attributes, stays. Times are those of the
processor.

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
    """While entered, datasets are made without the filter."""
    made = h5py.Group.create_dataset

    def without(group: h5py.Group, *args: Any, fletcher32: bool = False, **kwargs: Any) -> h5py.Dataset:
        return made(group, *args, **kwargs)

    h5py.Group.create_dataset = without  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        h5py.Group.create_dataset = made


def seconds(function: Callable[[], Any]) -> float:
    """Processor time that a call takes, in all threads: a thread that writes beside the model counts too."""
    started = time.process_time()
    function()
    return time.process_time() - started


def compared(told: str, checked: Callable[[], Any], bare: Callable[[], Any], pairs: int) -> None:
    """Time both in turn, the first pair to warm up."""
    times = [(seconds(checked), seconds(bare)) for _ in range(pairs + 1)][1:]
    ratio = statistics.median(with_them / without for with_them, without in times)
    verdict = "" if ratio <= WANTED else f"   MORE THAN {WANTED}"
    print(f"{told}: {statistics.median(t for t, _ in times):.2f} s, {ratio:.3f} of that without{verdict}", flush=True)


def main() -> None:
    """Measure extraction and analysis."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=7)
    asked = parser.parse_args()
    torch.manual_seed(0)
    model = build_model("cnn", {"channels": [16, 32], "hidden": FEATURES}, input_shape=(1, 28, 28), classes=CLASSES)
    images, labels = torch.rand(asked.samples, 1, 28, 28), torch.arange(asked.samples) % CLASSES
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)

        def extracted() -> None:
            extract(model, zip(images.split(BATCH), labels.split(BATCH), strict=True), out / "x.h5", overwrite=True)

        def extracted_plain() -> None:
            with plain():
                extracted()

        compared(f"extraction of {asked.samples:,} samples", extracted, extracted_plain, asked.pairs)
        write(out / "checked.h5", asked.samples, FEATURES, CLASSES)
        with plain():
            write(out / "plain.h5", asked.samples, FEATURES, CLASSES)
        for told, only in (("NC1 to NC4", ("nc",)), ("the whole record", None)):
            first, second = (
                lambda name=name, only=only: list(analyze(out / name, only=only)) for name in ("checked.h5", "plain.h5")
            )
            compared(f"{told} of {asked.samples:,} × {FEATURES}", first, second, asked.pairs)


if __name__ == "__main__":
    main()
