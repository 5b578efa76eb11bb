"""Tests of metrics of classifier weights: equal to those of dumps and of brute force, for files of several formats."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ckpt_probe as cp
from ckpt_probe.analysis import analyze_features, weights_record
from ckpt_probe.checkpoints import CheckpointMetadata, save_checkpoint
from ckpt_probe.cli.app import run
from ckpt_probe.errors import DataError, UsageError


def network(classes: int = 5, width: int = 8, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, classes))


def brute_etf_distance(weights: np.ndarray) -> float:
    count = len(weights)
    gram, simplex = weights @ weights.T, np.eye(count) - 1 / count
    return float(np.linalg.norm(gram / np.linalg.norm(gram) - simplex / np.linalg.norm(simplex)))


def test_numbers_of_weights_equal_those_of_a_dump_and_of_brute_force() -> None:
    random = np.random.default_rng(0)
    weights, labels = random.normal(size=(6, 9)), np.arange(60) % 6
    record = weights_record(weights, orders=(2.0,))
    full = analyze_features(weights[labels] + random.normal(size=(60, 9)), labels, weights, orders=(2.0,))
    shared = [name for name in record if name in full and name not in {"missing", "samples"}]
    assert {
        "class.entropy_weights",
        "renyi_2.class.entropy_weights",
        "nc2.equinorm_weights",
        "nc2.equiangular_weights",
        "reference.entropy",
    } <= set(shared)
    for name in shared:
        assert record[name] == pytest.approx(full[name], rel=1e-12), name
    assert record["class.effective_rank_weights"] == pytest.approx(math.exp(record["class.entropy_weights"]), rel=1e-12)
    assert record["nc2.etf_weights"] == pytest.approx(brute_etf_distance(weights), rel=1e-10)


def test_a_simplex_has_the_values_at_collapse() -> None:
    simplex = np.eye(7) - 1 / 7
    record = weights_record(simplex)
    assert record["class.entropy_weights"] == pytest.approx(record["reference.entropy"], rel=1e-12)
    for name in ("nc2.equinorm_weights", "nc2.equiangular_weights", "nc2.etf_weights"):
        assert record[name] == pytest.approx(0, abs=1e-7), name


def test_zero_rows_are_left_out_and_counted() -> None:
    weights = np.random.default_rng(0).normal(size=(5, 4))
    with_dead = np.concatenate([weights, np.zeros((2, 4))])
    assert weights_record(with_dead) == {**weights_record(weights), "classes": 7, "classes_left_out": 2}
    with pytest.raises(DataError, match="1 of 3 rows have a length other than zero"):
        weights_record(np.eye(3)[:, :1])


def test_a_series_of_pickled_checkpoints_has_records_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    for step in (10, 20):
        torch.save({"epoch": step, "state_dict": network(seed=step).state_dict()}, tmp_path / f"step-{step}.pth")
    monkeypatch.chdir(tmp_path)
    assert run(["weights", ".", "--json"]) == 0
    output = capsys.readouterr()
    records = [json.loads(line) for line in output.out.splitlines()]
    assert [(record["step"], record["classifier"]) for record in records] == [(10, "2.weight"), (20, "2.weight")]
    assert "classifier weights: 2.weight, since" in output.err
    for record in records:
        expected = cp.matrix_entropy(network(seed=record["step"])[2].weight.detach().double().numpy())
        assert record["class.entropy_weights"] == pytest.approx(expected, rel=1e-12)
    cached = cp.weights(tmp_path, cache=True)
    assert [record["class.entropy_weights"] for record in cached] == [r["class.entropy_weights"] for r in records]


def test_a_cached_record_is_used_only_for_the_same_weights(tmp_path: Path, user_cache: Path) -> None:
    path = tmp_path / "step-1.safetensors"
    save_checkpoint(path, network().state_dict())
    [first] = cp.weights(path, cache=True)
    [file] = (user_cache / "records").glob("*.json")
    text = json.loads(file.read_text())
    text["records"][0]["record"]["class.entropy_weights"] = -1.0
    # A record whose hash differs from the cached one is computed again.
    damaged = json.dumps(text)
    file.write_text(damaged)
    assert cp.weights(path, cache=True) == [first]
    text["sha256"] = hashlib.sha256(json.dumps(text["records"], sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps(text))
    assert [r["class.entropy_weights"] for r in cp.weights(path, cache=True)] == [-1.0]
    save_checkpoint(path, network(seed=3).state_dict(), overwrite=True)
    [changed] = cp.weights(path, cache=True)
    assert changed["class.entropy_weights"] not in (-1.0, first["class.entropy_weights"])


def test_the_head_is_named_by_metadata_or_the_caller(tmp_path: Path) -> None:
    path, model = tmp_path / "a.safetensors", network()
    save_checkpoint(path, model.state_dict(), CheckpointMetadata(classifier="0"))
    assert cp.weights(path)[0]["classifier"] == "0.weight"
    assert cp.weights(path, classifier="2")[0]["classes"] == 5
    with pytest.raises(UsageError, match=r"a\.safetensors: no tensor head or head\.weight; likely heads: .*2"):
        cp.weights(path, classifier="head")[0]
    with pytest.raises(DataError, match=r"0\.bias is float32 of shape \(8,\), where classifier weights"):
        cp.weights(path, classifier="0.bias")[0]


def test_a_convolution_can_be_the_head(tmp_path: Path) -> None:
    weight = torch.randn(4, 6, 1, 1)
    save_checkpoint(
        tmp_path / "a.safetensors", {"features.weight": torch.randn(6, 3, 3, 3), "classifier.weight": weight}
    )
    [reading] = cp.weights(tmp_path / "a.safetensors")
    assert reading["class.entropy_weights"] == pytest.approx(
        weights_record(weight[:, :, 0, 0])["class.entropy_weights"]
    )


def test_a_missing_head_and_options_without_effect_are_refused(tmp_path: Path, capsys) -> None:
    save_checkpoint(tmp_path / "a.safetensors", {"running_mean": torch.zeros(3)})
    assert run(["weights", str(tmp_path)]) == 1
    assert "no tensor looks like classifier weights; name the layer by --classifier" in capsys.readouterr().err
    assert run(["weights", str(tmp_path), "--per-class"]) == 2
    assert "No such option '--per-class' (see: ckpt-probe weights --help)" in capsys.readouterr().err
    assert run(["analyze", str(tmp_path), "--weights-only"]) == 2
    assert "use the command ckpt-probe weights CHECKPOINTS" in capsys.readouterr().err
