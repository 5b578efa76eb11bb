"""A fixture that checks a model's head against the model's own output."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ckpt_probe.models import Batch, Head, Rows, find_head
from ckpt_probe.models.calling import call, results_of


@pytest.fixture(scope="session")
def checked_head() -> Callable[..., tuple[Head, Rows]]:
    """Return a function that finds a model's head and checks on other inputs that W z + b are the model's logits."""

    def check(
        model: nn.Module, inputs: Batch, other_inputs: Batch | None = None, *, name: str | None = None
    ) -> tuple[Head, Rows]:
        model.eval()
        head = find_head(model, inputs, name)
        checked_inputs = inputs if other_inputs is None else other_inputs
        with torch.no_grad():
            rows = head.tapped(model, checked_inputs)
            weights, bias = head.parameters(model)
            result = results_of(call(model, checked_inputs))[head.result]
        assert rows.features.shape == (len(rows.logits), weights.shape[1])
        if not head.shows_logits:
            torch.testing.assert_close(F.linear(rows.features, weights, bias), rows.logits, rtol=1e-4, atol=1e-4)
        if not head.reading or head.shows_logits:
            expected = result.reshape(rows.logits.shape).to(rows.logits)
            torch.testing.assert_close(rows.logits, expected, rtol=1e-5, atol=1e-5)
        return head, rows

    return check
