"""A small run on the packaged digits, and a function that writes its checkpoints as a series."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ckpt_probe.checkpoints import save_checkpoint
from ckpt_probe.data import load_data

States = list[dict[str, Tensor]]
STEPS = (0, 10, 20, 40, 60, 80, 100, 130, 160, 200)


def network() -> nn.Sequential:
    first = [nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU()]
    return nn.Sequential(*first, nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))


@pytest.fixture(scope="session")
def states() -> States:
    """Return state dicts of a network at ten steps of its training."""
    torch.manual_seed(0)
    inputs, labels = load_data("digits").split("train").batch(slice(None))
    inputs, model = inputs.flatten(1).float(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    saved = []
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            saved.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        rows = torch.randint(len(inputs), (64,))
        loss = nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return saved


@pytest.fixture
def series(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes state dicts as checkpoints of a series and returns its directory."""

    def write(states: Sequence[Mapping[str, Tensor]], steps: Sequence[int] = STEPS, suffix: str = ".pt") -> Path:
        directory = tmp_path / "run"
        directory.mkdir(exist_ok=True)
        for state, step in zip(states, steps, strict=False):
            path = directory / f"step-{step}{suffix}"
            if suffix == ".pt":
                torch.save(dict(state), path)
            else:
                save_checkpoint(path, {name: tensor.contiguous() for name, tensor in state.items()}, overwrite=True)
        return directory

    return write


@pytest.fixture
def vectors(states: States) -> np.ndarray:
    """Return the parameters of every step, without buffers, shape (T, P) float64."""
    names = [name for name, _ in network().named_parameters()]
    return np.stack([torch.cat([state[name].flatten() for name in names]).double().numpy() for state in states])


def distances_between(points: np.ndarray) -> np.ndarray:
    """Return the distances (T, T) between the points (T, P) of a route."""
    return np.linalg.norm(points[:, None] - points[None], axis=2)
