"""Models without a head: tokens pooled by hand, padding left out, and what is none of them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.models import backbone_of, is_backbone
from ckpt_probe.models.pooling import TOKEN_POOLINGS, cls, last, mean, tokens


def test_poolings_by_hand() -> None:
    states = torch.arange(24, dtype=torch.float64).reshape(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    assert torch.equal(mean(states, mask), torch.stack([states[0, :3].mean(0), states[1, 1:].mean(0)]))
    assert torch.equal(mean(states), states.mean(1))
    assert torch.equal(cls(states, mask), torch.stack([states[0, 0], states[1, 1]]))
    assert torch.equal(last(states, mask), torch.stack([states[0, 2], states[1, 3]]))
    assert torch.equal(last(states), states[:, 3])
    assert torch.equal(tokens(states, mask), torch.cat([states[0, :3], states[1, 1:]]))
    assert mean(states.half(), mask).dtype == torch.float16


class Returning(nn.Module):
    """Returns what it was given to return, one a sample."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, inputs: Tensor) -> Any:
        return self.output


def test_what_a_model_without_a_head_returns() -> None:
    inputs, rows, maps = torch.zeros(2, 3), torch.randn(2, 5), torch.randn(2, 5, 3, 3)
    found = backbone_of(Returning(rows), inputs)
    assert (found.pooling, found.width, found.positions, found.name) == ("features", 5, "one", None)
    assert torch.equal(found.tapped(Returning(rows), inputs).features, rows)
    assert tuple(found.parameters(Returning(rows))[0].shape) == (0, 5)
    of_maps = backbone_of(Returning((maps, rows)), inputs)
    torch.testing.assert_close(of_maps.tapped(Returning((maps,)), inputs).features, maps.mean((2, 3)))
    for pooling in TOKEN_POOLINGS:
        every = backbone_of(Returning({"last_hidden_state": torch.randn(2, 4, 5)}), inputs, pooling)
        assert (every.positions, every.width) == ("every" if pooling == "tokens" else "one", 5)
    with pytest.raises(UsageError, match=r"`pooling='cls'`: the model gives one row \(2, 5\) a sample, and no tokens"):
        backbone_of(Returning(rows), inputs, "cls")
    with pytest.raises(DataError, match=r"the model has no head, and returned shape \(2,\), not features"):
        backbone_of(Returning(torch.zeros(2)), inputs)


def test_logits_tell_a_model_with_a_head() -> None:
    state = torch.zeros(2, 3, 4)
    assert is_backbone(Returning({"last_hidden_state": state, "pooler_output": state[:, 0]}), state)
    assert not is_backbone(Returning({"last_hidden_state": state, "logits": state}), state)
    assert not is_backbone(Returning({"last_hidden_state": state, "image_embeds": state}), state)
    assert not is_backbone(Returning(state), state)
