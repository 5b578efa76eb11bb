"""Tests of predictions and losses in place of logits, computed on the device of the rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ckpt_probe.extraction.blocks import score_logits, score_rows
from ckpt_probe.metrics.rows import as_tensor

ROWS, WEIGHTS, BIAS = torch.randn(70, 5), torch.randn(40, 5), torch.randn(40)
LABELS = torch.arange(70) % 40


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda:0"])
def test_rows_are_scored_on_their_device(pretended: Callable[[str], Any], device: str) -> None:
    """The simulated device fails if tensors of other devices are used; losses have single precision on every device."""
    logits = F.linear(ROWS, WEIGHTS, BIAS)
    with pretended(device):
        rows, labels, weights, bias, scores = (x.to(device) for x in (ROWS, LABELS, WEIGHTS, BIAS, logits))
        scores_on_device = [score_rows(rows, labels, (weights, bias)), score_logits(scores, labels)]
        assert all(as_tensor(s.loss).device == as_tensor(s.prediction).device == rows.device for s in scores_on_device)
        on_cpu = [(as_tensor(s.prediction).cpu(), as_tensor(s.loss).cpu()) for s in scores_on_device]
    for prediction, loss in on_cpu:
        assert torch.equal(prediction, logits.argmax(dim=1))
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, F.cross_entropy(logits, LABELS, reduction="none"), rtol=1e-5, atol=1e-6)


def test_a_row_without_a_label_has_a_prediction_and_no_loss() -> None:
    labels = LABELS.masked_fill(LABELS % 3 == 0, -1)
    for scored in (score_rows(ROWS, labels, (WEIGHTS, None)), score_logits(F.linear(ROWS, WEIGHTS), labels)):
        assert torch.equal(scored.predicted, F.linear(ROWS, WEIGHTS).argmax(dim=1))
        assert torch.equal(as_tensor(scored.loss).isnan(), labels == -1)


def test_no_rows_have_no_scores() -> None:
    scored = score_rows(ROWS[:0], LABELS[:0], (WEIGHTS, BIAS))
    assert (len(scored.prediction), len(scored.loss)) == (0, 0)
