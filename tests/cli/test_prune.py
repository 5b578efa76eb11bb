"""Tests of the command `prune`: a line per sparsity, a series for extract and analyze, and refused input."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckpt_probe.checkpoints import open_checkpoint, save_checkpoint
from ckpt_probe.cli.app import run

Probe = Callable[..., tuple[int, list[str], list[str]]]

CONFIG = """\
[data]
name = "digits"
[model]
name = "mlp"
arguments = { hidden = [16] }
[training]
steps = 60
"""
WEIGHTS = 64 * 16 + 16 * 10


@pytest.fixture
def probe(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Probe:
    """Return a function that runs a command in a new directory and returns exit code, lines of output and of errors."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG)

    def call(*words: object) -> tuple[int, list[str], list[str]]:
        code = run([str(word) for word in words])
        text = capsys.readouterr()
        return code, text.out.splitlines(), text.err.splitlines()

    return call


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "config.toml").write_text(CONFIG)
    assert run(["train", str(folder / "config.toml"), "-o", str(folder / "run"), "--device", "cpu"]) == 0
    return folder / "run" / "checkpoints" / "step-000060.safetensors"


def test_pruned_checkpoints_are_extracted_and_analyzed_in_the_order_of_sparsity(probe: Probe, checkpoint: Path) -> None:
    code, lines, errors = probe("prune", checkpoint, "-o", "out", "--sparsity", "0.9,0,0.25")
    assert code == 0
    assert lines == [
        f"sparsity {share:g}: {round(share * WEIGHTS):,} of {WEIGHTS:,} weights are zero" for share in (0, 0.25, 0.9)
    ]
    assert errors == ["out: 3 checkpoints written, 0 already complete"]
    assert probe("extract", "out", "-o", "dumps", "--device", "cpu")[0] == 0
    code, lines, _ = probe("analyze", "dumps", "--json", "--split", "test")
    records = [json.loads(line) for line in lines]
    assert code == 0
    assert [record["checkpoint"] for record in records] == ["sparsity-0.000", "sparsity-0.250", "sparsity-0.900"]
    with open_checkpoint(checkpoint) as opened:
        assert records[0]["accuracy"] == pytest.approx(opened.metadata.metrics["test"]["accuracy"])
    assert records[0]["loss"] < records[2]["loss"]
    assert probe("prune", checkpoint, "-o", "out", "--sparsity", "0.9,0,0.25")[2] == [
        "out: 0 checkpoints written, 3 already complete"
    ]


def test_the_default_sparsities_range_from_0_to_99_percent(probe: Probe, checkpoint: Path) -> None:
    code, lines, _ = probe("prune", checkpoint, "-o", "out", "--set", "scope=layer", "--keep-classifier")
    assert code == 0
    assert [line.split(":")[0] for line in lines] == [
        f"sparsity {share}" for share in ("0", "0.2", "0.5", "0.8", "0.9", "0.95", "0.98", "0.99")
    ]
    assert lines[-1] == "sparsity 0.99: 1,014 of 1,024 weights are zero"


def test_retraining_prints_accuracy_and_uses_the_seed(probe: Probe, checkpoint: Path) -> None:
    words = ("prune", checkpoint, "--sparsity", "0.5,0.9", "--retrain", "config.toml", "--set", "device=cpu", "-o")
    code, lines, _ = probe(*words, "out", "--set", "seed=7")
    assert code == 0
    for line, name in zip(lines, ("sparsity-0.500", "sparsity-0.900"), strict=True):
        with open_checkpoint(Path("out") / f"{name}.safetensors") as opened:
            metadata, zeros = opened.metadata, sum(int((opened.read(n) == 0).sum()) for n in ("1.weight", "3.weight"))
        accuracy = ", ".join(f"{split} {values['accuracy']:.4f}" for split, values in metadata.metrics.items())
        assert line.endswith(f": {zeros:,} of {WEIGHTS:,} weights are zero; accuracy {accuracy}")
        assert (metadata.seed, zeros, metadata.step) == (7, round(float(name[-5:]) * WEIGHTS), 60)
    assert probe("extract", "out", "-o", "dumps", "--split", "test", "--device", "cpu")[0] == 0
    code, lines, _ = probe("analyze", "dumps", "--json")
    assert [json.loads(line)["checkpoint"] for line in lines] == ["sparsity-0.500", "sparsity-0.900"]


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("--sparsity", "1"), 2, "sparsity: expected a fraction of at least 0 and below 1, found 1.0"),
        (("--sparsity", "-0.1"), 2, "found -0.1"),
        (("--sparsity", "nan"), 2, "'--sparsity': expected numbers such as 0.5,2, found 'nan'"),
        (("--sparsity", "half"), 2, "found 'half'"),
        (("--sparsity", ""), 2, "'--sparsity': expected numbers"),
        (("--sparsity", "0.5,0.9,0.50"), 2, "0.5 occurs twice"),
        (("--set", "seed=3"), 2, "--seed needs --retrain"),
        (("--set", "device=cpu"), 2, "--device needs --retrain"),
        (("--set", "classifier=3"), 2, "--classifier needs --keep-classifier"),
        (("--retrain", "missing.toml"), 2, "missing.toml: cannot be read"),
        (("--keep-classifier",), 2, "to find its classifier with; use --classifier"),
        (("--out", "config.toml"), 2, "config.toml: a file; expected a directory"),
    ],
)
def test_invalid_use_is_refused_in_one_line_and_nothing_is_written(
    probe: Probe, tmp_path: Path, words: tuple[str, ...], code: int, part: str
) -> None:
    save_checkpoint(tmp_path / "a.safetensors", {"w": torch.ones(2, 2)})
    out = () if "--out" in words else ("--out", "out")
    exit_code, lines, errors = probe("prune", "a.safetensors", *out, *words)
    assert (exit_code, lines, len(errors)) == (code, [], 1)
    assert errors[0].startswith("error: ")
    assert part in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_missing_or_invalid_checkpoint_and_an_output_of_another_pruning_are_refused(
    probe: Probe, tmp_path: Path
) -> None:
    assert probe("prune", "a.safetensors", "-o", "out")[::2] == (1, ["error: a.safetensors: no such file"])
    for name, value in (("a", 1.0), ("b", 2.0), ("c", float("nan"))):
        save_checkpoint(tmp_path / f"{name}.safetensors", {"w": torch.full((2, 2), value)})
    code, _, errors = probe("prune", "c.safetensors", "-o", "out", "--sparsity", "0.5")
    assert (code, errors) == (1, ["error: c.safetensors: tensor 'w' contains 4 weights that are NaN or infinite"])
    assert not (tmp_path / "out").exists()
    assert probe("prune", "a.safetensors", "-o", "out", "--sparsity", "0.5")[0] == 0
    code, _, errors = probe("prune", "b.safetensors", "-o", "out", "--sparsity", "0.5")
    assert code == 2
    assert (
        "out/sparsity-0.500.safetensors: was pruned with another checkpoint; choose another directory, or --overwrite"
        in errors[0]
    )
    assert probe("prune", "b.safetensors", "-o", "out", "--sparsity", "0.5", "--overwrite")[0] == 0
    with open_checkpoint(tmp_path / "out" / "sparsity-0.500.safetensors") as opened:
        assert opened.read("w").flatten().tolist() == [0, 0, 2, 2]


def test_a_retraining_that_does_not_fit_the_checkpoint_is_refused(probe: Probe, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", {"w": torch.ones(2, 2)})
    code, _, errors = probe("prune", "a.safetensors", "-o", "out", "--sparsity", "0.5", "--retrain", "config.toml")
    assert code == 1
    assert "the model does not fit the checkpoint" in errors[-1]
    assert not list((tmp_path / "out").glob("*.safetensors"))
