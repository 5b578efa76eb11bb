"""Modular arithmetic against a table by hand, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.config import TrainingConfig
from ckpt_probe.data import LabelledData, load_data
from ckpt_probe.errors import UsageError
from ckpt_probe.training import train

BY_HAND = {"add": lambda a, b: a + b, "subtract": lambda a, b: a - b, "multiply": lambda a, b: a * b}


def table(data: LabelledData, split: str) -> dict[tuple[int, int], int]:
    inputs, labels = data.split(split).batch(slice(None))
    assert (inputs.dtype, labels.dtype) == (torch.int64, torch.int64)
    pairs = [(int(a), int(b)) for a, b in inputs]
    assert len(set(pairs)) == len(pairs)
    return dict(zip(pairs, labels.tolist(), strict=True))


@pytest.mark.parametrize("op", BY_HAND)
@pytest.mark.parametrize("p", [2, 7, 59])
def test_the_two_splits_are_the_whole_table(p: int, op: str) -> None:
    data = load_data(f"modular:p={p},op={op},fraction=0.3")
    first, second = table(data, "train"), table(data, "test")
    assert len(first) == round(0.3 * p * p)
    assert not first.keys() & second.keys()
    assert first | second == {(a, b): BY_HAND[op](a, b) % p for a in range(p) for b in range(p)}
    assert (data.classes, data.input_shape) == (p, (2,))


def test_the_seed_chooses_the_part() -> None:
    name = "modular:p=11,op=add,fraction=0.5"
    train_of = [
        table(load_data(n, a), "train") for n, a in [(name, {}), (f"{name},seed=0", {}), (f"{name},seed=1", {})]
    ]
    assert train_of[0] == train_of[1] != train_of[2]
    assert table(load_data(name, {"split_seed": 1}), "train") == train_of[2]
    assert table(load_data("modular", {"p": 11, "op": "add", "fraction": 0.5, "seed": 1}), "train") == train_of[2]
    assert load_data(name, {"split_seed": 1}).arguments == {"split_seed": 1}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("p=1,op=add,fraction=0.5", {}, "p: expected a whole number from 2 to 4096, found 1"),
        ("p=5000,op=add,fraction=0.5", {}, "p: expected a whole number from 2"),
        ("p=7.5,op=add,fraction=0.5", {}, "p: expected a whole number, found '7.5'"),
        ("p=7,op=divide,fraction=0.5", {}, "op: expected one of add, subtract, multiply, found 'divide'"),
        ("p=7,op=add,fraction=0", {}, "fraction: expected a number between 0 and 1"),
        ("p=7,op=add,fraction=1", {}, "fraction: expected a number between 0 and 1"),
        ("p=7,op=add,fraction=nan", {}, "fraction: expected a number between 0 and 1"),
        ("p=7,op=add,fraction=half", {}, "fraction: expected a number, found 'half'"),
        ("p=7,op=add,fraction=0.001", {}, "of 49 pairs leaves no pair to train on, or to test"),
        ("p=7,op=add,fraction=0.5,seed=-1", {}, "split_seed: expected a whole number of at least 0"),
        ("p=7,op=add", {}, r"fraction is missing; expected modular:p=59,op=add,fraction=0.3"),
        ("", {}, "p is missing; expected modular"),
        ("p=7,op", {}, "'op': expected p=59"),
        ("p=7,,op=add", {}, "'': expected p=59"),
        ("p=7,q=3", {}, "'q=3': expected p=59"),
        ("p=7,p=7", {}, "p is given twice"),
        ("p=7,op=add,fraction=0.5", {"p": 7}, "p is given twice, in the name and as an argument"),
        ("p=7,op=add,fraction=0.5,seed=1", {"split_seed": 1}, "split_seed is given twice"),
        ("p=7,op=add,fraction=0.5", {"split_seed": 1, "seed": 1}, "seed and split_seed mean the same"),
        ("p=7,op=add,fraction=0.5", {"per_class": 1}, "unknown argument per_class; modular takes"),
        ("op=add,fraction=0.5", {"p": "7"}, "p: expected a whole number from 2 to 4096, found '7'"),
        ("op=add,fraction=0.5", {"p": True}, "p: expected a whole number"),
        ("p=7,fraction=0.5", {"op": ["add"]}, "unhashable|op: expected one of"),
        ("p=7,op=add", {"fraction": "0.5"}, "fraction: expected a number between"),
    ],
)
def test_what_is_no_table_is_refused(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=f"data modular:.*{message}"):
        load_data(f"modular:{name}", arguments)


def test_a_network_trains_on_it(tmp_path: Path) -> None:
    settings = {
        "data": {"name": "modular:p=59,op=add,fraction=0.3"},
        "model": {"name": "modular_mlp", "arguments": {"modulus": 59, "embedding": 16, "hidden": 32}},
        "training": {"steps": 20, "batch_size": 64},
        "optimizer": {"name": "adamw", "learning_rate": 0.01},
    }
    train(TrainingConfig.model_validate(settings), tmp_path / "run", device="cpu")
    with open_checkpoint(tmp_path / "run" / "checkpoints" / "step-000020.safetensors") as checkpoint:
        assert checkpoint.metadata.data == settings["data"]["name"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    loss = {line["step"]: line["loss"] for line in lines if line.get("split") == "train"}
    assert loss[20] < loss[0]
