"""Samples per second of extraction, files written included, over a bare forward loop on the same model and batches.

Bare: `torch.inference_mode`, batches already in memory, the outputs dropped. Ours: `extract_series` on a checkpoint of
that model, from opening it to the finished dump. Both in one process, in turn; the medians and the ratio of each round.

Run: python benchmarks/extraction.py [--samples 20000] [--rounds 5] [--device auto]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from ckpt_probe.checkpoints import CheckpointMetadata, save_checkpoint
from ckpt_probe.data import ArraySplit, LabelledData, one_tensor
from ckpt_probe.extraction import extract_series
from ckpt_probe.models import build_model, choose_device

BATCH = 256
MODEL = {"channels": [32, 64], "hidden": 128}
SHAPE = (1, 28, 28)
CLASSES = 10


def images(count: int = 0) -> LabelledData:
    """Random images of Fashion-MNIST's shape, made once."""
    if count not in _MADE:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (count, *SHAPE), generator=generator, dtype=torch.uint8)
        labels = torch.arange(count) % CLASSES
        _MADE[count] = LabelledData("images", {"test": ArraySplit(pixels, labels)}, CLASSES, SHAPE, {"count": count})
    return _MADE[count]


_MADE: dict[int, LabelledData] = {}


def bare(model: torch.nn.Module, batches: list[torch.Tensor], device: torch.device) -> float:
    """Seconds of a forward pass over all batches and nothing else."""
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            model(batch.to(device))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def ours(checkpoint: Path, out: Path, count: int, device: str) -> float:
    """Seconds of the whole extraction of one checkpoint."""
    started = time.perf_counter()
    extract_series(
        checkpoint,
        out,
        data="benchmarks.extraction:images",
        data_arguments={"count": count},
        batch_size=BATCH,
        device=device,
        overwrite=True,
    )
    return time.perf_counter() - started


def main() -> None:
    """Time both in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose_device(options.device)
    arguments = {**MODEL, "input_shape": list(SHAPE), "classes": CLASSES}
    model = build_model("cnn", arguments).eval()
    # The same module under its importable name, so that both sides see one set of images.
    from benchmarks.extraction import images as shared

    split = shared(options.samples).split("test")
    starts = range(0, options.samples, BATCH)
    parts = (split.batch(slice(start, min(start + BATCH, options.samples)))[0] for start in starts)
    batches = [one_tensor(part, "the bare pass") for part in parts]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.safetensors"
        save_checkpoint(path, model.state_dict(), CheckpointMetadata(model="cnn", model_arguments=arguments))
        model.to(device)
        bare(model, batches[:4], device)
        ours(path, Path(place) / "dumps", options.samples, options.device)
        rounds = [
            (bare(model, batches, device), ours(path, Path(place) / "dumps", options.samples, options.device))
            for _ in range(options.rounds)
        ]
        size = (Path(place) / "dumps" / "model.h5").stat().st_size
    forward, whole = (statistics.median(times) for times in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    print(f"{os.cpu_count()} cores, {device}, {options.samples} samples, dump of {size / 2**20:.0f} MiB")
    print(f"bare forward {forward:6.2f} s   extraction {whole:6.2f} s   samples per second, ours ÷ bare: {ratio:.3f}")


if __name__ == "__main__":
    main()
