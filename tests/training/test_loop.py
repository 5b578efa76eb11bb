"""Tests of training on the embedded digits: what a run writes, how it resumes, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_probe.checkpoints import open_checkpoint, open_series
from ckpt_probe.config import TrainingConfig, load_config
from ckpt_probe.data import load_data
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.models import build_model, load_weights
from ckpt_probe.training import loop, require_free, train

CONFIG = """
seed = {seed}
[data]
name = "digits"
[model]
name = "mlp"
arguments = {{ hidden = [16], dropout = 0.1 }}
[training]
steps = {steps}
batch_size = {batch}
[optimizer]
name = "{optimizer}"
learning_rate = {rate}
[checkpoints]
steps = [5, 20]
"""


def config(directory: Path, **changes: object) -> TrainingConfig:
    values = {"seed": 3, "steps": 40, "batch": 64, "optimizer": "sgd", "rate": 0.05, "extra": ""} | changes
    path = directory / "config.toml"
    path.write_text(CONFIG.format(**values) + str(values["extra"]))
    return load_config(path)


def weights(path: Path) -> dict[str, torch.Tensor]:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.state_dict()


def lines(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in rows]


def same(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_runs_checkpoints_rebuild_the_model_and_its_numbers(tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = train(config(tmp_path, steps=300, rate=0.1), run, device="cpu")
    members = open_series(run)
    assert [member.step for member in members] == [0, 5, 20, 300]
    assert (summary.first_step, summary.last_step, summary.checkpoints) == (0, 300, 4)
    with open_checkpoint(members[-1].path) as checkpoint:
        metadata, tensors = checkpoint.metadata, checkpoint.state_dict()
    assert (metadata.model, metadata.data, metadata.seed, metadata.step) == ("mlp", "digits", 3, 300)
    model = build_model(str(metadata.model), metadata.model_arguments)
    load_weights(model, tensors, source="test")
    split = load_data("digits").split("test")
    inputs, labels = split.batch(slice(None))
    with torch.no_grad():
        accuracy = (model.eval()(inputs).argmax(1) == labels).double().mean().item()
    assert accuracy == pytest.approx(metadata.metrics["test"]["accuracy"])
    assert accuracy > 0.85
    at_checkpoints = [line for line in lines(run) if line.get("split") == "test"]
    assert [line["step"] for line in at_checkpoints] == [0, 5, 20, 300]
    assert at_checkpoints[-1]["accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stopped_after", [3, 27])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path,
    optimizer: str,
    stopped_after: int,
    interrupting: Callable[..., Any],
) -> None:
    settings = config(tmp_path, optimizer=optimizer, rate=0.01)
    train(settings, tmp_path / "whole", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "cut", device="cpu", progress=interrupting(stopped_after))
    torch.manual_seed(99)
    train(settings, tmp_path / "cut", device="cpu", resume=True)
    for name in ("step-000005", "step-000020", "step-000040"):
        file = f"checkpoints/{name}.safetensors"
        assert same(tmp_path / "whole" / file, tmp_path / "cut" / file)
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")


def test_an_incomplete_line_of_the_log_is_dropped_on_resume(tmp_path: Path, interrupting: Callable[..., Any]) -> None:
    settings = config(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "run", device="cpu", progress=interrupting(30))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 29, "batch_l')
    train(settings, tmp_path / "run", device="cpu", resume=True)
    steps = [line["step"] for line in lines(tmp_path / "run")]
    assert steps == sorted(steps)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    settings = config(tmp_path)
    train(settings, tmp_path / "run", device="cpu")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    summary = train(settings, tmp_path / "run", device="cpu", resume=True)
    assert summary.first_step == summary.last_step == 40
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_an_existing_run_and_a_changed_configuration_are_refused(tmp_path: Path) -> None:
    train(config(tmp_path), tmp_path / "run", device="cpu")
    with pytest.raises(UsageError, match=r"exists already; `resume=True`"):
        train(config(tmp_path), tmp_path / "run", device="cpu")
    with pytest.raises(UsageError, match=r"optimizer.learning_rate 0.05 → 0.01"):
        train(config(tmp_path, rate=0.01), tmp_path / "run", device="cpu", resume=True)
    assert train(config(tmp_path, steps=10), tmp_path / "run", device="cpu", overwrite=True).last_step == 10
    assert [member.step for member in open_series(tmp_path / "run")] == [0, 5, 10]


def test_two_runs_start_from_a_shared_trunk(tmp_path: Path) -> None:
    train(config(tmp_path), tmp_path / "a", device="cpu")
    trunk = tmp_path / "a" / "checkpoints" / "step-000005.safetensors"
    start = f'[start]\nfrom = "{trunk}"\nkeep_step = true\n'
    summary = train(config(tmp_path, seed=4, extra=start), tmp_path / "b", device="cpu")
    assert (summary.first_step, summary.last_step) == (5, 40)
    assert [member.step for member in open_series(tmp_path / "b")] == [5, 20, 40]
    assert same(trunk, tmp_path / "b" / "checkpoints" / "step-000005.safetensors")
    last = "checkpoints/step-000040.safetensors"
    assert not same(tmp_path / "a" / last, tmp_path / "b" / last)


def test_a_start_of_another_shape_is_an_error(tmp_path: Path) -> None:
    train(config(tmp_path), tmp_path / "a", device="cpu")
    start = f'[start]\nfrom = "{tmp_path}/a/checkpoints/step-000005.safetensors"\n'
    mismatched = config(tmp_path, extra=start)
    mismatched = mismatched.model_copy(
        update={"model": mismatched.model.model_copy(update={"arguments": {"hidden": [8]}})}
    )
    with pytest.raises(DataError, match="other shape"):
        train(mismatched, tmp_path / "b", device="cpu")


def test_a_full_batch_contains_every_sample(tmp_path: Path) -> None:
    train(config(tmp_path, steps=3, batch='"full"'), tmp_path / "run", device="cpu")
    assert [line["epoch"] for line in lines(tmp_path / "run") if line.get("split") == "train"] == [0, 3]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    with pytest.raises(DataError, match=r"the loss is (nan|inf); try a lower learning rate"):
        train(config(tmp_path, rate=1e30), tmp_path / "run", device="cpu")


@pytest.mark.parametrize("loss", ["mir", "hdr", "cma"])
def test_a_loss_of_matrix_information_that_diverges_is_reported_with_its_step(
    study: Callable[[str], str], tmp_path: Path, loss: str
) -> None:
    settings = {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "arguments": {"hidden": [8]}},
        "training": {"steps": 40},
        "optimizer": {"learning_rate": 1e30},
        "loss": {loss: 0.1},
    }
    if loss == "cma":
        captions = [[f"digit {digit}"] for digit in range(10)]
        settings["model"] = {
            "name": study("cma/two_source.py:two_source"),
            "arguments": {"captions": captions, "channels": []},
        }
    with pytest.raises(DataError, match=r"^step [2-9]: .*NaN or infinity.*; try a lower learning rate$"):
        train(TrainingConfig.model_validate(settings), tmp_path / "run", device="cpu")


def test_a_diverged_network_is_not_written(tmp_path: Path) -> None:
    settings = config(tmp_path, rate=1e30)
    settings = settings.model_copy(update={"checkpoints": settings.checkpoints.model_copy(update={"steps": [1]})})
    with pytest.raises(DataError, match=r"step 1: the loss on train is (nan|inf)"):
        train(settings, tmp_path / "run", device="cpu")
    assert [member.step for member in open_series(tmp_path / "run")] == [0]
    assert {line["step"] for line in lines(tmp_path / "run")} == {0, 1}
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "Infinity" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_checkpoints_beyond_the_last_step_are_reported(tmp_path: Path, interrupting: Callable[..., Any]) -> None:
    progress_log = interrupting(1000)
    train(config(tmp_path, steps=10), tmp_path / "run", device="cpu", progress=progress_log)
    assert progress_log.messages == ["no checkpoint at step 20: training ends at step 10"]


def test_a_run_killed_while_it_is_overwritten_is_not_resumed_as_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train(config(tmp_path), run, device="cpu")
    number_of_files = len([file for file in run.rglob("*") if file.is_file()])
    changed = config(tmp_path, seed=5)
    for killed_after in range(number_of_files):
        train(config(tmp_path), run, device="cpu", overwrite=True)
        remaining, unlink = [killed_after], Path.unlink

        def dying(path: Path, remaining=remaining, unlink=unlink, **options) -> None:
            if path.parent in {run, run / "checkpoints"} and not path.name.startswith("."):
                if not remaining[0]:
                    raise KeyboardInterrupt
                remaining[0] -= 1
            unlink(path, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", dying)
            with pytest.raises(KeyboardInterrupt):
                train(changed, run, device="cpu", overwrite=True)
        with pytest.raises(UsageError, match="`resume=True` needs the same configuration, which changed: seed 3 → 5"):
            train(changed, run, device="cpu", resume=True)


def test_a_run_without_its_configuration_is_not_resumed(tmp_path: Path) -> None:
    train(config(tmp_path), tmp_path / "run", device="cpu")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(UsageError, match=r"state\.safetensors: cannot be resumed, because config.json is missing"):
        train(config(tmp_path), tmp_path / "run", device="cpu", resume=True)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"model": {"name": "mlp", "arguments": {"hidden": [8], "classes": 2}}},
            "gives 2 logits, fewer than the data's 10",
        ),
        ({"model": {"name": "cnn", "arguments": {"channels": [4] * 6}}}, r"inputs of shape \(1, 8, 8\) of float32"),
        ({"data": {"name": "npz:pairs.npz"}}, r"take inputs of shape \(2,\) of int64 \(RuntimeError"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: dict, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("pairs.npz", x_train=np.arange(24).reshape(12, 2) % 7, y_train=np.arange(12) % 7)
    settings = {"data": {"name": "digits"}, "model": {"name": "mlp"}, "training": {"steps": 3}, **section}
    with pytest.raises(DataError, match=r"^\[model\] \w+, \[data\] [^\n]*" + message) as caught:
        train(TrainingConfig.model_validate(settings), tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("evaluate", "prefix"), [(None, ""), ([], r"step 1: ")])
def test_an_index_beyond_the_models_embedding_is_an_error(
    study: Callable[[str], str], tmp_path: Path, evaluate: list | None, prefix: str
) -> None:
    pairs, labels = np.arange(24).reshape(12, 2) % 7, np.arange(12) % 7
    pairs[9] = 7
    np.savez(tmp_path / "pairs.npz", x_train=pairs, y_train=labels)
    settings = {
        "data": {"name": f"npz:{tmp_path / 'pairs.npz'}"},
        "model": {
            "name": study("grokking/modular.py:modular_mlp"),
            "arguments": {"modulus": 7, "embedding": 4, "hidden": 6},
        },
        "training": {"steps": 3, "batch_size": "full"},
        "checkpoints": {"evaluate": evaluate},
    }
    message = f"^{prefix}the model does not take some of the samples: they hold an index out of its range"
    with pytest.raises(DataError, match=message):
        train(TrainingConfig.model_validate(settings), tmp_path / "run", device="cpu")


def test_an_overwrite_does_not_remove_the_start_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "seeds" / "seed-1"
    train(config(tmp_path), run, device="cpu")
    checkpoint = run / "checkpoints" / "step-000040.safetensors"
    settings = config(tmp_path, extra=f'[start]\nfrom = "{checkpoint}"\n')
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(
        UsageError, match=r"step-000040\.safetensors: the run starts from this file and would remove it"
    ):
        train(settings, run, device="cpu", overwrite=True)
    directories = [tmp_path / "seeds" / f"seed-{seed}" for seed in (0, 1)]
    with pytest.raises(UsageError, match="the run starts from this file"):
        require_free(directories, [settings, settings], resume=False, overwrite=True)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert train(settings, tmp_path / "other", device="cpu").last_step == 40


@pytest.mark.parametrize(
    ("file", "text"),
    [("config.json", "[1]"), ("config.json", "\xff"), ("metrics.jsonl", '"x"\n'), ("metrics.jsonl", "{}\n")],
)
def test_a_damaged_run_is_reported(tmp_path: Path, file: str, text: str) -> None:
    train(config(tmp_path), tmp_path / "run", device="cpu")
    (tmp_path / "run" / file).write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=rf"run/{file}: .*train again with `overwrite=True`"):
        train(config(tmp_path), tmp_path / "run", device="cpu", resume=True)
