"""Tests of models by name, of the classifier found by running the model, and of weights that do not fit."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.models import (
    build_model,
    choose_device,
    find_head,
    load_weights,
    logits_of,
    model_arguments,
    run_once,
)

SHAPE = {"input_shape": (1, 8, 8), "classes": 10}


@pytest.mark.parametrize(
    ("name", "arguments", "classifier"),
    [
        ("mlp", {"hidden": [5], "dropout": 0.2}, "4"),
        ("mlp", {"hidden": []}, "1"),
        ("cnn", {"channels": [4], "hidden": 6}, "6"),
        ("resnet", {"blocks": [1, 1], "width": 4}, "7"),
    ],
)
def test_the_head_of_a_builtin_model_gives_its_output(name: str, arguments: dict, classifier: str) -> None:
    complete = model_arguments(name, arguments, **SHAPE)
    torch.manual_seed(0)
    model = build_model(name, complete)
    inputs = torch.randn(3, 1, 8, 8)
    assert model.eval()(inputs).shape == (3, 10)
    name_of_head = find_head(model, inputs).name
    assert name_of_head == classifier
    layer = model.get_submodule(name_of_head)
    assert isinstance(layer, nn.Linear)
    assert layer.out_features == 10
    torch.manual_seed(0)
    again = build_model(name, {**arguments, **SHAPE})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_finding_the_head_does_not_change_the_mode_of_the_model() -> None:
    model = build_model("resnet", {**SHAPE})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    # A backbone that its owner froze stays in evaluation mode during training.
    model[0].eval()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    find_head(model, torch.randn(3, 1, 8, 8))
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(DataError, match="does not take inputs"):
        run_once(model, torch.randn(3, 2))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Odd(nn.Module):
    """A model whose layers' order and names are misleading: the head is defined first and has an unusual name."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.zeta = nn.Linear(4, 3)
        self.fc = nn.Linear(6, 4)
        self.kind = kind

    def forward(self, x: Tensor):
        logits = self.zeta(torch.relu(self.fc(x)))
        return {
            "dict": {"logits": logits},
            "tuple": (logits, None),
            "square": logits.square(),
            "squeeze": logits[:, None].squeeze(1),
            "text": "logits",
            "object": type("Output", (), {"logits": logits})(),
        }[self.kind]


@pytest.mark.parametrize("kind", ["dict", "tuple", "squeeze", "object"])
def test_the_head_is_found_by_any_name_in_any_output(kind: str) -> None:
    assert find_head(Odd(kind), torch.randn(2, 6)).name == "zeta"


def test_a_model_without_a_clear_head_lists_candidates_and_a_named_one_is_checked() -> None:
    model, inputs = Odd("square"), torch.randn(2, 6)
    with pytest.raises(
        DataError, match=r"candidates and their outputs: zeta \(2, 3\), fc \(2, 4\).*use `classifier='zeta'`"
    ):
        find_head(model, inputs)
    assert find_head(model, inputs, "zeta").name == "zeta"
    with pytest.raises(UsageError, match="`classifier='head'`: no linear layer has that name; there are: zeta, fc"):
        find_head(model, inputs, "head")
    with pytest.raises(DataError, match=r"no torch\.nn\.Linear"):
        find_head(nn.ReLU(), inputs)
    with pytest.raises(DataError, match="contains no logits"):
        logits_of(Odd("text")(inputs))


def test_several_heads_are_an_error() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out = self.first(x)
            self.second(x)
            return out

    model = Several()
    assert find_head(model, torch.randn(2, 4)).name == "first"

    shared = torch.zeros(2, 3)

    def same_storage(_module: nn.Module, _inputs: tuple, _output: Tensor) -> Tensor:
        return shared

    model.first.register_forward_hook(same_storage)
    model.second.register_forward_hook(same_storage)
    with pytest.raises(DataError, match="several layers yield the model's output: first, second"):
        find_head(model, torch.randn(2, 4))


def test_weights_fit_with_a_wrappers_prefix_and_misfits_are_listed() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    state = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    for prefix in ("", "module.", "_orig_mod.", "model."):
        load_weights(model, {f"{prefix}{name}": tensor for name, tensor in state.items()}, source="x")
        assert torch.equal(model[0].weight, state["0.weight"])
    broken = {
        "0.weight": torch.zeros(2, 4),
        "0.bias": state["0.bias"],
        "1.weight": state["1.weight"],
        "head": state["1.bias"],
    }
    with pytest.raises(DataError) as error:
        load_weights(model, broken, source="file.safetensors")
    message = str(error.value)
    assert message.startswith("file.safetensors: the model does not fit the checkpoint; ")
    for part in ("1 missing: 1.bias", "1 unexpected: head", "1 of another shape: 0.weight (2, 4) for (2, 3)"):
        assert part in message
    assert torch.equal(model[0].weight, state["0.weight"])


def test_long_lists_of_missing_tensors_are_abbreviated() -> None:
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(10)])
    with pytest.raises(DataError, match=r"20 missing: .* and 12 more"):
        load_weights(model, {}, source="x")


def test_a_models_function_of_the_user_is_called_and_its_result_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = "def net(classes, width=2):\n    return nn.Linear(width, classes)\n"
    source = f"from torch import nn\n{net}def wrong():\n    return 7\n"
    (tmp_path / "my_models_for_tests.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    name = "my_models_for_tests:net"
    assert build_model(name, model_arguments(name, {"width": 5}, **SHAPE)).weight.shape == (10, 5)
    with pytest.raises(UsageError, match="returned int"):
        build_model("my_models_for_tests:wrong")
    with pytest.raises(UsageError, match="cannot be built with arguments"):
        build_model(name, {"depth": 5, "classes": 10})


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no model called 'vgg'; there are: mlp, cnn, resnet, timm:NAME"):
        build_model("vgg")
    with pytest.raises(UsageError, match="activation: expected one of relu, gelu, tanh"):
        build_model("mlp", {"activation": "swish", **SHAPE})


def test_devices_are_chosen_by_name_and_invalid_ones_refused() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}
    for name in ("gpu", "meta", "cuda:99"):
        with pytest.raises(UsageError, match=f"`device={name!r}`"):
            choose_device(name)


def test_a_quantised_checkpoint_is_refused() -> None:
    model = nn.Linear(2, 2)
    state = {"weight": torch.ones(2, 2, dtype=torch.int8), "bias": torch.zeros(2)}
    with pytest.raises(
        DataError,
        match=r"a\.safetensors: tensor 'weight' is int8, but .* floating point .*: a quantised checkpoint",
    ):
        load_weights(model, state, source="a.safetensors")
    load_weights(model, {"weight": torch.ones(2, 2, dtype=torch.bfloat16), "bias": torch.zeros(2)}, source="b")
    assert model.weight.dtype == torch.float32
