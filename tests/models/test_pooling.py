"""Tests of models without a head: pooled tokens without padding, and outputs that cannot be pooled."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.models.classifier import is_backbone
from ckpt_probe.models.pooling import TOKEN_POOLINGS, backbone_of, cls, last, mean, tokens


def test_poolings_equal_hand_computed_rows() -> None:
    states = torch.arange(24, dtype=torch.float64).reshape(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    assert torch.equal(mean(states, mask), torch.stack([states[0, :3].mean(0), states[1, 1:].mean(0)]))
    assert torch.equal(mean(states), states.mean(1))
    assert torch.equal(cls(states, mask), torch.stack([states[0, 0], states[1, 1]]))
    assert torch.equal(last(states, mask), torch.stack([states[0, 2], states[1, 3]]))
    assert torch.equal(last(states), states[:, 3])
    assert torch.equal(tokens(states, mask), torch.cat([states[0, :3], states[1, 1:]]))
    assert mean(states.half(), mask).dtype == torch.float16


class ConstantModel(nn.Module):
    """A model that returns a constant output, given when it is made."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, inputs: Tensor) -> Any:
        return self.output


def test_the_output_of_a_model_without_a_head_becomes_one_row_per_sample() -> None:
    inputs, rows, maps = torch.zeros(2, 3), torch.randn(2, 5), torch.randn(2, 5, 3, 3)
    backbone = backbone_of(ConstantModel(rows), inputs)
    assert (backbone.pooling, backbone.width, backbone.positions, backbone.name) == ("features", 5, "one", None)
    assert torch.equal(backbone.tapped(ConstantModel(rows), inputs).features, rows)
    assert tuple(backbone.parameters(ConstantModel(rows))[0].shape) == (0, 5)
    of_maps = backbone_of(ConstantModel((maps, rows)), inputs)
    torch.testing.assert_close(of_maps.tapped(ConstantModel((maps,)), inputs).features, maps.mean((2, 3)))
    for pooling in TOKEN_POOLINGS:
        every = backbone_of(ConstantModel({"last_hidden_state": torch.randn(2, 4, 5)}), inputs, pooling)
        assert (every.positions, every.width) == ("every" if pooling == "tokens" else "one", 5)
    with pytest.raises(UsageError, match=r"`pooling='cls'`: the model gives one row \(2, 5\) a sample, and no tokens"):
        backbone_of(ConstantModel(rows), inputs, "cls")
    with pytest.raises(DataError, match=r"the model has no head, and returned shape \(2,\), not features"):
        backbone_of(ConstantModel(torch.zeros(2)), inputs)


def test_only_outputs_without_logits_are_a_backbones() -> None:
    state = torch.zeros(2, 3, 4)
    assert is_backbone({"last_hidden_state": state, "pooler_output": state[:, 0]})
    assert not is_backbone({"last_hidden_state": state, "logits": state})
    assert not is_backbone({"last_hidden_state": state, "image_embeds": state})
    assert not is_backbone(state)
