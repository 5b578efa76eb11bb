"""The state of an interrupted run: what is of another model is refused in one line."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ckpt_probe.errors import DataError
from ckpt_probe.training.start import restore_state, save_state


def stepped(model: nn.Module, kind: type[torch.optim.Optimizer] = torch.optim.AdamW) -> torch.optim.Optimizer:
    optimizer = kind(model.parameters(), lr=0.1)  # pyright: ignore[reportCallIssue]
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "1.bias"),
        (nn.Sequential(nn.Linear(3, 5)), r"other shape: 0\.bias \(4,\) for \(5,\), 0\.weight \(4, 3\) for \(5, 3\)"),
    ],
)
def test_a_state_of_another_model_gives_one_line(tmp_path: Path, other: nn.Module, told: str) -> None:
    model, path = nn.Sequential(nn.Linear(3, 4)), tmp_path / "state.safetensors"
    save_state(path, model, stepped(model), 7, 1.5)
    with pytest.raises(
        DataError, match=rf"state\.safetensors: the state of a different model .*`overwrite=True`.*{told}"
    ) as caught:
        restore_state(path, other, stepped(other))
    assert "\n" not in str(caught.value)
    fresh = nn.Sequential(nn.Linear(3, 4))
    assert restore_state(path, fresh, stepped(fresh)) == (7, 1.5)
    assert torch.equal(fresh.state_dict()["0.weight"], model.state_dict()["0.weight"])
