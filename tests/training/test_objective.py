"""Tests of the configured loss against its parts, and of the contrastive loss against sums computed in loops."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ckpt_probe.config import LossSettings, TrainingConfig
from ckpt_probe.data import load_data
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.models import build_model
from ckpt_probe.training import train
from ckpt_probe.training.losses import cma, hdr_loss, mir_loss
from ckpt_probe.training.objective import TwoSource, build_objective, contrastive_loss

TWO_SOURCE = "cma/two_source.py:two_source"
CAPTIONS = [["nought", "a zero"], ["one"], ["a two", "the number two"]]


def settings(**values: object) -> LossSettings:
    return LossSettings.model_validate(values)


def batch(classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(12, 1, 8, 8, generator=generator), torch.arange(12) % classes


def test_mir_and_hdr_losses_use_the_classifiers_input() -> None:
    torch.manual_seed(0)
    model = build_model("mlp", {"hidden": [6], "input_shape": [1, 8, 8], "classes": 3})
    inputs, labels = batch()
    loss, logits = build_objective(settings(mir=0.5, hdr=2.0, label_smoothing=0.1), model, inputs)(inputs, labels)
    features = model[:-1](inputs)  # pyright: ignore[reportIndexIssue]
    weights = model[-1].weight  # pyright: ignore[reportIndexIssue]
    parts = 0.5 * mir_loss(features, labels, weights) + 2 * hdr_loss(features, labels, weights)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, label_smoothing=0.1) + parts)
    plain, same = build_objective(settings(), model, inputs)(inputs, labels)
    torch.testing.assert_close(plain, F.cross_entropy(same, labels))
    assert torch.equal(same, logits)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_two_sources_are_trained_contrastively_or_by_classification_with_cma(study: Callable[[str], str]) -> None:
    torch.manual_seed(0)
    model = build_model(
        study(TWO_SOURCE), {"captions": CAPTIONS, "channels": [], "input_shape": [1, 8, 8], "classes": 3}
    )
    assert isinstance(model, TwoSource)
    model.eval()  # The captions are then the anchors, and nothing is random.
    inputs, labels = batch()
    images, captions = model.encode_images(inputs), model.encode_captions(labels)
    loss, logits = build_objective(settings(cma=0.3), model, inputs)(inputs, labels)
    torch.testing.assert_close(logits, model(inputs))
    expected = F.cross_entropy(model(inputs), labels) + 0.3 * cma(images, labels, captions, labels)
    torch.testing.assert_close(loss, expected)
    loss, _ = build_objective(settings(task="contrastive"), model, inputs)(inputs, labels)
    torch.testing.assert_close(loss, contrastive_loss(images, captions, labels, model.scale()))


def test_a_loss_that_needs_another_model_is_refused(study: Callable[[str], str]) -> None:
    inputs, _ = batch()
    mlp = build_model("mlp", {"hidden": [6], "input_shape": [1, 8, 8], "classes": 3})
    for values_of_loss in ({"cma": 0.1}, {"task": "contrastive"}):
        with pytest.raises(UsageError, match="need a model with two encoders"):
            build_objective(settings(**values_of_loss), mlp, inputs)
    two_encoders = build_model(
        study(TWO_SOURCE), {"captions": CAPTIONS, "channels": [], "input_shape": [1, 8, 8], "classes": 3}
    )
    with pytest.raises(UsageError, match="cannot be combined with cma"):
        build_objective(settings(cma=0.1, mir=0.1), two_encoders, inputs)


def test_each_part_of_the_loss_changes_the_run(tmp_path) -> None:
    def trained(name: str, **loss: float):
        config = TrainingConfig.model_validate(
            {
                "data": {"name": "digits"},
                "model": {"name": "mlp", "arguments": {"hidden": [8]}},
                "training": {"steps": 6},
                "loss": loss,
                "checkpoints": {"evaluate": []},
            }
        )
        train(config, tmp_path / name, device="cpu")
        return (tmp_path / name / "checkpoints" / "step-000006.safetensors").read_bytes()

    assert len({trained("plain"), trained("mir", mir=0.1), trained("hdr", hdr=0.1)}) == 3


def pairs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rows = torch.randn(2, count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    first, second = F.normalize(rows, dim=2)
    return first, second


def contrastive_by_loops(u: Tensor, v: Tensor, labels: list[int], scale: float) -> float:
    """Return the loss of Yang et al. 2022 in both directions, summed in loops."""
    total, n = 0.0, len(labels)
    for a, b in ((u.tolist(), v.tolist()), (v.tolist(), u.tolist())):
        for i in range(n):
            scores = [scale * sum(x * y for x, y in zip(a[i], b[j], strict=True)) for j in range(n)]
            normaliser = math.log(sum(math.exp(score) for score in scores))
            same = [j for j in range(n) if labels[j] == labels[i]]
            total -= sum(scores[j] - normaliser for j in same) / len(same)
    return total / (2 * n)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4], [3, 0, 3, 3, 1], [2, 2, 2, 2, 2]])
@pytest.mark.parametrize("scale", [1.0, 1 / 0.07])
def test_the_contrastive_loss_equals_sums_in_loops(labels: list[int], scale: float) -> None:
    u, v = pairs(5)
    loss = contrastive_loss(u, v, torch.tensor(labels), scale)
    assert loss.item() == pytest.approx(contrastive_by_loops(u, v, labels, scale), rel=1e-12)


def test_the_contrastive_loss_of_distinct_labels_is_that_of_clip() -> None:
    u, v = pairs(6, seed=1)
    logits = 20.0 * u @ v.T
    diagonal = torch.arange(6)
    clip = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
    for labels in (diagonal, torch.tensor([5, 3, 9, 0, 1, 7])):
        torch.testing.assert_close(contrastive_loss(u, v, labels, 20.0), clip, rtol=1e-14, atol=0)


def test_the_smallest_loss_is_the_entropy_of_the_targets() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    rows = torch.eye(3, dtype=torch.float64)[labels]
    least = (3 * math.log(3) + 2 * math.log(2)) / 6
    assert contrastive_loss(rows, rows, labels, 100.0).item() == pytest.approx(least, rel=1e-12)


def test_the_gradient_agrees_with_finite_differences() -> None:
    u, v = (rows.requires_grad_() for rows in pairs(5, seed=2))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 0, 2, 1])
    assert torch.autograd.gradcheck(lambda a, b, s: contrastive_loss(a, b, labels, s), (u, v, scale))


@pytest.mark.parametrize(("rows", "columns", "count"), [(4, 4, 5), (5, 3, 5), (5, 4, 4)])
def test_mismatched_shapes_are_errors(rows: int, columns: int, count: int) -> None:
    with pytest.raises(DataError, match=r"expected \(n, features\) twice and labels \(n,\)"):
        contrastive_loss(torch.ones(rows, columns), torch.ones(5, 4), torch.arange(count), 1.0)


def test_the_contrastive_loss_learns_digits_from_captions(study: Callable[[str], str]) -> None:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    captions = [[f"a photo of the digit {name}", f"a handwritten {name}", name] for name in names]
    data = load_data("digits")
    torch.manual_seed(0)
    arguments = {"captions": captions, "channels": [8, 16], "features": 16, "text_width": 16}
    model: Any = build_model(
        study("cma/two_source.py:two_source"), {**arguments, "input_shape": list(data.input_shape), "classes": 10}
    )
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
