"""Seconds of extraction with every layer relative to a forward loop, and memory by the number of samples.

timm's resnet18 on 64 × 64 images, 10 classes, random weights and inputs; `extract` with `layers="all"` (the stem and
eight blocks) and moments of every layer, including the written dump. Bare: `torch.inference_mode` over the same batches
with discarded outputs. Both run in one process in turn; prints the median of the ratios of the pairs. Memory is the
largest resident set of a separate process for each number of samples, whose inputs are made batch by batch. Rows of
small batches are gathered before they enter the moments, up to 8,192 per layer, so that memory is constant only beyond
such numbers.

Run: python benchmarks/layers.py [--samples 2048] [--side 64] [--pairs 5] [--memory 16384,32768]
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ckpt_probe.extraction import extract
from ckpt_probe.models import build_model

CLASSES, BATCH = 10, 256
MOST = 1.35


def main() -> None:
    """Time both in turn, measure memory, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--memory", default="16384,32768", metavar="N,…")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        ours(network(), random_batches(options.alone, options.side))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        return
    model, batches = network(), list(random_batches(options.samples, options.side))
    bare(model, batches[:1])
    ours(model, batches[:1])
    times = [(bare(model, batches), ours(model, batches)) for _ in range(options.pairs)]
    forward, extraction = (statistics.median(each) for each in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    images = f"{options.samples} images of {options.side} × {options.side}"
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {images}, {options.pairs} pairs")
    print(f"bare forward {forward:.2f} s, extraction of all layers {extraction:.2f} s: {ratio:.3f} ×, at most {MOST}")
    for count in filter(None, options.memory.split(",")):
        words = [sys.executable, __file__, "--alone", count, "--side", str(options.side)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        print(f"{int(count):>8,} samples: {int(done.stdout):,} MiB at most", flush=True)


def network() -> nn.Module:
    """Return the model, with the same weights in every call."""
    torch.manual_seed(0)
    return build_model("timm:resnet18", {"num_classes": CLASSES}).eval()


def random_batches(samples: int, side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of random images and labels, made on demand."""
    draw = torch.Generator().manual_seed(1)
    for start in range(0, samples, BATCH):
        count = min(BATCH, samples - start)
        yield torch.randn(count, 3, side, side, generator=draw), torch.arange(start, start + count) % CLASSES


def bare(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the seconds of a forward pass over all batches."""
    started = time.perf_counter()
    with torch.inference_mode():
        for inputs, _ in batches:
            model(inputs)
    return time.perf_counter() - started


def ours(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the seconds of a complete extraction."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        extract(model, batches, Path(folder) / "dump.h5", device="cpu", layers="all", store="moments")
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
