"""Extraction from a folder of JPEGs, including written dumps, against a plain loop with as many decoding processes.

Plain: torchvision's ImageFolder in a DataLoader with timm's transform, and a forward pass of the same network over its
batches with discarded outputs. Ours: `extract_series` on a checkpoint of that network, from opening it to the finished
dump. Both start new processes in each round, in turn; prints the medians and the ratio of each round.

Run: python benchmarks/imagefolder.py [--images 5000] [--workers 2] [--model resnet18] [--rounds 3] [--device auto]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from ckpt_probe.checkpoints import CheckpointMetadata, save_checkpoint
from ckpt_probe.extraction import extract_series
from ckpt_probe.models import choose_device

BATCH = 64
CLASSES = 10
SIZES = [(500, 375), (375, 500), (640, 480), (400, 300)]


def make_photos(directory: Path, count: int) -> None:
    """Write `count` JPEGs of noise to `directory`/test/CLASS, of the size and decoding time of photographs."""
    generator = np.random.default_rng(0)
    for number in range(count):
        folder = directory / "test" / f"class-{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(SIZES[number % len(SIZES)], Image.Resampling.BICUBIC)
        image.save(folder / f"{number:05}.jpg", quality=90)


def plain(model: nn.Module, directory: Path, workers: int, device: torch.device) -> float:
    """Return the seconds of a forward pass over all images."""
    started = time.perf_counter()
    transform: Any = create_transform(**resolve_model_data_config(model), is_training=False)
    folder = ImageFolder(str(directory / "test"), transform)
    loader = DataLoader(folder, BATCH, num_workers=workers, pin_memory=device.type == "cuda")
    with torch.inference_mode():
        for images, _ in loader:
            model(images.to(device, non_blocking=True))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def ours(checkpoint: Path, name: str, directory: Path, workers: int, device: str) -> float:
    """Return the seconds of a complete extraction of one checkpoint."""
    started = time.perf_counter()
    extract_series(
        checkpoint,
        checkpoint.parent / "dumps",
        model=f"timm:{name}",
        data=f"imagefolder:{directory}",
        data_workers=workers,
        batch_size=BATCH,
        device=device,
        overwrite=True,
    )
    return time.perf_counter() - started


def main() -> None:
    """Time both in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose_device(options.device)
    torch.manual_seed(0)
    model = timm.create_model(options.model, num_classes=CLASSES).eval()
    with tempfile.TemporaryDirectory() as folder:
        directory, checkpoint = Path(folder) / "photos", Path(folder) / "model.safetensors"
        make_photos(directory, options.images)
        save_checkpoint(checkpoint, model.state_dict(), CheckpointMetadata())
        model.to(device)
        rounds = []
        for _ in range(options.rounds):
            loop = plain(model, directory, options.workers, device)
            rounds.append((loop, ours(checkpoint, options.model, directory, options.workers, options.device)))
    loop, extraction = (statistics.median(times) for times in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    print(f"{os.cpu_count()} cores, {device}, {options.images} images, {options.workers} workers, {options.model}")
    print(f"plain loop {loop:6.2f} s   extraction {extraction:6.2f} s   images per second, ours ÷ plain: {ratio:.3f}")


if __name__ == "__main__":
    main()
