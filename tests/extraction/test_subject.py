"""What is forwarded is what the caller names; a file's word calls no function."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_probe.checkpoints import CheckpointMetadata, save_checkpoint
from ckpt_probe.cli.app import run
from ckpt_probe.data import functions_named
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import Wanted, open_subject
from ckpt_probe.models import build_model, function_named
from ckpt_probe.training import prune

MARKED = """
from pathlib import Path
import torch
Path("imported").write_text("")

def network(width=5):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, width))

def data(samples=8):
    return {"train": (torch.arange(4.0 * samples).reshape(samples, 4), torch.arange(samples) % 3)}
"""


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a checkpoint with the metadata given, beside a module that leaves a mark when it is imported."""
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


MINE = {"model": "marked_module:network", "data": "marked_module:data"}
UNION = {"data": "union", "data_arguments": {"sources": [{"name": "marked_module:data"}]}}


@pytest.mark.parametrize(
    ("metadata", "wanted", "named"),
    [
        (MINE, {}, "marked_module:data"),
        (MINE, {"data": "digits"}, "marked_module:network"),
        (MINE, {"model": "marked_module:network"}, "marked_module:data"),
        ({**MINE, **UNION}, {"model": "marked_module:network"}, "marked_module:data"),
        ({**MINE, "data": "union"}, {"data_arguments": UNION["data_arguments"]}, "marked_module:network"),
        ({"model": "os:system", "model_arguments": {"command": "touch imported"}, "data": "digits"}, {}, "os:system"),
    ],
)
def test_a_files_word_calls_no_function(
    checkpoint: Callable[..., Path], tmp_path: Path, metadata: dict, wanted: dict, named: str
) -> None:
    path = checkpoint(**metadata)
    with pytest.raises(UsageError, match=rf"step-000001.safetensors: names {named}, a function that is not called"):
        open_subject(path, Wanted(device="cpu", **wanted))
    if "data_arguments" not in wanted:
        assert not (tmp_path / "imported").exists()
        assert "marked_module" not in sys.modules


def test_the_callers_word_does_and_the_files_arguments_go_with_it(checkpoint: Callable[..., Path]) -> None:
    path = checkpoint(**MINE, data_arguments={"samples": 6})
    subject = open_subject(path, Wanted(device="cpu", **MINE))
    assert len(subject.data.split("train")) == 6
    other = open_subject(path, Wanted(device="cpu", **MINE, data_arguments={"samples": 9}))
    assert len(other.data.split("train")) == 9
    path = checkpoint(model="marked_module:network", model_arguments={"width": 5}, **UNION)
    again = open_subject(path, Wanted(device="cpu", **MINE))
    assert again.model_arguments == {"width": 5}


@pytest.mark.parametrize("verb", ["extract", "interpolate", "inspect", "prune"])
def test_no_command_calls_one(
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
    shown = capsys.readouterr()
    assert code == (0 if verb == "inspect" else 2)
    assert "is not called on a file's word" in shown.out + shown.err
    if verb == "inspect":
        assert json.loads(shown.out)["classifier"].startswith("unknown: ")
    assert not (tmp_path / "imported").exists()


def test_pruning_by_the_layers_name_needs_no_function(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    summary = prune(checkpoint(**MINE), tmp_path / "out", [0.5], keep_classifier=False)
    assert [level.written for level in summary.levels] == [True]
    assert not (tmp_path / "imported").exists()


def test_which_names_are_functions() -> None:
    assert function_named("mlp") is None
    assert function_named("a.b:c") == "a.b:c"
    assert build_model("mlp", input_shape=[4], classes=2) is not None
    for name in ("digits", "idx:mnist", "npz:file", "modular:p=7,op=add,fraction=0.5", "modular:seed"):
        assert functions_named(name) == []
    nested = {"sources": [{"name": "digits"}, {"name": "union", "arguments": {"sources": [{"name": "a:b"}]}}]}
    assert functions_named("union", nested) == ["a:b"]


@pytest.mark.parametrize("classifier", [None, "1"])
def test_data_that_the_model_does_not_take(checkpoint: Callable[..., Path], classifier: str | None) -> None:
    path = checkpoint(model="marked_module:network", data="digits")
    wanted = Wanted(model="marked_module:network", classifier=classifier, device="cpu")
    told = r"step-000001.safetensors: the model does not take inputs of shape \(1, 8, 8\) of float32 \(Runtime"
    with pytest.raises(DataError, match=told):
        open_subject(path, wanted)
