"""Fixtures for tests of PEFT adapters: saved adapters, and peft's merge of the same files as the reference."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

State = dict[str, Any]


def merged_by_peft(model: Any, adapter: Path) -> State:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict())


def train(model: Any, folder: Path, **settings: Any) -> None:
    """Save an adapter of a model with random weights."""
    import peft
    import torch

    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(
            model, peft.LoraConfig(**{"r": 4, "target_modules": ["query", "value"]} | settings)
        )
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        wrapped.save_pretrained(folder)


def adapt(folder: Path, make: Callable[[], Any], **settings: Any) -> tuple[Path, Path, State]:
    """Save a base and an adapter; return both paths and peft's merge of the files."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    base, model = folder / "base.safetensors", make()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(start, base)
    train(model, folder / "adapter", **settings)
    fresh = make()
    fresh.load_state_dict(start)
    return base, folder / "adapter", merged_by_peft(fresh, folder / "adapter")


def compare(adapter: Path, base: Path, expected: State) -> int:
    """Compare every tensor with peft's, bfloat16 exactly; return the number of tensors that differ from the base."""
    import torch

    from ckpt_probe.checkpoints import open_checkpoint

    changed = 0
    with open_checkpoint(adapter, base=base) as checkpoint, open_checkpoint(base) as before:
        assert checkpoint.names == sorted(expected)
        for name, tensor in expected.items():
            actual, rounding = checkpoint.read(name), 0 if tensor.dtype == torch.bfloat16 else 1e-6
            torch.testing.assert_close(actual, tensor, rtol=rounding, atol=rounding, msg=name)
            assert checkpoint.layout[name][1] == tuple(tensor.shape)
            changed += name not in before or not torch.equal(actual, before.read(name))
    return changed


def refuse(adapter: Path, base: Path) -> str:
    """Return the one-line message of the error for an adapter."""
    from ckpt_probe.checkpoints import open_checkpoint
    from ckpt_probe.errors import DataError

    with pytest.raises(DataError) as caught, open_checkpoint(adapter, base=base):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="session")
def adapted() -> Callable[..., tuple[Path, Path, State]]:
    return adapt


@pytest.fixture(scope="session")
def merged() -> Callable[[Any, Path], State]:
    return merged_by_peft


@pytest.fixture(scope="session")
def changed_as_by_peft() -> Callable[[Path, Path, State], int]:
    return compare


@pytest.fixture(scope="session")
def trained() -> Callable[..., None]:
    return train


@pytest.fixture(scope="session")
def refusal() -> Callable[[Path, Path], str]:
    return refuse
