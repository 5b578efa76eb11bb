"""Checks that a new process imports files of the working directory only if the user names them."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

LIBRARIES = {"ckpt_probe", "click", "h5py", "numpy", "pydantic", "safetensors", "scipy", "torch", "sitecustomize"}
COMMAND = [str(Path(sys.executable).parent / "ckpt-probe")]
AS_MODULE = [sys.executable, "-m", "ckpt_probe"]


def hostile(folder: Path, names: set[str]) -> Path:
    """Write modules of these names; return the file to which each writes its name when it is imported."""
    mark = folder / "executed"
    for name in names:
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r} + ' ')\n")
    return mark


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    folder = tmp_path / "dumps"
    folder.mkdir()
    for number in range(2):
        with h5py.File(folder / f"step-{number}.h5", "w") as file:
            file["test/features"] = np.random.default_rng(number).normal(size=(30, 4))
            file["test/labels"] = np.arange(30) % 3
    return folder


def run_in(folder: Path, words: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "dumps/step-0.h5"],
        [
            "extract",
            "run",
            "-o",
            "out",
            "--model",
            "MODEL",
            "--data",
            "DATA",
            "--workers",
            "2",
            "--set",
            "data_workers=1",
        ],
    ],
    ids=lambda words: words[0],
)
def test_the_command_imports_no_module_of_the_working_directory(tmp_path: Path, dumps: Path, words: list[str]) -> None:
    module = checkpoints(tmp_path, dumps.parent / "run")
    mark = hostile(tmp_path, set(sys.stdlib_module_names) | LIBRARIES)
    replacements = {"MODEL": f"{module}:model", "DATA": f"{module}:data"}
    run_in(tmp_path, [*COMMAND, *(replacements.get(word, word) for word in words)])
    assert not mark.exists(), mark.read_text()


def checkpoints(folder: Path, run: Path) -> Path:
    """Write a run of two checkpoints; return the file with their model and data, which is in another directory."""
    import torch
    from safetensors.torch import save_file

    run.mkdir()
    for step in (1, 2):
        save_file(torch.nn.Linear(6, 3).state_dict(), run / f"step-{step}.safetensors")
    module = folder / "elsewhere" / "nets.py"
    module.parent.mkdir()
    module.write_text(NETS)
    return module


NETS = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(3, 6)), nn.Parameter(torch.zeros(3))
    def forward(self, x): return nn.functional.linear(x, self.weight, self.bias)
def model(): return nn.Linear(6, 3)
def data():
    torch.manual_seed(0)
    return {"test": TensorDataset(torch.randn(12, 6), torch.arange(12) % 3)}
"""


def test_python_m_imports_no_library_of_the_working_directory(tmp_path: Path, dumps: Path) -> None:
    mark = hostile(tmp_path, LIBRARIES - {"ckpt_probe"})
    run_in(tmp_path, [*AS_MODULE, "analyze", dumps.name, "--set", "cache=false", "--workers", "2"])
    assert not mark.exists(), mark.read_text()


def test_a_named_function_of_the_working_directory_runs_in_workers_too(tmp_path: Path) -> None:
    checkpoints(tmp_path, tmp_path / "run")
    (tmp_path / "nets.py").write_text(NETS)
    words = ["extract", "run", "-o", "out", "--model", "nets:model", "--data", "nets:data", "--workers", "2"]
    run_in(tmp_path, [*COMMAND, *words])
    assert len(list((tmp_path / "out").glob("*.h5"))) == 2


def test_a_function_of_an_installed_package_imports_no_module_of_the_working_directory(tmp_path: Path) -> None:
    mark = hostile(tmp_path, (LIBRARIES | {"colorsys"}) - {"click"})
    program = "from ckpt_probe.plugins import load_function; load_function('click.testing:CliRunner'); import colorsys"
    run_in(tmp_path, [sys.executable, "-P", "-c", program])
    assert not mark.exists(), mark.read_text()
