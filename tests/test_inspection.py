"""Checks that `inspect` in Python returns the object that the command prints as JSON."""

import json
from pathlib import Path

import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.checkpoints import CheckpointMetadata
from ckpt_probe.cli.app import run


@pytest.fixture
def series(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    arguments = {"hidden": [8], "input_shape": [1, 8, 8], "classes": 10}
    for step in (1, 2):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))
        metadata = CheckpointMetadata(step=step, model="mlp", model_arguments=arguments, data="digits")
        cp.save_checkpoint(tmp_path / f"step-{step}.safetensors", model.state_dict(), metadata)
    return tmp_path


@pytest.mark.parametrize("options", [{}, {"statistics": True}, {"verify": True}])
def test_a_checkpoint_has_the_description_that_the_command_prints(series: Path, options: dict, capsys) -> None:
    path = series / "step-1.safetensors"
    description = cp.inspect(path, **options)
    assert run(["inspect", str(path), "--json", *(f"--{name}" for name in options)]) == 0
    assert json.loads(json.dumps(description)) == json.loads(capsys.readouterr().out)
    assert description["step"] == 1
    assert ("norm" in description["tensors"][0]) == ("statistics" in options)
    assert ("verified" in description) == ("verify" in options)


def test_a_finding_of_the_audit_names_its_tensor(tmp_path: Path) -> None:
    for step in (1, 2):
        values = torch.full((4, 2), float("nan") if step == 2 else 1.0)
        cp.save_checkpoint(tmp_path / f"step-{step}.safetensors", {"fc.weight": values})
    findings = cp.inspect(tmp_path)["audit"]["findings"]
    assert {"kind", "text", "checkpoints", "tensor", "alarm"} == set(findings[0])
    assert ("nan", "fc.weight") in [(finding["kind"], finding["tensor"]) for finding in findings]


def test_a_directory_and_a_dump_are_described(series: Path, tmp_path: Path) -> None:
    described = cp.inspect(series)
    assert [checkpoint["step"] for checkpoint in described["checkpoints"]] == [1, 2]
    loader = [(torch.randn(20, 4), torch.arange(20) % 2)]
    dump = cp.extract(torch.nn.Linear(4, 2), loader, tmp_path / "a.h5", device="cpu")
    assert cp.inspect(dump)["kind"] == "dump without provenance"
    assert cp.inspect(dump, verify=True)["verified"]["damaged"] == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.h5", {"statistics": True}, "a dump; only `verify` applies to it"),
        (".", {"statistics": True}, r"2 checkpoints; `statistics` takes one, such as .*step-2\.safetensors"),
        (".", {"model": "mlp"}, "2 checkpoints; running a model takes one"),
        (".", {"statistic": True}, "inspect: unknown keyword `statistic`; did you mean statistics"),
    ],
)
def test_an_argument_that_does_not_apply_is_refused(series: Path, name: str, options: dict, message: str) -> None:
    with pytest.raises(cp.UsageError, match=message):
        cp.inspect(series / name, **options)
