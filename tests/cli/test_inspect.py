"""Tests of the command `inspect`: checkpoints of other programs without flags, statistics, verification, and errors."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ckpt_probe.checkpoints import CheckpointMetadata, save_checkpoint
from ckpt_probe.checkpoints.formats.safe import read_header
from ckpt_probe.cli.app import run
from ckpt_probe.dumps import DumpWriter

STATE = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).state_dict()


def facts(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert run(["inspect", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def output_of(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert run(["inspect", *map(str, words)]) == 0
    return capsys.readouterr().out


def error_of(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = run(["inspect", *map(str, words)])
    out, errors = capsys.readouterr()
    assert out == ""
    [line] = errors.splitlines()
    return code, line


def test_a_pickled_checkpoint_of_another_program_is_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model_best.pth"
    torch.save({"state_dict": STATE, "epoch": 12, "best_acc1": 76.5, "arch": "mlp"}, path)
    out = output_of(capsys, path)
    for line in (
        f"{path}: a whole checkpoint, {path.stat().st_size:,} bytes",
        "format: torch zip",
        "state dict: state_dict",
        "step: 12 (epoch in the file)",
        "parameters: 195",
        "likely head: 2, 3 classes × 16 features:",
        "  best_acc1: 76.5",
        "  arch: mlp",
    ):
        assert line in out
    values = facts(capsys, path)
    assert values["state_key"] == "state_dict"
    assert (values["step"], values["step_source"], values["epoch"]) == (12, "epoch in the file", 12)
    assert values["trainer"] == {"epoch": 12, "best_acc1": 76.5, "arch": "mlp"}
    assert values["likely_heads"][0]["weight"] == "2.weight"
    assert values["tensors"][0] == {"name": "0.bias", "dtype": "F32", "shape": [16]}
    assert values["classifier"] is None


def test_statistics_are_printed_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"x": torch.tensor([3.0, 4.0, 0.0, math.nan]), "n": torch.tensor([2, 2])}, tmp_path / "a.safetensors")
    tensors = {
        tensor["name"]: tensor for tensor in facts(capsys, tmp_path / "a.safetensors", "--statistics")["tensors"]
    }
    assert tensors["x"]["norm"] == 5
    assert (tensors["x"]["zeros"], tensors["x"]["nan"], tensors["x"]["inf"]) == (0.25, 1, 0)
    assert (tensors["n"]["mean"], tensors["n"]["spread"]) == (2, 0)
    assert "norm" not in facts(capsys, tmp_path / "a.safetensors")["tensors"][0]
    header, *rows = output_of(capsys, tmp_path / "a.safetensors", "--statistics").splitlines()[-3:]
    assert header.split() == ["tensor", "dtype", "shape", "norm", "mean", "spread", "zeros", "nan", "inf"]
    assert rows[1].split() == ["x", "F32", "4", "5", "2.333", "1.7", "0.25", "1", "0"]


def test_a_directory_is_described_by_a_line_per_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (9, 10):
        torch.save({"model": {"w": torch.full((2, 2), float(step))}}, tmp_path / f"step-{step}.pt")
    torch.save({"model": {"w": torch.full((2, 2), 10.0)}}, tmp_path / "last.pt")
    out = output_of(capsys, tmp_path).splitlines()
    assert out[0] == f"{tmp_path}: 2 checkpoints, in order"
    assert out[2].split()[:3] == ["step-9", "9", "name"]
    assert out[3].split()[-1] == "last"
    [first, second] = facts(capsys, tmp_path)["checkpoints"]
    assert (first["checkpoint"], first["step"], first["format"], first["parameters"]) == ("step-9", 9, "torch zip", 4)
    assert second["same_weights"] == ["last"]
    code, line = error_of(capsys, tmp_path, "--statistics")
    assert (code, "--statistics takes one" in line) == (2, True)


def test_repeated_steps_and_weights_in_a_directory_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, step in (("a", 5), ("step-5", 5), ("step-6", 6)):
        torch.save({"model": {"w": torch.full((2, 2), float(name != "a"))}, "step": step}, tmp_path / f"{name}.pt")
    expected = [
        "warning: step 5 is the step of 2 checkpoints: a (step in the file), step-5 (step in the file)",
        "warning: the weights of step-6 (step 6) are identical to those of step-5 (step 5)",
    ]
    *_, first, second, verdict = output_of(capsys, tmp_path).splitlines()
    assert [first, second] == expected
    assert verdict == "audit: step 5 and step 6 hold the same weights"
    assert facts(capsys, tmp_path)["warnings"] == expected


def test_several_state_dicts_need_a_key_and_quantised_weights_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": STATE, "ema": {name: tensor + 1 for name, tensor in STATE.items()}}, tmp_path / "a.pth")
    code, line = error_of(capsys, tmp_path / "a.pth")
    assert code == 2
    assert "holds several state dicts: model (4 tensors, 195 numbers), ema (4 tensors, 195 numbers)" in line
    assert "other state dict: model (4 tensors" in output_of(capsys, tmp_path / "a.pth", "--set", "state_key=ema")
    save_file({"fc.weight": torch.ones(4, 4, dtype=torch.int8), "fc.SCB": torch.ones(4)}, tmp_path / "q.safetensors")
    assert "quantised: 1 tensors, first fc.weight (bitsandbytes, 8 bits)" in output_of(
        capsys, tmp_path / "q.safetensors"
    )


def test_invalid_files_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    (tmp_path / "text.pt").write_text("text")
    (tmp_path / "adapter").mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for words, code, part in (
        (["module.pt"], 1, "a whole pickled module"),
        (["text.pt"], 1, "not a checkpoint of a known format"),
        (["missing.pt"], 1, "no such file"),
        (["adapter"], 2, "--base"),
    ):
        values, line = error_of(capsys, tmp_path / words[0])
        assert values == code
        assert part in line


def damage(path: Path, *names: str) -> None:
    header, data = read_header(path), bytearray(path.read_bytes())
    for name in names:
        data[header.tensors[name].start] ^= 4
    path.write_bytes(data)


def test_verify_prints_a_line_for_each_damaged_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, STATE, CheckpointMetadata(step=3))
    assert "verified: 4 of 4 tensors are as written" in output_of(capsys, path, "--verify")
    assert facts(capsys, path, "--verify")["verified"] == {"tensors": 4, "checked": 4, "damaged": []}
    damage(path, "0.weight", "2.bias")
    assert run(["inspect", str(path), "--verify"]) == 1
    out, errors = capsys.readouterr()
    lines = [line for line in out.splitlines() if line.startswith("damaged: ")]
    assert len(lines) == 2
    assert f"{path}: tensor '0.weight' is damaged" in lines[0]
    assert "verified: 2 of 4 tensors are as written" in out
    assert errors == f"error: {path}: 2 of 4 tensors are damaged\n"
    assert run(["inspect", str(path), "--verify", "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["verified"]["damaged"]) == 2
    assert "verified" not in facts(capsys, path)


def test_verify_reports_tensors_without_hashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(STATE, tmp_path / "step-1.safetensors")
    message = "verified: all 4 tensors were read; there are no hashes to check them against"
    assert message in output_of(capsys, tmp_path / "step-1.safetensors", "--verify")
    save_checkpoint(tmp_path / "step-2.safetensors", {name: tensor + 1 for name, tensor in STATE.items()})
    assert "verified: 4 of 8 tensors; the other 4 carry no hash" in output_of(capsys, tmp_path, "--verify")
    damage(tmp_path / "step-2.safetensors", "2.bias")
    assert run(["inspect", str(tmp_path), "--verify"]) == 1
    assert "step-2.safetensors: tensor '2.bias' is damaged" in capsys.readouterr().out


def test_verify_detects_damage_in_a_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.h5"
    features = torch.randn(40, 5)
    with DumpWriter(path, None, classes=3, features=5) as writer:
        writer.write_classifier(torch.randn(3, 5))
        writer.start_split("test", 40, logits=False)
        writer.append("test", features, torch.arange(40) % 3)
    assert "verified: 2 of 2 tensors are as written" in output_of(capsys, path, "--verify")
    data = bytearray(path.read_bytes())
    data[data.index(features.numpy().tobytes()[:64])] ^= 1
    path.write_bytes(data)
    assert run(["inspect", str(path), "--verify"]) == 1
    out = capsys.readouterr().out
    assert "damaged: " in out
    assert "a.h5: test/features: cannot be read and may be damaged" in out


LOADED = """
import sys
from ckpt_probe.cli.app import run
code = run(["inspect", sys.argv[1]])
assert not {"torch", "numpy", "scipy", "h5py", "safetensors"} & set(sys.modules)
sys.exit(code)
"""


def test_safetensors_are_inspected_without_torch(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    words = [sys.executable, "-c", LOADED, str(tmp_path / "a.safetensors")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_name_with_a_line_break_cannot_add_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"x\nverified: all 3 tensors": torch.zeros(1)}, file)
    assert run(["inspect", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("verified")]
    assert lines[-1].startswith("x␊verified: all 3 tensors")


def test_a_traceback_of_debug_contains_no_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a\x1b]0;title\x07.safetensors"
    file.write_text("no tensors")
    assert run(["inspect", str(file), "--debug"]) == 1
    errors = capsys.readouterr().err
    assert "Traceback" in errors
    assert "\x1b" not in errors


def test_damaged_checkpoints_of_a_series_are_named_after_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 3):
        save_checkpoint(tmp_path / f"step-{step}.safetensors", {"w": torch.full((2, 2), float(step))})
    (tmp_path / "step-2.pt").write_bytes(b"")
    for words in ([], ["--verify"]):
        assert run(["inspect", str(tmp_path), *words]) == 1
        out, errors = capsys.readouterr()
        assert re.search(r"step-1 .*\nstep-3 .*\n(.*\n)?audit: 2 checkpoints", out)
        assert errors.endswith("1 of 3 checkpoints cannot be opened: " + f"{tmp_path / 'step-2.pt'}: an empty file\n")
    assert run(["inspect", str(tmp_path), "--json"]) == 1
    described = json.loads(capsys.readouterr().out)
    assert [row["step"] for row in described["checkpoints"]] == [1, 3]
    assert described["unreadable"] == {"step-2": f"{tmp_path / 'step-2.pt'}: an empty file"}
