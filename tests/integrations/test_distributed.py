"""Two processes are one evaluation: the numbers of one process, one file, and an error that both hear of."""

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
"""Sums are taken in another order: what that may change of a number, relative to it, where the model is float64."""


def together(kind: str, folder: Path) -> list[Any]:
    """What each of two processes found."""
    commands = [[sys.executable, SCRIPT, kind, folder, str(rank)] for rank in (0, 1)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    told = [process.communicate(timeout=240)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(told)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def same(record: dict, expected: dict) -> None:
    for name in expected.keys() - {"checkpoint", "step", "epoch", "split"}:
        value = expected[name]
        close = pytest.approx(value, rel=SAME, abs=1e-12) if isinstance(value, float) else value
        assert record[name] == close, name


def test_two_processes_have_the_numbers_of_one(tmp_path: Path) -> None:
    found = together("plain", tmp_path)
    [record] = cp.read_records(tmp_path / "records.jsonl")
    script = runpy.run_path(str(SCRIPT))
    model, data = script["network"](), script["samples"]()
    with torch.no_grad(), cp.Probe(model, tmp_path / "one.jsonl").evaluation("test", 0) as evaluation:
        for start in range(0, len(data), 20):
            inputs, labels = data[start : start + 20]
            model(inputs)
            evaluation.update(labels)
    assert record["samples"] == script["SAMPLES"]
    same(record, evaluation.record)
    assert found[0] == found[1]
    assert "rank 1: features: 75 rows hold NaN" in found[0]["told"]
    assert "records.jsonl: has records of another run" in found[0]["told"]
