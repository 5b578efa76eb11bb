"""Tests of steps in names of files, and of the order of a run's files."""

import random
from pathlib import Path

import pytest

from ckpt_probe.series import Member, in_order, natural, step_from_name, step_warnings


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-000500", 500),
        ("checkpoint-1500", 1500),
        ("epoch=3-step=1000", 1000),
        ("step_7_epoch_2", 7),
        ("model.12", 12),
        ("resnet18-epoch-9", 9),
        ("STEP4", 4),
        ("final", None),
        ("", None),
        ("step_1k", 1000),
        ("step_1.5k", 1500),
        ("step_2M", 2_000_000),
        ("step_2e4", 20_000),
        ("step_2.5e3", 2500),
        ("step_1e+05", 100_000),
        ("step_500k_ema", 500_000),
        ("step-20_000", 20_000),
        ("step=1,234,567", 1_234_567),
        ("step-1'000", 1000),
        ("step500ep3", 500),
        ("step1000-tokens4B", 1000),
        ("step_1000_123.45", 1000),
        ("ckpt_12_0.95", 12),
        ("steps_1000", 1000),
        ("epoch_1k", 1000),
        ("ep1-ba500-rank0", 500),
    ],
)
def test_the_step_is_read_from_the_name(name: str, step: int | None) -> None:
    assert step_from_name(name) == step


@pytest.mark.parametrize(
    "name",
    [
        *("step_1_000", "step-1.000", "step 1 000", "step_1,5k", "step_1_5k", "step_1.5", "step_1.2345k", "epoch_1.5"),
        *("step_1e-3", "step_12h", "step_1kk", "step_10kimg", "step_1b", "checkpoint-1e5a2b", "ckpt-3e10412"),
        *("checkpoint_1_500", "epoch_1_200", "ckpt_7b", "ckpt-350M", "step_99999999999999999999"),
        *("checkpoint_20240517", "checkpoint_2024-05-17", "model_2024-05-17", "run_20240517_123000", "m_1716123456"),
        *("model_1_000", "model_1,000", "model_1k", "model_v2", "model_v1.2.3", "vit_base_patch16_224", "llama-7b"),
        *("seed_1", "fold-3", "rank0", "cifar-10", "resnet50_500", "consolidated.00", "a-00001-of-00002"),
    ],
)
def test_a_name_whose_number_is_ambiguous_or_counts_something_else_has_no_step(name: str) -> None:
    assert step_from_name(name) is None


def test_members_of_equal_steps_and_steps_that_are_epochs_are_reported() -> None:
    steps = {"a": (5, "metadata"), "step-5": (5, "name"), "b": (None, None), "c": (None, None), "step-6": (6, "name")}
    members = [Member(Path(name), name, step, source) for name, (step, source) in steps.items()]
    assert step_warnings(members) == ["warning: step 5 is the step of 2 checkpoints: a (metadata), step-5 (name)"]
    mixed = [Member(Path("epoch_3"), "epoch_3", 3, "epoch in the name"), members[-1]]
    assert step_warnings(mixed) == ["warning: the steps of epoch_3 are epochs, those of the other checkpoints are not"]
    assert step_warnings(mixed[:1]) == step_warnings(members[1:]) == []


def test_order_is_by_step_then_by_natural_name_with_the_stepless_last_unless_untrained() -> None:
    names = [
        ("random-init", None),
        ("untrained", None),
        ("b", 0),
        ("x2", 5),
        ("x10", 5),
        ("a", 30),
        ("alpha", None),
        ("final2", None),
        ("final10", None),
    ]
    members = [Member(Path(name), name, step) for name, step in names]
    shuffled = members.copy()
    random.Random(0).shuffle(shuffled)
    assert in_order(shuffled) == members


def test_numbers_of_thousands_of_digits_are_ordered_and_superscripts_are_text() -> None:
    names = ["a" + "9" * 6000, "a10", "a²", "a010", "a9"]
    assert sorted(names, key=natural) == ["a9", "a10", "a010", "a" + "9" * 6000, "a²"]
