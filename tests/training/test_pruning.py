"""Tests of pruning: the exact number of zeros, those of torch's pruning, nested levels, and zeros kept in training."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as reference

from ckpt_probe.checkpoints import CheckpointMetadata, open_checkpoint, open_series, save_checkpoint
from ckpt_probe.config import StartSettings, TrainingConfig
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.models import build_model
from ckpt_probe.training import prune, prune_state, train
from ckpt_probe.training.pruning import count_zeros, hold_zeros, prunable, pruned_masks

LEVELS = (0.2, 0.5, 0.9, 0.98)


def network(name: str = "cnn") -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, {"input_shape": [1, 8, 8], "classes": 10})


def layers(model: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(module, "weight") for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def zero(state: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([(state[name] == 0).flatten() for name in names])


def settings(**changes: object) -> TrainingConfig:
    values = {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "arguments": {"hidden": [16]}},
        "training": {"steps": 30},
        "optimizer": {"learning_rate": 0.05, "weight_decay": 0.001},
        "checkpoints": {"steps": [10]},
    }
    return TrainingConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the last checkpoint of a short run on the digits; tests only read it."""
    run = tmp_path_factory.mktemp("trained")
    train(settings(training={"steps": 60}), run, device="cpu")
    return run / "checkpoints" / "step-000060.safetensors"


def opened(path: Path) -> tuple[dict[str, Tensor], CheckpointMetadata]:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.state_dict(), checkpoint.metadata


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("sparsity", [0, 0.001, 0.3, 1 / 3, 0.5, 0.987])
def test_the_exact_share_becomes_zero_and_other_entries_are_unchanged(scope: str, sparsity: float) -> None:
    generator = torch.Generator().manual_seed(1)
    state = {
        "embedding": torch.randn(11, 7, generator=generator).half(),
        "convolution": torch.randn(5, 3, 3, 3, generator=generator).bfloat16(),
        "linear": torch.randn(9, 10, generator=generator, dtype=torch.float64).T,
        "bias": torch.randn(9, generator=generator),
        "table": torch.arange(6).reshape(2, 3),
    }
    before = {name: tensor.clone() for name, tensor in state.items()}
    pruned, names = prune_state(state, sparsity, scope=scope)
    assert names == ["embedding", "convolution", "linear"]
    parts = [names] if scope == "global" else [[name] for name in names]
    for part in parts:
        zeros, entries = count_zeros(pruned, part)
        assert zeros == round(sparsity * entries)
    for name, tensor in before.items():
        nonzero = pruned[name] != 0
        assert torch.equal(state[name], tensor)
        assert pruned[name].dtype == tensor.dtype
        assert torch.equal(pruned[name][nonzero], tensor[nonzero])
    assert torch.equal(pruned["bias"], before["bias"])
    assert torch.equal(pruned["table"], before["table"])


@pytest.mark.parametrize("sparsity", LEVELS)
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_the_zeros_are_those_of_torchs_pruning(name: str, scope: str, sparsity: float) -> None:
    model = network(name)
    ours, names = prune_state(model.state_dict(), sparsity, scope=scope)
    if scope == "global":
        reference.global_unstructured(layers(model), reference.L1Unstructured, amount=sparsity)
    else:
        for module, parameter in layers(model):
            reference.l1_unstructured(module, parameter, amount=sparsity)
    theirs = model.state_dict()
    assert names == [key.removesuffix("_mask") for key in theirs if key.endswith("_mask")]
    for key in names:
        assert torch.equal(ours[key] != 0, theirs[f"{key}_mask"].bool()), key


def test_batch_norm_and_biases_are_not_pruned() -> None:
    state = network("resnet").state_dict()
    pruned, names = prune_state(state, 0.9)
    unpruned = [name for name in state if name not in names]
    assert any("running_var" in name for name in unpruned)
    assert all(pruned[name] is state[name] for name in unpruned)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_levels_are_nested_and_repeated_pruning_equals_pruning_at_once(scope: str) -> None:
    state = network().state_dict()
    names = prunable(state)
    step_by_step, masks = state, []
    for sparsity in LEVELS:
        step_by_step, _ = prune_state(step_by_step, sparsity, scope=scope)
        at_once, _ = prune_state(state, sparsity, scope=scope)
        assert all(torch.equal(step_by_step[name], at_once[name]) for name in names)
        masks.append(zero(at_once, names))
    assert all(bool((later | ~earlier).all()) for earlier, later in pairwise(masks))


def test_entries_of_equal_magnitude_are_pruned_in_order() -> None:
    state = {"b": torch.tensor([[3.0, -2.0], [2.0, 2.0]]), "a": torch.tensor([[-2.0, 1.0]])}
    pruned, _ = prune_state(state, 0.5)
    assert pruned["b"].tolist() == [[3, 0], [0, 2]]
    assert pruned["a"].tolist() == [[-2, 0]]
    pruned, _ = prune_state({"a": torch.ones(4, 25)}, 0.37)
    assert (pruned["a"] == 0).flatten().tolist() == [True] * 37 + [False] * 63


def test_less_than_the_present_sparsity_is_refused_and_zero_changes_nothing() -> None:
    state, names = prune_state(network().state_dict(), 0.5)
    assert torch.equal(zero(prune_state(state, 0)[0], names), zero(state, names))
    assert torch.equal(zero(prune_state(state, 0.5)[0], names), zero(state, names))
    with pytest.raises(UsageError, match=r"sparsity 0\.2 is below the present one: .* are already zero in all"):
        prune_state(state, 0.2)
    with pytest.raises(UsageError, match=r"are already zero in tensor '8\.weight'"):
        prune_state({**state, "8.weight": torch.zeros(10, 10)}, 0.9, scope="layer")


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.5, float("nan"), float("inf")])
def test_a_sparsity_outside_zero_to_one_is_refused(sparsity: float) -> None:
    with pytest.raises(UsageError, match="at least 0 and below 1, found"):
        prune_state({"a": torch.ones(2, 2)}, sparsity)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error_that_names_the_tensor(value: float) -> None:
    state = {"a": torch.ones(2, 2), "b": torch.tensor([[1.0, value]])}
    with pytest.raises(DataError, match="tensor 'b' contains 1 weights that are NaN or infinite"):
        prune_state(state, 0.5)


@pytest.mark.parametrize("kind", [torch.complex32, torch.complex64, torch.complex128])
def test_complex_weights_are_pruned_by_their_absolute_values(kind: torch.dtype) -> None:
    values = torch.tensor([[3 + 4j, -1j], [2, 0.5 + 0.5j]])
    pruned, names = prune_state({"complex": values.to(kind), "real": torch.tensor([[1.5, 6.0]])}, 0.5)
    assert names == ["complex", "real"]
    assert pruned["complex"].to(torch.complex64).tolist() == [[3 + 4j, 0], [2, 0]]
    assert pruned["complex"].dtype == kind
    assert pruned["real"].tolist() == [[0, 6]]


def test_tensors_that_cannot_be_pruned_are_an_error() -> None:
    with pytest.raises(DataError, match="no weights to prune: no floating-point tensor"):
        prune_state({"bias": torch.ones(3), "ids": torch.ones(2, 2, dtype=torch.int64)}, 0.5)
    with pytest.raises(DataError, match="no tensor 'b' to prune"):
        prune_state({"a": torch.ones(2, 2)}, 0.5, names=["b"])
    with pytest.raises(DataError, match=r"'a' is torch\.float8_e4m3fn, which cannot be pruned"):
        prune_state({"a": torch.ones(2, 2).to(torch.float8_e4m3fn)}, 0.5)
    with pytest.raises(UsageError, match="scope: expected one of global, layer, found 'row'"):
        prune_state({"a": torch.ones(2, 2)}, 0.5, scope="row")


def test_zeros_stay_zero_under_an_optimizer_with_momentum() -> None:
    model = network("mlp")
    state, names = prune_state(model.state_dict(), 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for number in range(3):
        if number == 1:
            model.load_state_dict(state)
        optimizer.zero_grad()
        model(torch.randn(4, 1, 8, 8)).square().sum().backward()
        optimizer.step()
    assert not torch.equal(zero(model.state_dict(), names), zero(state, names))
    hold_zeros(model, pruned_masks(state, names))
    assert torch.equal(zero(model.state_dict(), names), zero(state, names))
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())


def test_masks_of_another_shape_are_an_error() -> None:
    with pytest.raises(DataError, match=r"tensors listed as pruned are missing: other\.weight"):
        pruned_masks(network("mlp").state_dict(), ["1.weight", "other.weight"])
    for name in ("other.weight", "3.weight"):
        with pytest.raises(DataError, match=f"the pruning mask of {name} does not fit any tensor"):
            hold_zeros(network("mlp"), {name: torch.ones(2, 2, dtype=torch.bool)})


def test_metadata_of_pruning_are_read_back_unchanged(tmp_path: Path) -> None:
    metadata = CheckpointMetadata(model="mlp", sparsity=0.5, pruned=["1.weight"])
    assert CheckpointMetadata.from_strings(metadata.to_strings()) == metadata
    zero = replace(metadata, sparsity=0.0, pruned=[])
    assert CheckpointMetadata.from_strings(zero.to_strings()) == zero
    assert not {"ckpt_probe.pruned", "ckpt_probe.sparsity"} & set(CheckpointMetadata().to_strings())


def test_a_series_has_the_checkpoint_at_each_sparsity(trained: Path, tmp_path: Path) -> None:
    summary = prune(trained, tmp_path / "out", [0.98, 0, 0.25])
    names = ["sparsity-0.000", "sparsity-0.250", "sparsity-0.980"]
    assert [member.name for member in open_series(tmp_path / "out")] == names
    assert [level.path.stem for level in summary.levels] == names
    original, before = opened(trained)
    for level in summary.levels:
        state, metadata = opened(level.path)
        expected, weights = prune_state(original, level.sparsity)
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
        assert (level.zeros, level.weights) == count_zeros(state, weights)
        assert metadata == replace(
            before, metrics={}, sparsity=level.zeros / level.weights, pruned=weights if level.sparsity else []
        )
    assert torch.equal(opened(summary.levels[0].path)[0]["1.weight"], original["1.weight"])


def test_file_names_have_the_digits_of_the_finest_sparsity(trained: Path, tmp_path: Path) -> None:
    prune(trained, tmp_path / "out", [0.5, 0.9995, 0.99])
    names = [member.name for member in open_series(tmp_path / "out")]
    assert names == ["sparsity-0.5000", "sparsity-0.9900", "sparsity-0.9995"]
    with pytest.raises(
        UsageError, match=r"contains sparsity-0\.5000\.safetensors, named with another number of digits"
    ):
        prune(trained, tmp_path / "out", [0.5])


def test_existing_results_are_reused_if_they_fit_and_refused_otherwise(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prune(trained, out, [0.5, 0.9])
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in out.iterdir()}
    again = prune(trained, out, [0.5, 0.7, 0.9])
    assert [level.written for level in again.levels] == [False, True, False]
    assert all((out / name).read_bytes() == contents for name, (_, contents) in before.items())
    assert all((out / name).stat().st_mtime_ns == when for name, (when, _) in before.items())
    with pytest.raises(UsageError, match=r"sparsity-0\.500\.safetensors: was pruned with another scope; choose"):
        prune(trained, out, [0.5], scope="layer")
    second_checkpoint = trained.with_name("step-000010.safetensors")
    with pytest.raises(UsageError, match="was pruned with another checkpoint"):
        prune(second_checkpoint, out, [0.9])
    with pytest.raises(UsageError, match="`overwrite=True` would remove it before it is read"):
        prune(out / "sparsity-0.500.safetensors", out, [0.9], overwrite=True)
    assert [level.written for level in prune(second_checkpoint, out, [0.9], overwrite=True).levels] == [True]
    assert [member.name for member in open_series(out)] == ["sparsity-0.900"]


@pytest.mark.parametrize(("sparsities", "message"), [([], "at least one"), ([0.5, 0.2, 0.5], "0.5 occurs twice")])
def test_an_empty_or_repeated_list_of_sparsities_is_refused(
    trained: Path, tmp_path: Path, sparsities: list[float], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        prune(trained, tmp_path / "out", sparsities)
    assert not (tmp_path / "out").exists()


def test_the_classifier_can_be_left_unpruned(trained: Path, tmp_path: Path) -> None:
    summary = prune(trained, tmp_path / "found", [0.9], keep_classifier=True)
    state, metadata = opened(summary.levels[0].path)
    assert torch.equal(state["3.weight"], opened(trained)[0]["3.weight"])
    assert (metadata.pruned, summary.levels[0].weights) == (["1.weight"], state["1.weight"].numel())
    summary = prune(trained, tmp_path / "named", [0.9], keep_classifier=True, classifier="1")
    assert opened(summary.levels[0].path)[1].pruned == ["3.weight"]
    with pytest.raises(UsageError, match=r"no classifier weights '2\.weight'"):
        prune(trained, tmp_path / "other", [0.9], keep_classifier=True, classifier="2")


def test_a_foreign_checkpoint_is_pruned_without_model_or_data(tmp_path: Path) -> None:
    source = tmp_path / "model-step-7.safetensors"
    save_checkpoint(source, network("mlp").state_dict(), {"format": "pt", "theirs": "kept"})
    level = prune(source, tmp_path / "out", [0.5]).levels[0]
    assert (level.zeros, opened(level.path)[1].step) == (round(0.5 * level.weights), 7)
    with open_checkpoint(level.path) as checkpoint:
        assert checkpoint.raw_metadata["theirs"] == "kept"
    with pytest.raises(UsageError, match="names no model and data to find its classifier with"):
        prune(source, tmp_path / "kept", [0.5], keep_classifier=True)


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", {"w": torch.full((2, 2), float("nan"))})
    with pytest.raises(DataError, match=r"a\.safetensors: tensor 'w' contains 4 weights that are NaN"):
        prune(tmp_path / "a.safetensors", tmp_path / "out", [0.5])
    with pytest.raises(DataError, match=r"missing\.safetensors: no such file"):
        prune(tmp_path / "missing.safetensors", tmp_path / "out", [0.5])
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="a file; expected a directory for the pruned checkpoints"):
        prune(tmp_path / "a.safetensors", tmp_path / "file", [0.5])


def test_retraining_keeps_the_zeros_and_the_next_level_starts_from_its_result(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = prune(trained, out, LEVELS[::-1], retrain=settings(), device="cpu")
    assert [level.sparsity for level in summary.levels] == list(LEVELS)
    before = opened(trained)[0]
    names = prunable(before)
    for level in summary.levels:
        state, metadata = opened(level.path)
        expected, _ = prune_state(before, level.sparsity)
        assert torch.equal(zero(state, names), zero(expected, names))
        assert not torch.equal(state["1.weight"], expected["1.weight"])
        assert (metadata.sparsity, metadata.pruned) == (level.zeros / level.weights, names)
        assert level.accuracy == {split: values["accuracy"] for split, values in metadata.metrics.items()}
        for member in open_series(out / "retrain" / level.path.stem):
            state_in_run, of_run = opened(member.path)
            assert torch.equal(zero(state_in_run, names), zero(expected, names))
            assert (of_run.sparsity, of_run.pruned) == (metadata.sparsity, names)
        before = state
    assert [member.name for member in open_series(out)] == [f"sparsity-{level:.3f}" for level in LEVELS]


def test_an_interrupted_series_equals_an_uninterrupted_one(
    trained: Path, tmp_path: Path, interrupting: Callable[..., Any]
) -> None:
    complete = prune(trained, tmp_path / "complete", LEVELS[:3], retrain=settings(), device="cpu")
    with pytest.raises(KeyboardInterrupt):
        prune(trained, tmp_path / "cut", LEVELS[:3], retrain=settings(), device="cpu", progress=interrupting(45))
    assert [file.stem for file in (tmp_path / "cut").glob("*.safetensors")] == ["sparsity-0.200"]
    cut = prune(trained, tmp_path / "cut", LEVELS[:3], retrain=settings(), device="cpu")
    assert [level.written for level in cut.levels] == [False, True, True]
    for a, b in zip(complete.levels, cut.levels, strict=True):
        first, second = opened(a.path)[0], opened(b.path)[0]
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_interrupted_series_can_be_moved_and_resumed(
    trained: Path, tmp_path: Path, interrupting: Callable[..., Any]
) -> None:
    options = {"retrain": settings(), "device": "cpu"}
    complete = prune(trained, tmp_path / "complete", LEVELS[:3], **options)
    with pytest.raises(KeyboardInterrupt):
        prune(trained, tmp_path / "cut", LEVELS[:3], progress=interrupting(45), **options)
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "cut").rename(tmp_path / "elsewhere" / "moved")
    cut = prune(trained, moved, LEVELS[:3], **options)
    assert [level.written for level in cut.levels] == [False, True, True]
    for a, b in zip(complete.levels, cut.levels, strict=True):
        first, second = opened(a.path)[0], opened(b.path)[0]
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_finished_series_is_not_trained_again_even_if_a_result_is_missing(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prune(trained, out, [0.5, 0.9], retrain=settings(), device="cpu")
    contents = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    (out / "sparsity-0.500.safetensors").unlink()
    another_path = tmp_path / "out" / ".." / "out"
    again = prune(trained, another_path, [0.5, 0.9], retrain=settings(), device="cpu")
    assert [level.written for level in again.levels] == [True, False]
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == contents
    other_settings = settings(optimizer={"learning_rate": 0.01})
    with pytest.raises(UsageError, match=r"was pruned with another .*retrain;"):
        prune(trained, out, [0.5, 0.9], retrain=other_settings, device="cpu")
    with pytest.raises(UsageError, match="was pruned with another checkpoint"):
        prune(trained, out, [0.9], retrain=settings(), device="cpu")
    anew = prune(trained, out, [0.9], retrain=other_settings, device="cpu", overwrite=True)
    assert [level.written for level in anew.levels] == [True]
    assert [entry.name for entry in (out / "retrain").iterdir()] == ["sparsity-0.900"]


def test_a_start_in_the_configuration_is_ignored_with_a_message(
    trained: Path, tmp_path: Path, interrupting: Callable[..., Any]
) -> None:
    start = StartSettings.model_validate({"from": "other.safetensors", "keep_step": True})
    config = settings().model_copy(update={"start": start})
    progress_log = interrupting(10**6)
    prune(trained, tmp_path / "out", [0.5], retrain=config, device="cpu", progress=progress_log)
    assert progress_log.messages == [
        "[start] other.safetensors is ignored: training starts from the pruned checkpoints"
    ]
