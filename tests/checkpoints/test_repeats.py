"""Checks that identical weights at two steps are reported for every format, and that similar weights are not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import save as save_distributed

from ckpt_probe.checkpoints import (
    CheckpointMetadata,
    RepeatedWeights,
    fingerprint,
    open_checkpoint,
    open_series,
    save_checkpoint,
)

STATE = {f"{n}.weight": torch.randn(40, 30) for n in range(40)} | {"bias": torch.zeros(3), "count": torch.tensor(0)}


def warnings(path: Path) -> list[str]:
    repeated, messages = RepeatedWeights(None, None), []
    for member in open_series(path):
        with open_checkpoint(member.path) as checkpoint:
            messages += repeated.warnings(member, fingerprint(checkpoint))
    return messages


def pickled(state: dict[str, Tensor], path: Path, step: int) -> None:
    torch.save({"model": state, "step": step, "optimizer": {"momentum": torch.randn(3)}}, path.with_suffix(".pt"))


def safe(state: dict[str, Tensor], path: Path, step: int) -> None:
    save_checkpoint(path.with_suffix(".safetensors"), state, CheckpointMetadata(step=step))


def foreign(state: dict[str, Tensor], path: Path, step: int) -> None:
    save_file(state, path.with_suffix(".safetensors"), {"step": str(step)})


def distributed(state: dict[str, Tensor], path: Path, step: int) -> None:
    save_distributed(dict(state), checkpoint_id=path, no_dist=True)


@pytest.mark.parametrize("save", [pickled, safe, foreign, distributed])
def test_identical_weights_at_two_steps_are_reported(save: Callable, tmp_path: Path) -> None:
    torch.manual_seed(0)
    changed = STATE | {"39.weight": STATE["39.weight"].clone()}
    changed["39.weight"][-1, -1] += 1
    for step, state in {100: STATE, 200: changed, 300: STATE, 400: STATE}.items():
        save(state, tmp_path / f"step_{step}", step)
    assert warnings(tmp_path) == [
        "warning: the weights of step_300 (step 300) are identical to those of step_100 (step 100)",
        "warning: the weights of step_400 (step 400) are identical to those of step_100 (step 100)",
    ]


def test_the_same_numbers_of_another_dtype_shape_or_name_are_not_identical(tmp_path: Path) -> None:
    for step, state in enumerate(
        (
            {"w": torch.zeros(2, 3)},
            {"w": torch.zeros(3, 2)},
            {"w": torch.zeros(2, 3, dtype=torch.float64)},
            {"v": torch.zeros(2, 3)},
        )
    ):
        save_file(state, tmp_path / f"step-{step}.safetensors")
    assert warnings(tmp_path) == []
