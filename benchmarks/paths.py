"""Alignment of two ResNets of about 11 million parameters; and a path of 21 points against its parts.

Alignment: symmetries derived from the trace, weight matching from one start, and the check of the result; on two
networks with independent random weights, which have nothing in common, and on a network and its permuted copy.

Path: `evaluate_path` at 21 points on digits against 21 forward passes over the same samples plus 21 analyses of the
outputs, in one process; the fastest of a few rounds of each.

Run: python benchmarks/paths.py [--part alignment|path]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ckpt_probe.alignment.matching import Alignment, match_weights, permuted
from ckpt_probe.alignment.symmetry import trace_symmetry
from ckpt_probe.analysis import compute_from_blocks
from ckpt_probe.config import TrainingConfig
from ckpt_probe.data import load_data
from ckpt_probe.models import build_model
from ckpt_probe.paths import evaluate_path
from ckpt_probe.training import train

POINTS = 21
ROUNDS = 4


def alignment() -> None:
    """Align two ResNet-18s in the form for CIFAR."""
    shape = {"input_shape": (3, 32, 32), "classes": 10}
    arguments = {"blocks": [2, 2, 2, 2], "width": 64}
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(build_model("resnet", {**arguments, **shape}).eval())
    a, b = (model.state_dict() for model in models)
    inputs = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    symmetry = trace_symmetry(models[0], inputs)
    traced = time.perf_counter() - started
    count = sum(tensor.numel() for tensor in a.values())
    print(f"{count / 1e6:.1f} million parameters, {len(symmetry.sizes)} groups found in {traced:.2f} s")
    generator = torch.Generator().manual_seed(2)
    order = {group: torch.randperm(size, generator=generator) for group, size in symmetry.sizes.items()}
    for name, target in (("independent", b), ("permuted copy", permuted(a, symmetry, order))):
        started = time.perf_counter()
        aligned = Alignment(a, target, symmetry, match_weights(a, target, symmetry, restarts=1), models[1], inputs)
        spent = time.perf_counter() - started
        print(f"{name:13}  {spent:6.1f} s   distance {aligned.before:.2f} → {aligned.after:.2f}", flush=True)


def path() -> None:
    """Evaluate 21 points on digits with a small cnn, in turn with the parts, since the machine's speed may change."""
    settings = {
        "data": {"name": "digits"},
        "model": {"name": "cnn"},
        "training": {"steps": 60},
        "checkpoints": {"steps": []},
    }
    complete, parts = [], []
    with tempfile.TemporaryDirectory() as folder:
        train(TrainingConfig.model_validate(settings), Path(folder) / "run", device="cpu")
        first, *_, last = sorted((Path(folder) / "run" / "checkpoints").glob("*.safetensors"))
        evaluate_path(first, last, Path(folder) / "warm", points=3, device="cpu")
        for number in range(ROUNDS):
            started = time.perf_counter()
            evaluate_path(first, last, Path(folder) / f"path{number}", points=POINTS, device="cpu")
            complete.append(time.perf_counter() - started)
            parts.append(_parts())
    forward, analysis = min(parts, key=sum)
    parts_text = f"(forward passes {forward:.2f} s + analysis {analysis:.2f} s)"
    print(f"{POINTS} points: {min(complete):.2f} s = {min(complete) / (forward + analysis):.2f} × {parts_text}")


def _parts() -> tuple[float, float]:
    """Return the seconds of the forward passes, and of the analyses of their outputs."""
    data = load_data("digits")
    model = build_model("cnn", {"input_shape": list(data.input_shape), "classes": data.classes}).eval()
    *_, layer = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    forward = analysis = 0.0
    for _ in range(POINTS):
        for split in data.splits.values():
            batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
            tapped: list[torch.Tensor] = []
            hook = layer.register_forward_pre_hook(_tap(tapped))
            started = time.perf_counter()
            with torch.inference_mode():
                for start in range(0, len(split), 256):
                    inputs, labels = split.batch(slice(start, min(start + 256, len(split))))
                    batches.append((torch.empty(0), labels, model(inputs)))
            forward += time.perf_counter() - started
            hook.remove()
            blocks = [(rows, labels, logits) for rows, (_, labels, logits) in zip(tapped, batches, strict=True)]
            started = time.perf_counter()
            compute_from_blocks(lambda blocks=blocks: blocks, layer.weight.detach(), layer.bias.detach())
            analysis += time.perf_counter() - started
    return forward, analysis


def _tap(tapped: list[torch.Tensor]) -> Callable[..., None]:
    return lambda _, inputs: tapped.append(inputs[0])


def main() -> None:
    """Measure the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["alignment", "path"])
    part = parser.parse_args().part
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    if part != "path":
        alignment()
    if part != "alignment":
        path()


if __name__ == "__main__":
    main()
