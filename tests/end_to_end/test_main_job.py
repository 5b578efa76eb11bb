"""Tests of the main commands as users run them: train, extract, analyze, interpolate, inspect, demo."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from .conftest import Run


def test_analyze_prints_the_same_numbers_as_a_table_json_or_csv(probe: Run, trained: Path, tmp_path: Path) -> None:
    table = probe("analyze", trained / "dumps", "--split", "test")
    assert table.returncode == 0, table.stderr
    lines = probe("analyze", trained / "dumps", "--split", "test", "--json")
    records = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [record["step"] for record in records] == [0, 10, 60]
    assert all(len(line) <= 120 for line in table.stdout.splitlines())
    for record in records:
        row = next(line for line in table.stdout.splitlines() if line.split()[0] == str(record["step"]))
        assert f"{record['accuracy']:.4f}" in row
    text = probe("analyze", trained / "dumps", "--split", "test", "--csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["class.mir"]) for row in rows] == [record["class.mir"] for record in records]
    done = probe("analyze", trained / "dumps", "-o", "all.csv")
    assert "all.csv: 6 records" in done.stderr
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 7
    wide = probe("analyze", trained / "dumps", "--wide")
    assert "equiang. w" in wide.stdout
    assert probe("analyze", trained / "dumps", "--json", "--csv").returncode == 2


def test_metrics_change_as_expected_while_the_network_learns(probe: Run, trained: Path) -> None:
    lines = probe("analyze", trained / "dumps", "--split", "train", "--json", "--centred").stdout.splitlines()
    first, _, last = (json.loads(line) for line in lines)
    assert last["accuracy"] > first["accuracy"] + 0.3
    for name in ("loss", "nc1.cdnv", "nc3.duality", "nc4.disagreement", "within.entropy_mean"):
        assert last[name] < 0.8 * first[name], name
    assert 0 < last["centred.mir"] < 1
    assert last["route"] == "dense-moments"
    assert last["missing"] is None


def test_extract_reports_skipped_dumps_and_uses_its_options(probe: Run, trained: Path, tmp_path: Path) -> None:
    first = probe("extract", trained / "run", "-o", "dumps", "--split", "test", "--limit", "40", "--dtype", "float64")
    assert first.returncode == 0, first.stderr
    assert "dumps: 3 dumps written, 0 already complete" in first.stderr
    second = probe("extract", trained / "run", "-o", "dumps", "--split", "test", "--limit", "40", "--dtype", "float64")
    assert "dumps: 0 dumps written, 3 already complete" in second.stderr
    [facts] = [json.loads(probe("inspect", "dumps/step-000010.h5", "--json").stdout)]
    assert facts["whole"] is True
    assert {t["name"]: t["shape"] for t in facts["tensors"]}["test/features"] == [40, 16]
    assert facts["metadata"]["forward_dtype"] == "float64"
    assert probe("extract", trained / "run", "-o", "dumps", "--model-argument", "[1]").returncode == 2
    assert probe("extract", trained / "run", "-o", "dumps", "--data-argument", "{").returncode == 2


def test_inspect_prints_tensors_metadata_and_the_head(probe: Run, trained: Path) -> None:
    path = trained / "run" / "checkpoints" / "step-000060.safetensors"
    output = probe("inspect", path).stdout
    for part in ("a whole checkpoint", "parameters: 1,210", "head: 3 (Linear", "3.weight", "10 × 16", "step: 60"):
        assert part in output
    facts = json.loads(probe("inspect", path, "--json").stdout)
    assert facts["classifier"] == "3"
    assert facts["metadata"]["metrics"]["test"]["accuracy"] > 0.3
    assert {t["name"]: (t["dtype"], t["shape"]) for t in facts["tensors"]}["1.bias"] == ("F32", [16])
    assert "dump" in probe("inspect", trained / "dumps" / "step-000060.h5").stdout


def test_interpolate_prints_points_and_barriers_and_writes_them(probe: Run, trained: Path, tmp_path: Path) -> None:
    a, b = (trained / "run" / "checkpoints" / f"step-{step}.safetensors" for step in ("000010", "000060"))
    done = probe("interpolate", a, b, "-o", "path", "--points", "3")
    assert done.returncode == 0, done.stderr
    assert "train: loss " in done.stdout
    assert "barrier in loss" in done.stdout
    assert "path: 6 records, one per point and split" in done.stderr
    points = [json.loads(line) for line in (tmp_path / "path" / "points.jsonl").read_text().splitlines()]
    assert [point["alpha"] for point in points] == [0, 0, 0.5, 0.5, 1, 1]
    summary = json.loads((tmp_path / "path" / "path.json").read_text())["summary"]
    assert [record["split"] for record in summary] == ["train", "test"]
    lines = probe("interpolate", a, b, "-o", "other", "--points", "3", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == points
    assert probe("interpolate", a, b, "--alpha", "0.3", "--out", "mid.safetensors").returncode == 0
    assert "whole checkpoint" in probe("inspect", "mid.safetensors").stdout
    assert probe("extract", "mid.safetensors", "-o", "mid").returncode == 0


def test_the_demo_states_the_numbers_of_its_files_and_commands_that_run(
    probe: Run, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(demo, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("CKPT_PROBE_CACHE", str(tmp_path / "cache"))
    output = (demo / "stdout.txt").read_text()
    records = [
        json.loads(line)
        for line in probe("analyze", "ckpt-probe-demo/dumps/a", "--json").stdout.splitlines()
        if '"split": "train"' in line
    ]
    loss = {str(record["step"]): record["loss"] for record in records}
    change = re.search(r"train loss .*changed .*between steps (\d+) and (\d+) \((\S+) → (\S+)\)", output)
    assert change is not None, output
    assert [f"{loss[change[1]]:.4g}", f"{loss[change[2]]:.4g}"] == [change[3], change[4]]
    assert re.search(rf"^ *{records[-1]['step']}  train +{records[-1]['accuracy']:.3f} ", output, re.MULTILINE)
    path = json.loads((tmp_path / "ckpt-probe-demo" / "paths" / "ab" / "path.json").read_text())
    assert f"the loss {path['summary'][0]['barrier.loss']:.4f}" in output
    next_commands = [line.split() for line in output.splitlines() if line.startswith("  ckpt-probe ")]
    assert len(next_commands) == 4
    for words in next_commands:
        assert probe(*words[1:]).returncode == 0, words
    refused = probe("demo")
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr


@pytest.mark.parametrize("verb", ["demo", "train", "extract", "analyze", "interpolate", "inspect"])
def test_every_command_has_help(probe: Run, verb: str) -> None:
    done = probe(verb, "--help")
    assert done.returncode == 0
    assert f"ckpt-probe {verb}" in done.stdout
