"""Learning rates and checkpoint steps against values worked out by hand."""

import math

import pytest

from ckpt_probe.config import CheckpointSettings, ScheduleSettings, TrainingSettings
from ckpt_probe.training.start import checkpoint_steps, learning_rate_factor, steps_per_epoch, total_steps


def test_steps_of_an_epoch_and_of_a_run() -> None:
    assert steps_per_epoch(TrainingSettings(epochs=2, batch_size=64), 1347) == 22
    assert steps_per_epoch(TrainingSettings(epochs=2, batch_size="full"), 1347) == 1
    assert total_steps(TrainingSettings(epochs=2.5), 22) == 55
    assert total_steps(TrainingSettings(epochs=0.001), 22) == 1
    assert total_steps(TrainingSettings(steps=7), 22) == 7


@pytest.mark.parametrize(("step", "factor"), [(0, 1.0), (50, 0.5), (100, 0.0)])
def test_cosine(step: int, factor: float) -> None:
    assert learning_rate_factor(ScheduleSettings(name="cosine"), step, 100) == pytest.approx(factor)


def test_warmup_then_cosine_over_the_remaining_steps() -> None:
    settings = ScheduleSettings(name="cosine", warmup_steps=10)
    assert learning_rate_factor(settings, 0, 110) == pytest.approx(0.1)
    assert learning_rate_factor(settings, 9, 110) == 1.0
    assert learning_rate_factor(settings, 60, 110) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def test_step_and_constant() -> None:
    settings = ScheduleSettings(name="step", milestones=[0.5, 0.75], factor=0.1)
    found = [learning_rate_factor(settings, step, 100) for step in (49, 50, 74, 75)]
    assert found == pytest.approx([1, 0.1, 0.1, 0.01])
    assert learning_rate_factor(ScheduleSettings(name="constant"), 99, 100) == 1.0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"every_steps": 4}, [0, 4, 8, 10]),
        ({"steps": [3, 99]}, [0, 3, 10]),
        ({"per_epoch": 2}, [0, 2, 4, 6, 8, 10]),
        ({}, [0, 4, 8, 10]),
        ({"log_spaced": 3}, [0, 2, 10]),
    ],
)
def test_checkpoint_steps(settings: dict, expected: list[int]) -> None:
    assert checkpoint_steps(CheckpointSettings(**settings), 0, 10, per_epoch=4) == expected


def test_checkpoints_of_a_run_that_starts_later() -> None:
    assert checkpoint_steps(CheckpointSettings(every_steps=4), 5, 10, per_epoch=4) == [5, 8, 10]
