"""Tests that two processes make one evaluation: the numbers of one process, one file, and an error in both of them."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ckpt_probe as cp

SCRIPT = Path(__file__).with_name("distributed.py")
SAME = 1e-12
"""Relative tolerance of a float64 model's numbers, since the sums are taken in another order."""


def run_two_processes(kind: str, folder: Path, commands: Any) -> list[Any]:
    """Return the result of each of two processes."""
    words = [commands.script(SCRIPT, kind, folder, rank) for rank in (0, 1)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in words]
    errors = [process.communicate(timeout=240)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(errors)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def same(record: dict, expected: dict) -> None:
    for name in expected.keys() - {"checkpoint", "step", "epoch", "split"}:
        value = expected[name]
        close = pytest.approx(value, rel=SAME, abs=1e-12) if isinstance(value, float) else value
        assert record[name] == close, name


def record_of_one_process(folder: Path) -> dict:
    """Return the record of a single process."""
    script = runpy.run_path(str(SCRIPT))
    model, data = script["network"](), script["samples"]()
    with torch.no_grad(), cp.Probe(model, folder / "alone.jsonl").evaluation("test", 0) as evaluation:
        for start in range(0, len(data), 20):
            inputs, labels = data[start : start + 20]
            model(inputs)
            evaluation.update(labels)
    assert evaluation.record is not None
    assert evaluation.record["samples"] == script["SAMPLES"]
    return evaluation.record


def test_two_processes_have_the_numbers_of_one(tmp_path: Path, commands: Any) -> None:
    messages = run_two_processes("plain", tmp_path, commands)
    [record] = cp.read_records(tmp_path / "records.jsonl")
    same(record, record_of_one_process(tmp_path))
    assert messages[0] == messages[1]
    assert "rank 1: features: 75 rows hold NaN" in messages[0]["messages"]
    assert "records.jsonl: has records of another run" in messages[0]["messages"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hugging_face", "lightning"])
def test_two_processes_of_a_framework_have_the_numbers_of_one(kind: str, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, SCRIPT, kind, tmp_path], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    [record] = cp.read_records(tmp_path / "records.jsonl")
    same(record, record_of_one_process(tmp_path))
    logged = [json.loads((tmp_path / f"{rank}.json").read_text())["mir"] for rank in (0, 1)]
    assert logged == pytest.approx([record["class.mir"]] * 2, rel=1e-6)
