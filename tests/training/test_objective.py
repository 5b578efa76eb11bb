"""The configured loss: the task's plus λ times each matrix information loss, checked against its parts."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from ckpt_probe.config import LossSettings, TrainingConfig
from ckpt_probe.errors import UsageError
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


def test_mir_and_hdr_are_added_at_the_classifiers_input() -> None:
    torch.manual_seed(0)
    model = build_model("mlp", {"hidden": [6]}, input_shape=(1, 8, 8), classes=3)
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


def test_two_sources_are_trained_contrastively_or_to_classify_with_cma_beside(study: Callable[[str], str]) -> None:
    torch.manual_seed(0)
    model = build_model(study(TWO_SOURCE), {"captions": CAPTIONS, "channels": []}, input_shape=(1, 8, 8), classes=3)
    assert isinstance(model, TwoSource)
    model.eval()  # captions are then the anchors, and nothing is drawn
    inputs, labels = batch()
    images, captions = model.encode_images(inputs), model.encode_captions(labels)
    loss, logits = build_objective(settings(cma=0.3), model, inputs)(inputs, labels)
    torch.testing.assert_close(logits, model(inputs))
    expected = F.cross_entropy(model(inputs), labels) + 0.3 * cma(images, labels, captions, labels)
    torch.testing.assert_close(loss, expected)
    loss, _ = build_objective(settings(task="contrastive"), model, inputs)(inputs, labels)
    torch.testing.assert_close(loss, contrastive_loss(images, captions, labels, model.scale()))


def test_a_loss_that_the_model_cannot_have_is_refused(study: Callable[[str], str]) -> None:
    inputs, _ = batch()
    mlp = build_model("mlp", {"hidden": [6]}, input_shape=(1, 8, 8), classes=3)
    for wrong in ({"cma": 0.1}, {"task": "contrastive"}):
        with pytest.raises(UsageError, match="need a model with two encoders"):
            build_objective(settings(**wrong), mlp, inputs)
    both = build_model(study(TWO_SOURCE), {"captions": CAPTIONS, "channels": []}, input_shape=(1, 8, 8), classes=3)
    with pytest.raises(UsageError, match="cannot be combined with cma"):
        build_objective(settings(cma=0.1, mir=0.1), both, inputs)


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
