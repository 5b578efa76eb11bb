"""Checks that credentials in arguments and titles are in no output, also if JSON escapes or spaces hide the address."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_probe import addresses
from ckpt_probe.checkpoints import CheckpointMetadata
from ckpt_probe.cli.app import run
from ckpt_probe.extraction import extract_series

SECRETS = (b"hunter22", b"sig-nature")
ADDRESS = "https://ann:hunter22@host.invalid/a.npz?sig=sig-nature"
# JSON may escape characters, which hides the address in the argument.
ESCAPED = ADDRESS.replace("@", r"\u0040").replace("?", r"\u003f").replace("://", r"\u003a//")
NETS = """
from torch import nn
def model(source=None): return nn.Linear(64, 10)
def data(source=None):
    from ckpt_probe.data import load_data
    split = load_data("digits").splits["test"]
    inputs, labels = split.batch(slice(0, 60))
    return {"test": (inputs.reshape(60, 64).numpy(), labels.numpy())}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(addresses, "_credentials", addresses.Credentials())
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    save_file(torch.nn.Linear(64, 10).state_dict(), tmp_path / "step-1.safetensors")
    return tmp_path


def files_with_secrets(folder: Path) -> list[str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file.name for file in files if any(secret in file.read_bytes() for secret in SECRETS)]


@pytest.mark.parametrize("address", [ADDRESS, ESCAPED])
def test_credentials_of_json_arguments_and_titles_are_in_no_dump_and_no_page(
    folder: Path, capfd: pytest.CaptureFixture, address: str
) -> None:
    arguments = f'{{"source": "{address}"}}'
    options = ["--model", "nets.py:model", "--model-argument", arguments, "--data", "nets.py:data"]
    assert run(["extract", "step-1.safetensors", "-o", "dumps", *options, "--data-argument", arguments]) == 0
    assert run(["report", "my run=dumps", "-o", "page.html", "--title", f"features of {ADDRESS} today"]) == 0
    assert "features of https://host.invalid/a.npz today" in (folder / "page.html").read_text()
    assert run(["analyze", "dumps", "--json"]) == 0
    assert run(["analyze", f"no such file {ADDRESS}"]) != 0
    assert (
        run(["extract", "step-1.safetensors", "-o", "x", *options[:2], "--model-argument", f'{{"a": {ADDRESS} }}']) == 2
    )
    text = capfd.readouterr()
    assert files_with_secrets(folder) == []
    assert not [secret for secret in SECRETS if secret.decode() in text.out + text.err]


def test_python_functions_store_no_credentials(folder: Path) -> None:
    arguments = {"source": ADDRESS}
    options = {"model": "nets.py:model", "model_arguments": arguments, "data": "nets.py:data"}
    extract_series("step-1.safetensors", "dumps", data_arguments=arguments, **options)
    metadata = CheckpointMetadata(model_arguments=arguments, config={"data": {"arguments": arguments}})
    (folder / "metadata.json").write_text(json.dumps(metadata.to_strings()))
    assert files_with_secrets(folder) == []
