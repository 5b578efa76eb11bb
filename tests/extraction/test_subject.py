"""Checks that the model and data named by the caller are used, and that no function that only a file names runs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_probe.checkpoints import CheckpointMetadata, save_checkpoint
from ckpt_probe.cli.app import run
from ckpt_probe.data import functions_named as data_functions
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import Setup, open_subject
from ckpt_probe.models import build_model
from ckpt_probe.models import functions_named as model_functions
from ckpt_probe.training import prune

MARKED = """
from pathlib import Path
import torch
Path("imported").write_text("")

def network(width=5, inner=None):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, width))

def data(samples=8, inner=None):
    return {"train": (torch.arange(4.0 * samples).reshape(samples, 4), torch.arange(samples) % 3)}
"""


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that writes a checkpoint with metadata, beside a module that writes a file when imported."""
    (tmp_path / "marked_module.py").write_text(MARKED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "marked_module", raising=False)

    def write(**metadata: Any) -> Path:
        tensors = {"1.weight": torch.ones(5, 4), "1.bias": torch.zeros(5)}
        path = tmp_path / "step-000001.safetensors"
        save_checkpoint(path, tensors, CheckpointMetadata(**metadata), overwrite=True)
        return path

    return write


MINE: dict[str, Any] = {"model": "marked_module:network", "data": "marked_module:data"}
STUDIES = Path(__file__).parents[2] / "sample_configs"
UNION_FUNCTION = f"{STUDIES}/class_count/digits_and_fashion.py:union"
UNION: dict[str, Any] = {"data": "union", "data_arguments": {"sources": [{"name": "marked_module:data"}]}}


@pytest.mark.parametrize(
    ("metadata", "options", "function"),
    [
        (MINE, {}, "marked_module:data"),
        (MINE, {"data": "digits"}, "marked_module:network"),
        (MINE, {"model": "marked_module:network"}, "marked_module:data"),
        ({**MINE, **UNION}, {"data": UNION_FUNCTION}, "marked_module:data"),
        (MINE, {**UNION, "data": UNION_FUNCTION}, "marked_module:network"),
        ({"model": "os:system", "model_arguments": {"command": "touch imported"}, "data": "digits"}, {}, "os:system"),
    ],
)
def test_a_function_that_only_the_file_names_is_not_called(
    checkpoint: Callable[..., Path], tmp_path: Path, metadata: dict, options: dict, function: str
) -> None:
    path = checkpoint(**metadata)
    with pytest.raises(
        UsageError, match=rf"step-000001.safetensors: names the function {function}, which is not called"
    ):
        open_subject(path, Setup(device="cpu", **options))
    if "data_arguments" not in options:
        assert not (tmp_path / "imported").exists()
        assert "marked_module" not in sys.modules


def test_a_function_that_the_caller_names_is_called_with_the_files_arguments(checkpoint: Callable[..., Path]) -> None:
    path = checkpoint(**MINE, data_arguments={"samples": 6})
    subject = open_subject(path, Setup(device="cpu", **MINE))
    assert len(subject.data.split("train")) == 6
    with_arguments = open_subject(path, Setup(device="cpu", **MINE, data_arguments={"samples": 9}))
    assert len(with_arguments.data.split("train")) == 9
    path = checkpoint(model="marked_module:network", model_arguments={"width": 5}, **UNION)
    with_other_data = open_subject(path, Setup(device="cpu", **MINE))
    assert with_other_data.model_arguments == {"width": 5}


@pytest.mark.parametrize("source", ["model", "data"])
@pytest.mark.parametrize("inner", ["os:system", {"deep": ["x", {"os:system": 1}]}])
def test_a_function_in_the_files_arguments_is_not_passed_to_the_model_or_data(
    checkpoint: Callable[..., Path], source: str, inner: Any
) -> None:
    """A function may call others that its arguments name, as `curve_net` builds a model by name."""
    path = checkpoint(**MINE, **{f"{source}_arguments": {"inner": inner}})
    command = rf"`{source}='marked_module:\w+'` and `{source}_arguments=`"
    message = rf"names the function os:system, which is not called .*: {command}"
    with pytest.raises(UsageError, match=message):
        open_subject(path, Setup(device="cpu", **MINE))
    options: dict[str, Any] = {f"{source}_arguments": {"inner": inner}}
    assert open_subject(path, Setup(device="cpu", **MINE, **options)).classifier == "1"


def test_no_function_is_called_through_a_function_of_the_package(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    net = "ckpt_probe.paths.curve:curve_net"
    arguments = {
        "model": "os:system",
        "model_arguments": {"command": "touch imported"},
        "a": "",
        "b": "",
        "curve": "bezier",
    }
    path = checkpoint(model=net, model_arguments=arguments, data="digits")
    assert run(["extract", str(path), "-o", "dumps", "--model", net, "--device", "cpu"]) == 2
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("verb", ["extract", "interpolate", "inspect", "prune"])
def test_no_command_calls_a_function_that_only_a_file_names(
    checkpoint: Callable[..., Path], tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(checkpoint(**MINE))
    words = {
        "extract": ["extract", path, "-o", "dumps"],
        "interpolate": ["interpolate", path, path, "-o", "path"],
        "inspect": ["inspect", path, "--json"],
        "prune": ["prune", path, "-o", "pruned", "--keep-classifier", "--sparsity", "0.5"],
    }[verb]
    code = run(words)
    output = capsys.readouterr()
    assert code == (0 if verb == "inspect" else 2)
    assert "is not called because any file could name any function" in output.out + output.err
    if verb == "inspect":
        assert json.loads(output.out)["classifier"].startswith("unknown: ")
    assert not (tmp_path / "imported").exists()


def test_pruning_calls_no_function_of_the_file(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    summary = prune(checkpoint(**MINE), tmp_path / "out", [0.5], keep_classifier=False)
    assert [level.written for level in summary.levels] == [True]
    assert not (tmp_path / "imported").exists()


def test_only_names_with_a_module_are_functions() -> None:
    assert model_functions("mlp") == []
    assert model_functions("a.b:c") == ["a.b:c"]
    assert build_model("mlp", {"input_shape": [4], "classes": 2}) is not None
    for name in ("digits", "idx:mnist", "npz:file", "modular:p=7,op=add,fraction=0.5", "modular:seed"):
        assert data_functions(name) == []


@pytest.mark.parametrize("classifier", [None, "1"])
def test_data_that_the_model_does_not_accept_are_refused(
    checkpoint: Callable[..., Path], classifier: str | None
) -> None:
    path = checkpoint(model="marked_module:network", data="digits")
    setup = Setup(model="marked_module:network", classifier=classifier, device="cpu")
    message = (
        r"step-000001.safetensors: model marked_module:network, data digits: the model does not take inputs of shape "
    )
    with pytest.raises(DataError, match=message + r"\(1, 8, 8\) of float32 \(RuntimeError: [^\n]*$"):
        open_subject(path, setup)


@pytest.mark.parametrize("modular", [False, True])
def test_too_few_logits_are_reported(study: Callable[[str], str], tmp_path: Path, modular: bool) -> None:
    table, network = study("grokking/modular.py:modular_table"), study("grokking/modular.py:modular_mlp")
    model, arguments = (network, {"modulus": 5}) if modular else ("mlp", {"classes": 5})
    data, data_arguments = (table, {"p": 7}) if modular else ("digits", {})
    narrow = build_model(model, arguments if modular else {**arguments, "input_shape": [1, 8, 8]})
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, narrow.state_dict(), CheckpointMetadata(data=data, data_arguments=data_arguments))
    message = f"the model gives 5 logits, fewer than the data's {7 if modular else 10} classes"
    with pytest.raises(DataError, match=rf"a\.safetensors: model {model}, data {data}: {message}$"):
        open_subject(path, Setup(model=model, model_arguments=arguments, data=data, device="cpu"))


@pytest.mark.parametrize(("kind", "fits"), [("uint8", True), ("float64", True), ("int32", False), ("bool", False)])
def test_inputs_of_an_npz_must_have_a_dtype_that_the_model_accepts(tmp_path: Path, kind: str, fits: bool) -> None:
    np.savez(tmp_path / "data.npz", x=np.ones((8, 3), dtype=kind), y=np.arange(8) % 2)
    path, data = tmp_path / "a.safetensors", f"npz:{tmp_path / 'data.npz'}"
    shape = {"input_shape": [3], "classes": 2}
    save_checkpoint(
        path, build_model("mlp", shape).state_dict(), CheckpointMetadata(model="mlp", model_arguments=shape)
    )
    if fits:
        assert open_subject(path, Setup(data=data, device="cpu")).classifier == "5"
        return
    with pytest.raises(DataError, match=r"data\.npz: the model does not take inputs of shape \(3,\) of int64 \("):
        open_subject(path, Setup(data=data, device="cpu"))
