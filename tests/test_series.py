"""Steps spelled in names, and the one order of a run's files."""

import random
from pathlib import Path

import pytest

from ckpt_probe.series import Member, in_order, step_from_name


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
    ],
)
def test_step_from_name(name: str, step: int | None) -> None:
    assert step_from_name(name) == step


def test_order_is_by_step_then_by_natural_name_with_the_stepless_last() -> None:
    names = [("b", 0), ("x2", 5), ("x10", 5), ("a", 30), ("alpha", None), ("final2", None), ("final10", None)]
    members = [Member(Path(name), name, step) for name, step in names]
    shuffled = members.copy()
    random.Random(0).shuffle(shuffled)
    assert in_order(shuffled) == members
