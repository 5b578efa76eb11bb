"""Tests of pipes and devices in place of files, and of extreme nesting or compression: one line, no waiting."""

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ckpt_probe.cli.app import run
from ckpt_probe.data import load_data
from ckpt_probe.errors import CkptProbeError, DataError

COMMANDS = [
    "inspect X.pt", "inspect X.safetensors", "inspect X.h5", "inspect folder", "inspect sharded", "inspect adapter",
    "analyze X.h5", "report X.jsonl -o page.html", "plot X.jsonl -o out.svg", "train X.toml -o out",
    "prune X.safetensors --sparsity 0.5 -o out", "average X.safetensors X.pt -o out.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS)
def test_a_pipe_in_place_of_a_file_is_refused_and_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "sharded", "adapter"):
        Path(folder).mkdir()
    for name in (
        "X.pt",
        "X.safetensors",
        "X.h5",
        "X.jsonl",
        "X.toml",
        "folder/model.safetensors",
        "sharded/x.safetensors",
    ):
        os.mkfifo(name)
    os.mkfifo("adapter/adapter_model.safetensors")
    os.mkfifo("adapter/adapter_config.json")
    Path("sharded/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "x.safetensors"}}))
    assert run(words.split()) in {1, 2}
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert not Path("out").exists()


@pytest.mark.parametrize("source", ["csv:x.csv", "parquet:x.parquet", "npz:x.npz", "h5:x.h5"])
def test_a_pipe_in_place_of_a_file_of_data_is_refused(tmp_path: Path, source: str) -> None:
    kind, _, name = source.partition(":")
    os.mkfifo(tmp_path / name)
    with pytest.raises(CkptProbeError, match="pipe"):
        load_data(f"{kind}:{tmp_path / name}")


@pytest.mark.parametrize("words", ["analyze X.h5", "weights X.safetensors"])
def test_a_pipe_is_not_called_missing(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(words.split()[1])
    assert run(words.split()) == 1
    assert ": a pipe, a socket or a device, not a file" in capsys.readouterr().err


def test_a_device_in_place_of_a_file_is_refused_and_not_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.safetensors").symlink_to("/dev/zero")
    assert run(["inspect", str(tmp_path / "a.safetensors")]) == 1
    assert "a.safetensors: a pipe, a socket or a device, not a file" in capsys.readouterr().err


def test_toml_and_json_of_thousands_of_levels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.toml").write_text("a = " + "[" * 5000 + "]" * 5000)
    assert run(["train", str(tmp_path / "a.toml"), "-o", str(tmp_path / "out")]) == 2
    assert "a.toml: not valid TOML" in capsys.readouterr().err
    (tmp_path / "a.toml").write_text("a." * 5000 + "a = 1")
    assert run(["train", str(tmp_path / "a.toml"), "-o", str(tmp_path / "out")]) == 2
    assert "a.toml: not valid TOML: a key of more than 100 parts" in capsys.readouterr().err
    deep = '{"a":' * 20_000
    (tmp_path / "model.safetensors.index.json").write_text(deep)
    (tmp_path / "a.jsonl").write_text(deep)
    (tmp_path / "b.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep.encode())
    for words in (
        f"inspect {tmp_path / 'model.safetensors.index.json'}",
        f"inspect {tmp_path / 'b.safetensors'}",
        f"report {tmp_path / 'a.jsonl'} -o {tmp_path / 'x.html'}",
    ):
        assert run(words.split()) == 1, words
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_archive_that_claims_or_unpacks_to_far_more_than_its_size_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    with zipfile.ZipFile(tmp_path / "claims.npz", "w") as file:
        file.writestr("x.npy", header.getvalue())
        file.writestr("y.npy", header.getvalue())
    with pytest.raises(DataError, match=r"claims\.npz: not an \.npz file of plain arrays"):
        load_data(f"npz:{tmp_path / 'claims.npz'}")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file, file.open("x.npy", "w") as member:
        for _ in range(65):
            member.write(bytes(2**24))
    with pytest.raises(DataError, match=r"bomb\.npz: unpacks to 2,181,\d+,\d+ bytes or more"):
        load_data(f"npz:{tmp_path / 'bomb.npz'}")
