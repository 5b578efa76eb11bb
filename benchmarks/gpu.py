"""Everything that runs on a GPU, in one run: the tests marked `gpu`, extraction, moments and the losses.

- Extraction: resnet50 and ViT-B/16 (timm, random weights) in float32 and bfloat16, random images of 224 × 224, features
  to disk, relative to a `torch.inference_mode` loop on the same batches with discarded outputs.
- Moments: `Moments.update` of rows on the device, relative to a blocked XᵀX of the same rows in float64.
- Losses: the time that each adds to a training step, as in benchmarks/losses.py.

Run: python benchmarks/gpu.py [--device cuda] [--samples 100000] [--rounds 3]; --tiny is a small trial on any device,
whose times mean nothing.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.extraction import bare
from benchmarks.losses import measure as measure_losses
from ckpt_probe.checkpoints import CheckpointMetadata, save_checkpoint
from ckpt_probe.data import LabelledData
from ckpt_probe.extraction import extract_series
from ckpt_probe.models import Batch, build_model, choose_device
from ckpt_probe.moments import Moments

POOL = 4
"""Number of batches of random images; a split of any length repeats them."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a run: models by name with arguments, side of the images, classes, samples, batches, rows of moments."""

    models: tuple[tuple[str, dict[str, Any]], ...]
    side: int
    classes: int
    samples: int
    batch: int
    moments: tuple[tuple[int, int, int], ...]
    """Rows, features and classes."""
    losses: tuple[int, ...]
    """Numbers of classes."""
    repeats: int


FULL = Sizes(
    (("timm:resnet50", {}), ("timm:vit_base_patch16_224", {})),
    side=224,
    classes=1000,
    samples=100_000,
    batch=256,
    moments=((200_000, 512, 100), (200_000, 768, 100), (100_000, 2048, 10)),
    losses=(10, 100),
    repeats=30,
)
TINY = Sizes(
    (("timm:resnet10t", {}), ("timm:vit_tiny_patch16_224", {"img_size": 32})),
    side=32,
    classes=10,
    samples=24,
    batch=8,
    moments=((200, 16, 5),),
    losses=(10,),
    repeats=1,
)


def main(words: Sequence[str] | None = None) -> int:
    """Run all parts, print them, and return the exit code of the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="small sizes, and no tests")
    options = parser.parse_args(words)
    device, sizes = choose_device(options.device), TINY if options.tiny else FULL
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads", flush=True)
    code = 0 if options.tiny else run_tests()
    for model, arguments in sizes.models:
        for dtype in ("float32", "bfloat16"):
            measure_extraction(sizes, model, arguments, dtype, options.samples or sizes.samples, options.rounds, device)
    for rows, features, classes in sizes.moments:
        measure_moments(rows, features, classes, options.rounds, device)
    for classes in sizes.losses:
        measure_losses(classes, device, sizes.repeats)
    return code


def run_tests() -> int:
    """Run the tests that need CUDA in a separate process."""
    print("tests marked gpu:", flush=True)
    root = Path(__file__).parent.parent
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"], cwd=root, check=False
    ).returncode


def measure_extraction(
    sizes: Sizes,
    model: str,
    model_arguments: dict[str, Any],
    dtype: str,
    samples: int,
    rounds: int,
    device: torch.device,
) -> None:
    """Print the ratio of the bare loop and the extraction for a model and dtype."""
    arguments = {**model_arguments, "num_classes": sizes.classes}
    network = build_model(model, arguments).eval()
    data = {"samples": samples, "batch": sizes.batch, "side": sizes.side, "classes": sizes.classes}
    split = pooled(**data).split("test")
    batches = [split.batch(slice(start, start + sizes.batch))[0] for start in range(0, samples, sizes.batch)]
    with tempfile.TemporaryDirectory() as folder:
        path, dumps = Path(folder) / "model.safetensors", Path(folder) / "dumps"
        state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        save_checkpoint(path, state, CheckpointMetadata(model=model, model_arguments=arguments))
        network.to(device=device, dtype=getattr(torch, dtype))

        def ours() -> float:
            started = time.perf_counter()
            extract_series(
                path,
                dumps,
                data="benchmarks.gpu:pooled",
                data_arguments=data,
                batch_size=sizes.batch,
                device=str(device),
                dtype=dtype,
                with_logits=False,
                overwrite=True,
            )
            return time.perf_counter() - started

        cast: list[Batch] = [_cast(batch, getattr(torch, dtype)) for batch in batches[:POOL]]
        loop = [cast[number % len(cast)] for number in range(len(batches))]
        bare(network, loop[:2], device)
        times = [(bare(network, loop, device), ours()) for _ in range(rounds)]
        size = (dumps / "model.h5").stat().st_size
    forward, extraction = (statistics.median(each) for each in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    print(
        f"extraction  {model} {dtype}: bare {samples / forward:9,.0f}/s  ours {samples / extraction:9,.0f}/s  "
        f"ratio {ratio:.3f}  dump {size / 2**20:,.0f} MiB",
        flush=True,
    )


def measure_moments(rows: int, features: int, classes: int, rounds: int, device: torch.device) -> None:
    """Print the ratio of class moments and of XᵀX in float64 for rows on the device."""
    block = min(rows, 8192)
    X = torch.randn(block, features, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(block, device=device) % classes
    counts = [min(block, rows - start) for start in range(0, rows, block)]

    def products() -> None:
        total = torch.zeros(features, features, dtype=torch.float64, device=device)
        for count in counts:
            part = X[:count].double()
            total += part.T @ part

    def moments() -> None:
        accumulated = Moments(classes, device=device)
        for count in counts:
            accumulated.update(X[:count], labels[:count])

    plain, ours = (_median(each, rounds, device) for each in (products, moments))
    print(
        f"moments     {rows:,} rows, D {features}, C {classes}: XᵀX {plain:7.3f} s  ours {ours:7.3f} s  "
        f"ratio {plain / ours:.3f}",
        flush=True,
    )


def pooled(samples: int, batch: int, side: int, classes: int) -> LabelledData:
    """Return random images in the requested number, of which a few batches are in memory."""
    arguments = {"samples": samples, "batch": batch, "side": side, "classes": classes}
    return LabelledData("pooled", {"test": Pooled(samples, batch, side, classes)}, classes, (3, side, side), arguments)


class Pooled:
    """A split that repeats the batches of a pool, so that only the model is timed."""

    def __init__(self, samples: int, batch: int, side: int, classes: int) -> None:
        self.labels = torch.arange(samples) % classes
        self._pool = _pool(batch, side)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return images and labels of the given samples; a complete batch is a view of the pool."""
        labels = self.labels[indices]
        size = self._pool.shape[1]
        if isinstance(indices, slice) and (indices.start or 0) % size == 0 and len(labels) <= size:
            return self._pool[(indices.start or 0) // size % POOL][: len(labels)], labels
        places = torch.arange(len(self))[indices] % (POOL * size)
        return self._pool.flatten(0, 1)[places], labels


@cache
def _pool(batch: int, side: int) -> Tensor:
    return torch.randn(POOL, batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def _cast(batch: Batch, dtype: torch.dtype) -> Batch:
    assert isinstance(batch, Tensor)
    return batch.to(dtype)


def _median(work: Callable[[], None], rounds: int, device: torch.device) -> float:
    times = []
    for number in range(rounds + 1):
        _settle(device)
        started = time.perf_counter()
        work()
        _settle(device)
        if number:  # The first round warms up.
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
