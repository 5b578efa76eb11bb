"""Tests of invalid input on the command line: one clear line, the right exit code, and no unfinished files."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from ckpt_probe.checkpoints import save_checkpoint

from .conftest import CONFIG, Run, environment


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """Check that the command failed with this code and one line that contains all the parts."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
    assert done.stdout == ""


def files_in(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def dump(path: Path, **changes: np.ndarray) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(30) % 3
    datasets = {
        "test/features": generator.normal(size=(30, 4)),
        "test/labels": labels,
        "classifier/weights": generator.normal(size=(3, 4)),
    }
    with h5py.File(path, "w") as file:
        for name, value in (datasets | changes).items():
            file[name] = value


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("train", "missing.toml", "-o", "out"), 2, "missing.toml: cannot be read"),
        (("extract", "missing", "-o", "out"), 1, "missing: no such file or directory"),
        (("analyze", "missing"), 1, "missing: no such file or directory"),
        (("interpolate", "a.safetensors", "b.safetensors", "-o", "out"), 1, "a.safetensors: no such file"),
        (("interpolate", "a.safetensors", "b.safetensors", "--alpha", ".5", "-o", "out"), 1, "a.safetensors: no such"),
        (("inspect", "missing.safetensors"), 1, "missing.safetensors: no such file"),
        (("inspect", "missing.h5"), 1, "missing.h5: no such file"),
    ],
)
def test_a_missing_file_is_refused(probe: Run, tmp_path: Path, words: tuple, code: int, part: str) -> None:
    assert_refused(probe(*words), code, part)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_without_a_checkpoint_or_a_dump_is_refused(probe: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(probe("extract", "empty", "-o", "out"), 1, "empty: no checkpoint", "*.safetensors")
    assert_refused(probe("analyze", "empty"), 1, "empty: no dump found", "*.h5")
    assert not (tmp_path / "out").exists()


def test_truncated_safetensors_and_text_files_are_refused(probe: Run, trained: Path, tmp_path: Path) -> None:
    intact = trained / "run" / "checkpoints" / "step-000010.safetensors"
    (tmp_path / "cut.safetensors").write_bytes(intact.read_bytes()[:-100])
    (tmp_path / "text.safetensors").write_text("no tensors here")
    before = files_in(tmp_path)
    for name in ("cut", "text"):
        file = f"{name}.safetensors"
        assert_refused(probe("inspect", file), 1, file, "truncated")
        assert_refused(probe("extract", file, "-o", "out"), 1, file, "truncated")
        assert_refused(probe("interpolate", intact, file, "-o", "out"), 1, file, "truncated")
        assert_refused(probe("interpolate", intact, file, "--alpha", "0.5", "-o", "out"), 1, file, "truncated")
    assert files_in(tmp_path) == before


def test_an_incomplete_dump_is_refused(probe: Run, trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "dumps" / "step-000010.h5", tmp_path / "step-000010.h5")
    with h5py.File(tmp_path / "step-000010.h5", "a") as file:
        del file.attrs["complete"]
    for verb in ("analyze", "inspect"):
        assert_refused(
            probe(verb, "step-000010.h5"),
            1,
            "step-000010.h5: incomplete: writing it was interrupted",
            "extract it again",
        )
    done = probe("extract", trained / "run" / "checkpoints" / "step-000010.safetensors", "-o", ".")
    assert_refused(done, 2, "step-000010.h5", "not a complete dump", "--overwrite")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"test/features": np.where(np.arange(30)[:, None] == 7, np.nan, np.ones((30, 4)))}, ("test", "NaN", "row 7")),
        ({"test/labels": np.where(np.arange(30) == 9, 3, 0)}, ("labels: row 9 is 3", "between 0 and 2")),
        (
            {"test/labels": np.arange(29) % 3},
            ("test/labels: expected integers of shape (N,), N = 30 as in test/features, found shape (29,)",),
        ),
    ],
)
def test_dumps_with_invalid_values_are_refused(
    probe: Run, tmp_path: Path, changes: dict, parts: tuple[str, ...]
) -> None:
    dump(tmp_path / "bad.h5", **changes)
    assert_refused(probe("analyze", "bad.h5", "-o", "out.csv"), 1, "bad.h5", *parts)
    assert not (tmp_path / "out.csv").exists()


def test_a_configuration_with_unknown_keys_is_refused(probe: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(CONFIG.replace("steps = 60", "stepps = 60\nbatchsize = 5"))
    done = probe("train", "bad.toml", "-o", "run")
    assert_refused(done, 2, "bad.toml: 2 problems", "line 7, training.stepps: unknown key (did you mean steps?)")
    assert_refused(done, 2, "line 8, training.batchsize: unknown key (did you mean batch_size?)")
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_fit_is_refused(probe: Run, trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "run" / "checkpoints" / "step-000010.safetensors"
    done = probe("extract", checkpoint, "-o", "out", "--model", "cnn")
    assert_refused(done, 1, "does not fit the checkpoint", "missing: 0.bias", "unexpected: 1.bias")
    done = probe("extract", checkpoint, "-o", "out", "--model-argument", '{"hidden": [8]}')
    assert_refused(done, 1, "other shape: 1.bias (16,) for (8,)")
    assert not (tmp_path / "out").exists()


def test_a_foreign_checkpoint_without_model_or_data_is_refused(probe: Run, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "foreign.safetensors", {"w": torch.zeros(2)})
    assert_refused(probe("extract", "foreign.safetensors", "-o", "out"), 2, "does not name its data; use --data")
    assert_refused(
        probe("extract", "foreign.safetensors", "-o", "out", "--data", "digits"),
        2,
        "does not name its model",
        "--model",
    )
    done = probe("interpolate", "foreign.safetensors", "foreign.safetensors", "-o", "out")
    assert_refused(done, 2, "does not name its data")
    assert not (tmp_path / "out").exists()


def test_existing_output_is_not_replaced(probe: Run, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "own")
    before = files_in(tmp_path)
    a, b = (f"own/run/checkpoints/step-{step}.safetensors" for step in ("000010", "000060"))
    assert_refused(
        probe("train", "own/config.toml", "-o", "own/run"), 2, "own/run: exists already", "--resume", "--overwrite"
    )
    assert_refused(
        probe("extract", "own/run", "-o", "own/dumps", "--limit", "3"), 2, "another provenance", "--overwrite"
    )
    assert_refused(probe("analyze", "own/dumps", "-o", "own/config.toml"), 2, "own/config.toml: exists already")
    assert_refused(probe("interpolate", a, b, "--alpha", "0.5", "-o", a), 2, "is one of the input checkpoints")
    assert_refused(probe("interpolate", a, b, "--alpha", "0.5", "-o", "own/config.toml"), 2, "exists already")
    assert_refused(probe("interpolate", a, b, "-o", "own/config.toml"), 2, "own/config.toml", "directory")
    assert_refused(probe("demo", "-o", "own"), 2, "own: exists already")
    assert files_in(tmp_path) == before


# Root ignores permission bits because of a capability; without it, root is refused like other users.
WITHOUT_CAPABILITY = """
import ctypes, sys
from ckpt_probe.cli.app import run

kernel, CAP_DAC_OVERRIDE = ctypes.CDLL(None, use_errno=True), 1
header, capabilities = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert kernel.capget(header, capabilities) == 0
for index in (0, 1):  # effective and permitted capabilities
    capabilities[index] &= ~(1 << CAP_DAC_OVERRIDE)
assert kernel.capset(header, capabilities) == 0
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="root can drop this capability only on Linux",
)
def test_without_permission_to_write_the_error_names_the_reason(commands: Any, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "own")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    a, b = (f"own/run/checkpoints/step-{step}.safetensors" for step in ("000010", "000060"))
    for words in (
        ("train", "own/config.toml", "-o", "locked/run"),
        ("extract", "own/run", "-o", "locked/dumps"),
        ("analyze", "own/dumps", "-o", "locked/records.jsonl"),
        ("interpolate", a, b, "-o", "locked/path", "--points", "3"),
        ("interpolate", a, b, "--alpha", "0.5", "-o", "locked/mid.safetensors"),
        ("demo", "-o", "locked/demo"),
    ):
        bound = commands.python(WITHOUT_CAPABILITY, *words)
        done = subprocess.run(bound, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=1200)
        assert done.returncode == 1, (words, done.stderr)
        assert "cannot be written: Permission denied" in done.stderr.splitlines()[-1], words
        assert done.stderr.splitlines()[-1].startswith("error: "), words
    assert list(locked.iterdir()) == []
