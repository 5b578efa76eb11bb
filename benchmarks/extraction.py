"""Samples per second of extraction, including written files, relative to a forward loop on the same model and batches.

Bare: `torch.inference_mode`, batches already in memory, outputs discarded. Ours: `extract_series` on a checkpoint of
that model, from opening it to the finished dump. Both run in one process in turn; prints medians and the ratio of each
round. Models: the builtin `cnn` on 28 × 28 images; timm's resnet18, and a ViT (192 wide, 12 layers) and a BERT (256
wide, 4 layers, 64 tokens) of transformers, on 64 × 64 images and on tokens. All weights and inputs are random.

gpt2: a language model of GPT-2's size (12 layers, 768 wide, 50,257 tokens), every position a row. The cost of a
checkpoint that does not depend on the text (0.5 GB opened and hashed, the classifier written) is measured with a single
batch and subtracted. Tokens per second are by the clock and by processor time, which other programs disturb less.

Run: python benchmarks/extraction.py [--model cnn|timm|vit|bert|gpt2] [--samples N] [--rounds 5] [--device auto]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.checkpoints import CheckpointMetadata, save_checkpoint
from ckpt_probe.data import ArraySplit, LabelledData
from ckpt_probe.extraction import extract_series
from ckpt_probe.models import Batch, build_model, call, choose_device, on_device

CLASSES = 10
WORDS = 1000


@dataclass(frozen=True)
class Case:
    """A model's name and arguments, written to a directory; the shape of a sample, and the number of samples."""

    model: Callable[[Path], tuple[str, dict[str, Any]]]
    shape: tuple[int, ...]
    batch: int
    samples: int


def main() -> None:
    """Time both in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(CASES), action="append")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    for name in options.model or ["cnn"]:
        run = measure_tokens if name == "gpt2" else measure
        run(name, options.samples or CASES[name].samples, options.rounds, options.device)


def measure(name: str, samples: int, rounds: int, device_name: str) -> float:
    """Run a case, print it, and return its ratio."""
    case, device = CASES[name], choose_device(device_name)
    starts = range(0, samples, case.batch)
    split = _shared()(samples, list(case.shape)).split("test")
    batches = [split.batch(slice(start, min(start + case.batch, samples)))[0] for start in starts]
    with tempfile.TemporaryDirectory() as folder:
        source, arguments = case.model(Path(folder))
        model = build_model(source, arguments).eval()
        path, dumps = Path(folder) / "model.safetensors", Path(folder) / "dumps"
        # safetensors cannot store tensors that share memory, so that they are copied.
        state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        save_checkpoint(path, state, CheckpointMetadata(model=source, model_arguments=arguments))
        model.to(device)
        bare(model, batches[:2], device)
        ours(path, dumps, samples, case, device_name)
        times = []
        for _ in range(rounds):
            plain = clock_and_processor(lambda: bare(model, batches, device))
            times.append((plain, clock_and_processor(lambda: ours(path, dumps, samples, case, device_name))))
        size = (dumps / "model.h5").stat().st_size
    forward, extraction = (statistics.median(each[0] for each in side) for side in zip(*times, strict=True))
    ratio, processor = (
        statistics.median(bare[i] / extraction_time[i] for bare, extraction_time in times) for i in (0, 1)
    )
    print(f"{name}: {os.cpu_count()} cores, {device}, {samples} samples, dump of {size / 2**20:.0f} MiB")
    ratio_text = f"samples per second, ours ÷ bare: {ratio:.3f} by the clock, {processor:.3f} by the processor"
    print(f"bare forward {forward:6.2f} s   extraction {extraction:6.2f} s   {ratio_text}", flush=True)
    return ratio


def measure_tokens(name: str, samples: int, rounds: int, device_name: str) -> tuple[float, float]:
    """Run a language model, print its ratios by the clock and by processor time, and return them."""
    case, device = CASES[name], choose_device(device_name)
    split = _shared()(samples, list(case.shape)).split("test")
    batches = [split.batch(slice(start, start + case.batch))[0] for start in range(0, samples, case.batch)]
    with tempfile.TemporaryDirectory() as folder:
        source, arguments = case.model(Path(folder))
        model = build_model(source, arguments).eval()
        path, dumps = Path(folder) / "model.safetensors", Path(folder) / "dumps"
        state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        save_checkpoint(path, state, CheckpointMetadata(model=source, model_arguments=arguments))
        del state
        model.to(device)
        bare(model, batches[:1], device)
        clock, processor = [], []
        for _ in range(rounds):
            single_batch = clock_and_processor(lambda: ours(path, dumps, case.batch, case, device_name))
            plain = clock_and_processor(lambda: bare(model, batches[1:], device))
            extraction = clock_and_processor(lambda: ours(path, dumps, samples, case, device_name))
            clock.append(plain[0] / (extraction[0] - single_batch[0]))
            processor.append(plain[1] / (extraction[1] - single_batch[1]))
    tokens = (samples - case.batch) * case.shape[0]
    print(f"{name}: {os.cpu_count()} cores, {device}, {tokens} tokens beside the first batch, {rounds} rounds in turn")
    ratios = statistics.median(clock), statistics.median(processor)
    spread = " ".join(f"{ratio:.3f}" for ratio in sorted(processor))
    print(f"tokens per second, ours ÷ bare: {ratios[0]:.3f} by the clock, {ratios[1]:.3f} by the processor ({spread})")
    return ratios


def clock_and_processor(run: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds of a call by the clock and of processor time."""
    started, used = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - started, time.process_time() - used


def bare(model: torch.nn.Module, batches: Sequence[Batch], device: torch.device) -> float:
    """Return the seconds of a forward pass over all batches."""
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            call(model, on_device(batch, device))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def ours(checkpoint: Path, out: Path, count: int, case: Case, device: str) -> float:
    """Return the seconds of a complete extraction of one checkpoint."""
    started = time.perf_counter()
    extract_series(
        checkpoint,
        out,
        data="benchmarks.extraction:samples",
        data_arguments={"count": count, "shape": list(case.shape)},
        batch_size=case.batch,
        device=device,
        overwrite=True,
    )
    return time.perf_counter() - started


def samples(count: int, shape: list[int]) -> LabelledData:
    """Return random images (channels, height, width), tokens (T,), or tokens labelled with the next one, (T, words)."""
    return _random_data(count, tuple(shape))


class Texts:
    """A split of texts of equal length without padding, with inputs by the names of a model's arguments."""

    def __init__(self, tokens: Tensor, labels: Tensor) -> None:
        self._tokens = tokens
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor | slice) -> Any:
        """Return the tokens with their mask, and the labels."""
        tokens = self._tokens[indices]
        inputs: Mapping[str, Tensor] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        return inputs, self.labels[indices]


@cache
def _random_data(count: int, shape: tuple[int, ...]) -> LabelledData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    if len(shape) == 2:
        tokens = torch.randint(shape[1], (count, shape[0]), generator=generator)
        following = torch.cat([tokens[:, 1:], tokens.new_full((count, 1), -100)], dim=1)
        return LabelledData("samples", {"test": Texts(tokens, following)}, shape[1], ())
    if len(shape) == 1:
        split: Any = Texts(torch.randint(1, WORDS, (count, *shape), generator=generator), labels)
    else:
        split = ArraySplit(torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8), labels)
    return LabelledData("samples", {"test": split}, CLASSES, shape, {"count": count, "shape": list(shape)})


def _shared() -> Callable[[int, list[int]], LabelledData]:
    # This is the function under its importable name, so that both sides use one set of samples.
    from benchmarks.extraction import samples as shared

    return shared


def _cnn(_: Path) -> tuple[str, dict[str, Any]]:
    return "cnn", {"channels": [32, 64], "hidden": 128, "input_shape": [1, 28, 28], "classes": CLASSES}


def _timm(_: Path) -> tuple[str, dict[str, Any]]:
    return "timm:resnet18", {"num_classes": CLASSES}


def _vit(folder: Path) -> tuple[str, dict[str, Any]]:
    from transformers.models.vit.configuration_vit import ViTConfig

    labels: Any = {"num_labels": CLASSES}
    return _of_transformers(
        folder,
        ViTConfig(
            image_size=64, patch_size=8, hidden_size=192, num_hidden_layers=12, num_attention_heads=3,
            intermediate_size=768, **labels,
        ),
    )  # fmt: skip


def _bert(folder: Path) -> tuple[str, dict[str, Any]]:
    from transformers.models.bert.configuration_bert import BertConfig

    labels: Any = {"num_labels": CLASSES}
    return _of_transformers(
        folder,
        BertConfig(
            vocab_size=WORDS, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
            max_position_embeddings=64, **labels,
        ),
    )  # fmt: skip


def _gpt2(folder: Path) -> tuple[str, dict[str, Any]]:
    from transformers.models.gpt2.configuration_gpt2 import GPT2Config

    return _of_transformers(folder, GPT2Config(architectures=["GPT2LMHeadModel"]))


def _of_transformers(folder: Path, config: Any) -> tuple[str, dict[str, Any]]:
    config.save_pretrained(folder / "config")
    return f"hf:{folder / 'config'}", {}


CASES = {
    "cnn": Case(_cnn, (1, 28, 28), 256, 20_000),
    "timm": Case(_timm, (3, 64, 64), 64, 3_000),
    "vit": Case(_vit, (3, 64, 64), 64, 3_000),
    "bert": Case(_bert, (64,), 64, 3_000),
    "gpt2": Case(_gpt2, (128, 50_257), 4, 128),
}


if __name__ == "__main__":
    main()
