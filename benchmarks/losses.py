"""Time that each loss adds to a training step of the builtin `cnn`: 128 inputs of 1 × 28 × 28, 512 features.

A step is a forward pass, a backward pass and an update of SGD. Plain steps and steps with one loss take turns,
--repeats of each; prints medians by the clock and of processor time, which a busy machine distorts less. The other
source of cma is as many features of another model that is not trained.

Run: OMP_NUM_THREADS=1 python benchmarks/losses.py [--classes 10 --classes 100] [--device cpu] [--repeats 30]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_probe.models import build_model
from ckpt_probe.training.losses import cma, hdr_loss, mir_loss

BATCH, HIDDEN, WARM_UP, WANTED = 128, 512, 3, 0.25

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def losses(classes: int, device: torch.device) -> dict[str, Loss | None]:
    """Return functions (features, labels, weights) → loss by name, with None for the plain step."""
    anchors = torch.randn(BATCH, HIDDEN, generator=torch.Generator().manual_seed(1)).to(device)
    other_labels = torch.arange(BATCH, device=device) % classes
    return {
        "plain": None,
        "cma": lambda features, labels, _: cma(features, labels, anchors, other_labels),
        "mir": mir_loss,
        "hdr": hdr_loss,
    }


def step(
    model: nn.Sequential, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, loss: Loss | None
) -> None:
    """Make one update."""
    *body, head = model
    assert isinstance(head, nn.Linear)
    optimizer.zero_grad()
    features = inputs
    for layer in body:
        features = layer(features)
    total = F.cross_entropy(head(features), labels)
    if loss is not None:
        total = total + 0.1 * loss(features, labels, head.weight)
    total.backward()
    optimizer.step()


def measure(classes: int, device: torch.device, repeats: int) -> None:
    """Print median times of the plain step and of the step with each loss."""
    torch.manual_seed(0)
    model = build_model("cnn", {"hidden": HIDDEN, "input_shape": [1, 28, 28], "classes": classes}).to(device)
    assert isinstance(model, nn.Sequential)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs, labels = torch.randn(BATCH, 1, 28, 28, device=device), torch.randint(classes, (BATCH,), device=device)
    spent: dict[str, list[tuple[float, float]]] = {}
    for number in range(WARM_UP + repeats):
        for name, loss in losses(classes, device).items():
            _settle(device)
            started = time.perf_counter(), time.process_time()
            step(model, optimizer, inputs, labels, loss)
            _settle(device)
            ended = time.perf_counter(), time.process_time()
            if number >= WARM_UP:
                spent.setdefault(name, []).append((ended[0] - started[0], ended[1] - started[1]))
    medians = {name: [1e3 * statistics.median(kind) for kind in zip(*t, strict=True)] for name, t in spent.items()}
    plain = medians.pop("plain")
    for name, times in medians.items():
        shares = [after / before - 1 for before, after in zip(plain, times, strict=True)]
        texts = [
            f"{kind}: without {before:6.1f} ms  with {after:6.1f} ms  {share:+6.1%}"
            for kind, before, after, share in zip(("clock", "processor"), plain, times, shares, strict=True)
        ]
        verdict = "" if max(shares) < WANTED else f"   MORE THAN {WANTED:.0%}"
        print(f"C {classes:4}  {name}   {'   '.join(texts)}{verdict}", flush=True)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure every number of classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, action="append")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {arguments.device}; batch {BATCH}, D {HIDDEN}")
    for classes in arguments.classes or [10, 100]:
        measure(classes, torch.device(arguments.device), arguments.repeats)


if __name__ == "__main__":
    main()
