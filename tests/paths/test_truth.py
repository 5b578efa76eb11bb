"""Tests of known results about paths on trained networks: symmetries, shared trunks, curves, batch norm.

The measured barriers are printed: run with -s, and with -m slow for the tests that take longer.
"""

from pathlib import Path

import pytest
import torch

from ckpt_probe.checkpoints import open_checkpoint, save_checkpoint
from ckpt_probe.config import TrainingConfig
from ckpt_probe.merging import interpolate
from ckpt_probe.paths import evaluate_path
from ckpt_probe.training import train

FASHION = Path("/usr/share/datasets/fashion-mnist")
HERE = {"device": "cpu", "points": 5}


def trained(directory: Path, seed: int, model: dict, training: dict, data: str = "digits", **sections: object) -> Path:
    settings = {
        "seed": seed,
        "data": {"name": data},
        "model": model,
        "training": training,
        "checkpoints": {"steps": []},
        **sections,
    }
    train(TrainingConfig.model_validate(settings), directory, device="cpu")
    return max((directory / "checkpoints").glob("*.safetensors"))


def mlp(*hidden: int) -> dict:
    return {"name": "mlp", "arguments": {"hidden": list(hidden)}}


@pytest.fixture(scope="module")
def independent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("independent")
    first, second = (trained(directory / str(seed), seed, mlp(64), {"epochs": 24}) for seed in (1, 2))
    return first, second


def barriers(a: Path, b: Path, directory: Path, splits: list[str], **variants: dict) -> dict[str, float]:
    """Return the barrier in loss of the first split for each variant of a path."""
    barrier_of = {}
    for name, options in variants.items():
        result = evaluate_path(a, b, directory / name, splits=splits, **options, **HERE)
        barrier_of[name] = result.summary[0]["barrier.loss"]
    print({name: round(value, 4) for name, value in barrier_of.items()})
    return barrier_of


@pytest.mark.parametrize("align", ["permutation", "activations"])
def test_aligning_a_permuted_copy_recovers_the_original_without_a_barrier(
    independent: tuple[Path, Path], tmp_path: Path, align: str
) -> None:
    with open_checkpoint(independent[0]) as checkpoint:
        state, metadata = checkpoint.state_dict(), checkpoint.metadata
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for name in ("1.weight", "1.bias"):
        state[name] = state[name][order]
    state["3.weight"] = state["3.weight"][:, order]
    copy = tmp_path / "copy.safetensors"
    save_checkpoint(copy, state, metadata)
    plain = evaluate_path(independent[0], copy, tmp_path / "plain", splits=["train"], **HERE)
    assert plain.distance > 1
    assert plain.summary[0]["barrier.loss"] > 0.1
    result = evaluate_path(independent[0], copy, tmp_path / "aligned", splits=["train"], align=align, **HERE)
    assert result.distance == 0
    assert result.summary[0]["barrier.loss"] == pytest.approx(0, abs=1e-6)
    with open_checkpoint(independent[0]) as a, open_checkpoint(tmp_path / "aligned" / "aligned.safetensors") as b:
        assert all(torch.equal(a.read(name), b.read(name)) for name in a.names)
    print(align, plain.distance, plain.summary[0]["barrier.loss"], result.distance, result.summary[0]["barrier.loss"])


def test_alignment_halves_the_barrier_on_digits(independent: tuple[Path, Path], tmp_path: Path) -> None:
    variants = {"plain": {}, "weights": {"align": "permutation"}, "activations": {"align": "activations"}}
    barrier_of = barriers(*independent, tmp_path, ["train"], **variants)
    assert barrier_of["plain"] > 0.2
    assert barrier_of["weights"] < barrier_of["plain"] / 2
    assert barrier_of["activations"] < barrier_of["plain"] / 2


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="Fashion-MNIST is not here")
def test_alignment_halves_the_barrier_on_fashion_mnist(tmp_path: Path) -> None:
    settings = mlp(128), {"epochs": 3, "batch_size": 128}, f"idx:{FASHION}"
    a, b = (trained(tmp_path / str(seed), seed, *settings) for seed in (1, 2))
    variants = {"plain": {}, "weights": {"align": "permutation"}, "activations": {"align": "activations"}}
    barrier_of = barriers(a, b, tmp_path, ["test"], **variants)
    assert barrier_of["plain"] > 0.05
    assert barrier_of["weights"] < barrier_of["plain"] / 2
    assert barrier_of["activations"] < barrier_of["plain"] / 2


def test_runs_with_a_long_shared_trunk_have_no_barrier(tmp_path: Path) -> None:
    """Linear mode connectivity begins early in training (Frankle et al. 2020)."""
    model, training = mlp(64, 64), {"steps": 600, "batch_size": 32}
    trunk = trained(tmp_path / "trunk", 0, model, training, checkpoints={"steps": [300]}).parent
    barrier_of = {}
    for step in (0, 300):
        start = {"from": str(trunk / f"step-{step:06d}.safetensors"), "keep_step": True}
        ends = [trained(tmp_path / f"{step}-{seed}", seed, model, training, start=start) for seed in (1, 2)]
        barrier_of[step] = barriers(*ends, tmp_path / f"{step}", ["train"], plain={})["plain"]
    assert barrier_of[300] < 0.005
    assert barrier_of[0] > 0.04


@pytest.mark.parametrize("path", ["bezier", "polychain"])
def test_a_trained_curve_avoids_the_barrier(independent: tuple[Path, Path], tmp_path: Path, path: str) -> None:
    """Confirm the result of Garipov et al. 2018."""
    highest = {}
    for name, options in (("linear", {}), (path, {"path": path, "curve_epochs": 40.0})):
        result = evaluate_path(*independent, tmp_path / name, splits=["train"], **options, **HERE)
        highest[name] = max(point["loss"] for point in result.points)
    print(highest)
    assert highest[path] < 0.4 * highest["linear"]


def test_recomputed_statistics_lower_the_barrier_of_batch_norm(tmp_path: Path) -> None:
    """Aligned networks need recomputed statistics most (Jordan et al. 2022)."""
    model = {"name": "resnet", "arguments": {"blocks": [1, 1], "width": 16}}
    a, b = (trained(tmp_path / str(seed), seed, model, {"epochs": 6}) for seed in (1, 2))
    variants = {
        f"{align or 'as they are'}, {batchnorm}": {"align": align, "batchnorm": batchnorm}
        for align in (None, "activations")
        for batchnorm in ("recompute", "interpolate")
    }
    barrier_of = barriers(a, b, tmp_path, ["test"], **variants)
    assert barrier_of["as they are, recompute"] < 0.8 * barrier_of["as they are, interpolate"]
    assert barrier_of["activations, recompute"] < 0.5 * barrier_of["activations, interpolate"]
    assert barrier_of["activations, recompute"] < 0.5 * barrier_of["as they are, recompute"]


def test_written_ends_of_a_path_equal_the_checkpoints_bit_for_bit(
    independent: tuple[Path, Path], tmp_path: Path
) -> None:
    for alpha, end in zip((0.0, 1.0), independent, strict=True):
        interpolate(*independent, alpha=alpha, out=tmp_path / "end", overwrite=True)
        with open_checkpoint(end) as expected, open_checkpoint(tmp_path / "end") as written:
            assert written.names == expected.names
            for name in written.names:
                assert written.read(name).numpy().tobytes() == expected.read(name).numpy().tobytes()
