"""Tests of modular arithmetic against a table computed in the test, of its network, and of invalid arguments."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.config import TrainingConfig
from ckpt_probe.data import LabelledData, load_data
from ckpt_probe.errors import UsageError
from ckpt_probe.models import build_model, find_head
from ckpt_probe.training import train

BY_HAND = {"add": lambda a, b: a + b, "subtract": lambda a, b: a - b, "multiply": lambda a, b: a * b}


def table(data: LabelledData, split: str) -> dict[tuple[int, int], int]:
    inputs, labels = data.split(split).batch(slice(None))
    assert (inputs.dtype, labels.dtype) == (torch.int64, torch.int64)
    pairs = [(int(a), int(b)) for a, b in inputs]
    assert len(set(pairs)) == len(pairs)
    return dict(zip(pairs, labels.tolist(), strict=True))


Study = Callable[[str], str]


@pytest.fixture
def modular(study: Study) -> Callable[..., LabelledData]:
    return lambda **arguments: load_data(study("grokking/modular.py:modular_table"), arguments)


@pytest.mark.parametrize("op", BY_HAND)
@pytest.mark.parametrize("p", [2, 7, 59])
def test_the_two_splits_make_up_the_complete_table(modular: Callable[..., LabelledData], p: int, op: str) -> None:
    data = modular(p=p, op=op, fraction=0.3)
    first, second = table(data, "train"), table(data, "test")
    assert len(first) == round(0.3 * p * p)
    assert not first.keys() & second.keys()
    assert first | second == {(a, b): BY_HAND[op](a, b) % p for a in range(p) for b in range(p)}
    assert (data.classes, data.input_shape) == (p, (2,))


def test_the_seed_determines_the_split(modular: Callable[..., LabelledData]) -> None:
    first, again, with_other_seed = (
        table(modular(p=11, op="add", fraction=0.5, **seed), "train")
        for seed in ({}, {"split_seed": 0}, {"split_seed": 1})
    )
    assert first == again != with_other_seed
    arguments = {"p": 11, "op": "add", "fraction": 0.5, "split_seed": 1}
    assert modular(**arguments).arguments == arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1}, "p: expected a whole number from 2 to 4096, found 1"),
        ({"p": 5000}, "p: expected a whole number from 2"),
        ({"p": 7.5}, "p: expected a whole number from 2 to 4096, found 7.5"),
        ({"p": "7"}, "p: expected a whole number from 2 to 4096, found '7'"),
        ({"p": True}, "p: expected a whole number"),
        ({"op": "divide"}, "op: expected one of add, subtract, multiply, found 'divide'"),
        ({"op": ["add"]}, "op: expected one of add, subtract, multiply, found"),
        ({"fraction": 0}, "fraction: expected a number between 0 and 1"),
        ({"fraction": 1}, "fraction: expected a number between 0 and 1"),
        ({"fraction": float("nan")}, "fraction: expected a number between 0 and 1"),
        ({"fraction": "0.5"}, "fraction: expected a number between 0 and 1, found '0.5'"),
        ({"fraction": 0.001}, "of 49 pairs leaves no pair to train on, or to test"),
        ({"split_seed": -1}, "split_seed: expected a whole number of at least 0"),
        ({"per_class": 1}, "cannot be loaded with arguments .* unexpected keyword argument 'per_class'"),
    ],
)
def test_invalid_arguments_are_refused(modular: Callable[..., LabelledData], arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=f"modular.py:modular_table: .*{message}"):
        modular(**{"p": 7, "op": "add", "fraction": 0.5, **arguments})


def test_the_modulus_is_required(modular: Callable[..., LabelledData]) -> None:
    with pytest.raises(UsageError, match="missing 1 required positional argument: 'p'"):
        modular(op="add")


def test_the_network_is_symmetric_in_its_operands(study: Study) -> None:
    name = study("grokking/modular.py:modular_mlp")
    model = build_model(name, {"modulus": 7, "embedding": 4, "hidden": 6}).eval()
    pairs = torch.tensor([[1, 5], [5, 1], [0, 6]])
    logits = model(pairs)
    assert logits.shape == (3, 7)
    torch.testing.assert_close(logits[0], logits[1])
    assert find_head(model, pairs).name == "classifier"


def test_a_network_can_be_trained_on_the_table(study: Study, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "data": {"name": study("grokking/modular.py:modular_table"), "arguments": {"p": 59, "fraction": 0.3}},
        "model": {
            "name": study("grokking/modular.py:modular_mlp"),
            "arguments": {"modulus": 59, "embedding": 16, "hidden": 32},
        },
        "training": {"steps": 20, "batch_size": 64},
        "optimizer": {"name": "adamw", "learning_rate": 0.01},
    }
    train(TrainingConfig.model_validate(settings), tmp_path / "run", device="cpu")
    with open_checkpoint(tmp_path / "run" / "checkpoints" / "step-000020.safetensors") as checkpoint:
        assert checkpoint.metadata.data == settings["data"]["name"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    loss = {line["step"]: line["loss"] for line in lines if line.get("split") == "train"}
    assert loss[20] < loss[0]
