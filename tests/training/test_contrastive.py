"""The contrastive loss against sums written out, its gradient against finite differences, and what it teaches."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ckpt_probe.data import load_data
from ckpt_probe.errors import DataError
from ckpt_probe.models import build_model
from ckpt_probe.training.objective import contrastive_loss


def pairs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rows = torch.randn(2, count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    first, second = F.normalize(rows, dim=2)
    return first, second


def written_out(u: Tensor, v: Tensor, labels: list[int], scale: float) -> float:
    """Yang et al. 2022, both directions, one exponential at a time."""
    total, n = 0.0, len(labels)
    for a, b in ((u.tolist(), v.tolist()), (v.tolist(), u.tolist())):
        for i in range(n):
            scores = [scale * sum(x * y for x, y in zip(a[i], b[j], strict=True)) for j in range(n)]
            rest = math.log(sum(math.exp(score) for score in scores))
            same = [j for j in range(n) if labels[j] == labels[i]]
            total -= sum(scores[j] - rest for j in same) / len(same)
    return total / (2 * n)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4], [3, 0, 3, 3, 1], [2, 2, 2, 2, 2]])
@pytest.mark.parametrize("scale", [1.0, 1 / 0.07])
def test_against_sums_written_out(labels: list[int], scale: float) -> None:
    u, v = pairs(5)
    found = contrastive_loss(u, v, torch.tensor(labels), scale)
    assert found.item() == pytest.approx(written_out(u, v, labels, scale), rel=1e-12)


def test_distinct_labels_give_the_loss_of_clip() -> None:
    u, v = pairs(6, seed=1)
    logits = 20.0 * u @ v.T
    diagonal = torch.arange(6)
    clip = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
    for labels in (diagonal, torch.tensor([5, 3, 9, 0, 1, 7])):
        torch.testing.assert_close(contrastive_loss(u, v, labels, 20.0), clip, rtol=1e-14, atol=0)


def test_the_least_value_is_the_entropy_of_the_targets() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    rows = torch.eye(3, dtype=torch.float64)[labels]
    least = (3 * math.log(3) + 2 * math.log(2)) / 6
    assert contrastive_loss(rows, rows, labels, 100.0).item() == pytest.approx(least, rel=1e-12)


def test_gradient_against_finite_differences() -> None:
    u, v = (rows.requires_grad_() for rows in pairs(5, seed=2))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 0, 2, 1])
    assert torch.autograd.gradcheck(lambda a, b, s: contrastive_loss(a, b, labels, s), (u, v, scale))


@pytest.mark.parametrize(("rows", "columns", "count"), [(4, 4, 5), (5, 3, 5), (5, 4, 4)])
def test_shapes_that_do_not_fit(rows: int, columns: int, count: int) -> None:
    with pytest.raises(DataError, match=r"expected \(n, features\) twice and labels \(n,\)"):
        contrastive_loss(torch.ones(rows, columns), torch.ones(5, 4), torch.arange(count), 1.0)


def test_it_teaches_digits_by_their_captions_alone(study: Callable[[str], str]) -> None:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    captions = [[f"a photo of the digit {name}", f"a handwritten {name}", name] for name in names]
    data = load_data("digits")
    torch.manual_seed(0)
    arguments = {"captions": captions, "channels": [8, 16], "features": 16, "text_width": 16}
    model: Any = build_model(study("cma/two_source.py:two_source"), arguments, input_shape=data.input_shape, classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(100):
        images, labels = data.split("train").batch(slice(step % 10 * 128, step % 10 * 128 + 128))
        optimizer.zero_grad()
        text = model.encode_captions(labels)
        contrastive_loss(model.encode_images(images), text, labels, model.scale()).backward()
        optimizer.step()
    images, labels = data.split("test").batch(slice(None))
    with torch.no_grad():
        accuracy = (model.eval()(images).argmax(dim=1) == labels).double().mean().item()
    assert accuracy > 0.8
