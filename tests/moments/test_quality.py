"""Tests of accuracy and cross-entropy against torch: in blocks, by class in parts, and gathered."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ckpt_probe.moments import Moments
from ckpt_probe.moments import quality as quality_module
from ckpt_probe.moments.quality import Gathering, LinearHead, Quality, Scored

torch.manual_seed(0)
FEATURES, LABELS = torch.randn(90, 6), torch.randint(0, 5000, (90,))
WEIGHTS, BIAS = 3 * torch.randn(5000, 6), torch.randn(5000)
LOGITS = F.linear(FEATURES.double(), WEIGHTS.double(), BIAS.double())
RIGHT = int((LOGITS.argmax(dim=1) == LABELS).sum())
LOSS = float(F.cross_entropy(LOGITS, LABELS))


@pytest.fixture(autouse=True)
def correct_a_third_of_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = LABELS.clone()
    labels[::3] = LOGITS.argmax(dim=1)[::3]
    monkeypatch.setitem(globals(), "LABELS", labels)
    monkeypatch.setitem(globals(), "RIGHT", int((LOGITS.argmax(dim=1) == labels).sum()))
    monkeypatch.setitem(globals(), "LOSS", float(F.cross_entropy(LOGITS, labels)))


def require_right(quality: Quality) -> None:
    assert (quality.samples, quality.right) == (90, RIGHT)
    assert quality.accuracy == pytest.approx(RIGHT / 90)
    assert quality.loss == pytest.approx(LOSS, rel=1e-12)


def test_updates_and_merges_equal_one_pass() -> None:
    quality, second = Quality(), Quality()
    for part in (slice(0, 7), slice(7, 40)):
        prediction = quality.update(LOGITS[part], LABELS[part])
        assert torch.equal(prediction, LOGITS[part].argmax(dim=1))
    second.update(LOGITS[40:], LABELS[40:])
    quality.merge(second)
    require_right(quality)
    require_right(Quality.from_numbers(quality.to_numbers()))


@pytest.mark.parametrize("classes", [1000, 5000], ids=["logits at once", "in parts"])
def test_scores_of_a_head_equal_those_of_stored_logits(classes: int) -> None:
    head, labels = LinearHead.of(WEIGHTS[:classes], BIAS[:classes]), LABELS % classes
    assert head is not None
    quality = Quality()
    assert torch.equal(quality.update_head(head, FEATURES, labels), LOGITS[:, :classes].argmax(dim=1))
    assert quality.loss == pytest.approx(float(F.cross_entropy(LOGITS[:, :classes], labels)), rel=1e-12)
    assert (quality.samples, quality.right) == (90, int((LOGITS[:, :classes].argmax(dim=1) == labels).sum()))


def test_large_logits_do_not_overflow() -> None:
    head = LinearHead.of(1000 * WEIGHTS, None)
    assert head is not None
    scores = head.scored(FEATURES, LABELS)
    expected = F.cross_entropy(F.linear(FEATURES.double(), (1000 * WEIGHTS).double()), LABELS, reduction="none")
    torch.testing.assert_close(scores.loss, expected, rtol=1e-12, atol=1e-9)


def test_predictions_and_losses_count_like_logits() -> None:
    losses = F.cross_entropy(LOGITS, LABELS, reduction="none")
    scored, quality, of_logits = Scored(LOGITS.argmax(dim=1), losses), Quality(), Quality()
    assert torch.equal(quality.update_scored(scored, LABELS), LOGITS.argmax(dim=1))
    of_logits.update_scores(LOGITS.numpy(), LABELS)
    of_logits.update_scores(None, LABELS)
    require_right(quality)
    require_right(of_logits)


def test_no_scores_give_no_accuracy_and_an_infinite_loss_is_missing() -> None:
    assert (Quality().accuracy, Quality().loss) == (None, None)
    assert Quality().update(None, LABELS) is None
    quality = Quality()
    quality.update(torch.tensor([[0.0, -torch.inf], [1.0, 0.0]]), torch.tensor([1, 0]))
    assert (quality.accuracy, quality.loss) == (0.5, None)


@pytest.mark.parametrize("source", ["logits", "scored", "head"])
@pytest.mark.parametrize("rows", [1, 16, 1000])
def test_gathered_blocks_equal_one_block(source: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_module, "GATHERED_ROWS", rows)
    labels = LABELS % 10
    logits = LOGITS[:, :10]
    gathered = Gathering(Moments(10), LinearHead.of(WEIGHTS[:10], BIAS[:10]) if source == "head" else None)
    for part in torch.arange(90).split(8):
        known: Tensor | Scored | None = {
            "logits": logits[part],
            "scored": Scored(logits[part].argmax(dim=1), F.cross_entropy(logits[part], labels[part], reduction="none")),
            "head": None,
        }[source]
        gathered.add(FEATURES[part], labels[part], known)
    assert gathered.moments.samples == {1: 90, 16: 80, 1000: 0}[rows]
    gathered.finish()
    gathered.finish()
    complete = Moments(10)
    complete.update(FEATURES, labels)
    assert gathered.moments.samples == 90
    torch.testing.assert_close(gathered.moments.class_means, complete.class_means, rtol=1e-12, atol=1e-12)
    assert gathered.quality.samples == 90
    assert gathered.quality.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-12)
    assert gathered.quality.right == int((logits.argmax(dim=1) == labels).sum())


def test_scores_by_parts_of_the_classes_equal_those_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cover ties (the first class counts), half precision, and classes that can never be chosen."""
    monkeypatch.setattr(quality_module, "FEW_CLASSES", 7)
    monkeypatch.setattr(quality_module, "LOGITS_AT_ONCE", 21)
    weights, bias, labels = WEIGHTS[:30].clone(), BIAS[:30].clone(), LABELS % 30
    weights[20], bias[20] = weights[10], bias[10]
    bias[:8] = -torch.inf
    for dtype, digits in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        rows = FEATURES.to(dtype)
        logits = F.linear(rows, weights.to(dtype), bias.to(dtype))
        scored = Scored.of_rows(rows, labels, weights.to(dtype), bias.to(dtype))
        copy_of_logits = logits.clone()
        of_logits = Scored.of_logits(copy_of_logits.split(9, dim=1), labels)
        assert torch.equal(copy_of_logits, logits), dtype
        assert torch.equal(of_logits.predicted, logits.argmax(dim=1)), dtype
        expected = F.cross_entropy(logits.double(), labels, reduction="none")
        assert int((logits.argmax(dim=1) == 10).sum()) > 0
        for scores in (scored, of_logits):
            finite = expected.isfinite()
            assert torch.equal(torch.as_tensor(scores.loss).isfinite(), finite), dtype
            assert 0 < finite.sum() < 90
            torch.testing.assert_close(
                torch.as_tensor(scores.loss).double()[finite], expected[finite], rtol=digits, atol=digits
            )
    assert torch.equal(Scored.of_logits([torch.zeros(90, 4)] * 3, LABELS).predicted, torch.zeros(90, dtype=torch.int64))


def expected_calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Compute the error by the code of Guo et al. 2017 (temperature_scaling), which loops over bins."""
    confidences, predictions = F.softmax(logits, dim=1).max(1)
    edges, error = torch.linspace(0, 1, 16, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for low, high in pairwise(edges):
        inside = confidences.gt(low.item()) * confidences.le(high.item())
        if inside.double().mean().item() > 0:
            accuracy = predictions.eq(labels)[inside].double().mean()
            error += torch.abs(confidences[inside].mean() - accuracy) * inside.double().mean()
    return error.item()


def test_the_calibration_error_equals_that_of_guo_et_al() -> None:
    for scale in (0.2, 1.0, 1000.0):
        logits = scale * LOGITS[:, :30]
        labels = torch.where(torch.arange(90) % 3 == 0, logits.argmax(dim=1), LABELS % 30)
        expected = pytest.approx(expected_calibration_error(logits, labels), rel=1e-10)
        complete, parts, scored = Quality(), Quality(), Quality()
        complete.update(logits, labels)
        scored.update_scored(Scored.of_logits(logits.split(7, dim=1), labels), labels)
        for part in (slice(0, 11), slice(11, 90)):
            part_quality = Quality()
            part_quality.update(logits[part], labels[part])
            parts.merge(Quality.from_numbers(part_quality.to_numbers()))
        for quality in (complete, parts, scored):
            assert quality.calibration_error is not None
            assert quality.calibration_error.item() == expected


def test_a_missing_confidence_leaves_the_calibration_error_undefined() -> None:
    known = Scored.of_logits(LOGITS.split(1000, dim=1), LABELS)
    assert known.confidence is not None
    one_unknown = torch.where(torch.arange(90) == 5, torch.nan, torch.as_tensor(known.confidence))
    for confidence in (None, one_unknown):
        quality = Quality()
        quality.update_scored(Scored(known.prediction, known.loss, confidence), LABELS)
        assert quality.calibration_error is None
        assert quality.loss == pytest.approx(LOSS, rel=1e-12)
    earlier = {name: number for name, number in Quality(90, 3, 1.0).to_numbers().items() if "confiden" not in name}
    assert Quality.from_numbers(earlier).calibration_error is None


def test_rows_whose_logits_are_nan_leave_no_accuracy() -> None:
    logits = LOGITS[:, :5].clone()
    logits[7, 2] = torch.nan
    labels, quality, scored = LABELS % 5, Quality(), Quality()
    quality.update(logits, labels)
    scored.update_scored(Scored.of_logits([logits[:, :2], logits[:, 2:]], labels), labels)
    for each in (quality, scored, Quality.from_numbers(quality.to_numbers())):
        assert (each.unpredicted, each.accuracy, each.loss) == (1, None, None)
    quality.merge(scored)
    assert quality.unpredicted == 2
    quality.update(torch.full((3, 5), -torch.inf), LABELS[:3] % 5)
    assert quality.unpredicted == 5


def test_a_masked_label_has_a_confidence() -> None:
    logits, labels, quality = LOGITS[:, :5].clone(), LABELS % 5, Quality()
    logits[:, 3] = -torch.inf
    quality.update(logits, labels)
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    right = (predicted == labels).double()
    bins = torch.ceil(confidence * 15).long()
    expected = sum(abs(float((confidence - right)[bins == b].sum())) for b in range(1, 16)) / len(labels)
    assert quality.calibration_error is not None
    assert float(quality.calibration_error) == pytest.approx(expected, rel=1e-12)
    assert quality.loss is None


def test_scores_of_some_rows_keep_their_order_and_lack_a_confidence_where_all_lack_it() -> None:
    prediction, loss, confidence = torch.arange(5), torch.linspace(0, 1, 5), torch.linspace(1, 2, 5)
    chosen = torch.tensor([4, 0, 2])
    part = Scored(prediction.numpy(), loss.numpy(), confidence.numpy()).rows(chosen)
    for of_part, of_all in ((part.prediction, prediction), (part.loss, loss), (part.confidence, confidence)):
        assert isinstance(of_part, Tensor)
        assert torch.equal(of_part, of_all[chosen])
    assert Scored(prediction, loss).rows(chosen).confidence is None
