"""What is known of paths, on networks that are really trained: symmetries, shared trunks, curves, batch norm.

The numbers themselves are printed: run with -s, and those that take longer with -m slow.
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


def trained(where: Path, seed: int, model: dict, training: dict, data: str = "digits", **sections: object) -> Path:
    settings = {
        "seed": seed,
        "data": {"name": data},
        "model": model,
        "training": training,
        "checkpoints": {"steps": []},
        **sections,
    }
    train(TrainingConfig.model_validate(settings), where, device="cpu")
    return max((where / "checkpoints").glob("*.safetensors"))


def mlp(*hidden: int) -> dict:
    return {"name": "mlp", "arguments": {"hidden": list(hidden)}}


@pytest.fixture(scope="module")
def independent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    where = tmp_path_factory.mktemp("independent")
    first, second = (trained(where / str(seed), seed, mlp(64), {"epochs": 24}) for seed in (1, 2))
    return first, second


def barriers(a: Path, b: Path, where: Path, splits: list[str], **variants: dict) -> dict[str, float]:
    """Barrier in loss of the first split, for each variant of a path."""
    found = {}
    for name, options in variants.items():
        result = evaluate_path(a, b, where / name, splits=splits, **options, **HERE)
        found[name] = result.summary[0]["barrier.loss"]
    print({name: round(value, 4) for name, value in found.items()})
    return found


@pytest.mark.parametrize("align", ["permutation", "activations"])
def test_a_permuted_copy_comes_back_and_has_no_barrier(
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
    found = evaluate_path(independent[0], copy, tmp_path / "aligned", splits=["train"], align=align, **HERE)
    assert found.distance == 0
    assert found.summary[0]["barrier.loss"] == pytest.approx(0, abs=1e-6)
    with open_checkpoint(independent[0]) as a, open_checkpoint(tmp_path / "aligned" / "aligned.safetensors") as b:
        assert all(torch.equal(a.read(name), b.read(name)) for name in a.names)
    print(align, plain.distance, plain.summary[0]["barrier.loss"], found.distance, found.summary[0]["barrier.loss"])


def test_alignment_halves_the_barrier_on_digits(independent: tuple[Path, Path], tmp_path: Path) -> None:
    variants = {"plain": {}, "weights": {"align": "permutation"}, "activations": {"align": "activations"}}
    found = barriers(*independent, tmp_path, ["train"], **variants)
    assert found["plain"] > 0.2
    assert found["weights"] < found["plain"] / 2
    assert found["activations"] < found["plain"] / 2


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="Fashion-MNIST is not here")
def test_alignment_halves_the_barrier_on_fashion_mnist(tmp_path: Path) -> None:
    settings = mlp(128), {"epochs": 3, "batch_size": 128}, f"idx:{FASHION}"
    a, b = (trained(tmp_path / str(seed), seed, *settings) for seed in (1, 2))
    variants = {"plain": {}, "weights": {"align": "permutation"}, "activations": {"align": "activations"}}
    found = barriers(a, b, tmp_path, ["test"], **variants)
    assert found["plain"] > 0.05
    assert found["weights"] < found["plain"] / 2
    assert found["activations"] < found["plain"] / 2


def test_runs_that_part_late_have_no_barrier(tmp_path: Path) -> None:
    """Linear mode connectivity sets in early in training (Frankle et al. 2020)."""
    model, training = mlp(64, 64), {"steps": 600, "batch_size": 32}
    trunk = trained(tmp_path / "trunk", 0, model, training, checkpoints={"steps": [300]}).parent
    found = {}
    for step in (0, 300):
        start = {"from": str(trunk / f"step-{step:06d}.safetensors"), "keep_step": True}
        ends = [trained(tmp_path / f"{step}-{seed}", seed, model, training, start=start) for seed in (1, 2)]
        found[step] = barriers(*ends, tmp_path / f"{step}", ["train"], plain={})["plain"]
    assert found[300] < 0.005
    assert found[0] > 0.04


@pytest.mark.parametrize("path", ["bezier", "polychain"])
def test_a_trained_curve_goes_round_the_barrier(independent: tuple[Path, Path], tmp_path: Path, path: str) -> None:
    """Garipov et al. 2018."""
    highest = {}
    for name, options in (("linear", {}), (path, {"path": path, "curve_epochs": 40.0})):
        result = evaluate_path(*independent, tmp_path / name, splits=["train"], **options, **HERE)
        highest[name] = max(point["loss"] for point in result.points)
    print(highest)
    assert highest[path] < 0.4 * highest["linear"]


def test_recomputed_statistics_lower_the_barrier_of_batch_norm(tmp_path: Path) -> None:
    """Aligned networks need it most (Jordan et al. 2022)."""
    model = {"name": "resnet", "arguments": {"blocks": [1, 1], "width": 16}}
    a, b = (trained(tmp_path / str(seed), seed, model, {"epochs": 6}) for seed in (1, 2))
    variants = {
        f"{align or 'as they are'}, {batchnorm}": {"align": align, "batchnorm": batchnorm}
        for align in (None, "activations")
        for batchnorm in ("recompute", "interpolate")
    }
    found = barriers(a, b, tmp_path, ["test"], **variants)
    assert found["as they are, recompute"] < 0.8 * found["as they are, interpolate"]
    assert found["activations, recompute"] < 0.5 * found["activations, interpolate"]
    assert found["activations, recompute"] < 0.5 * found["as they are, recompute"]


def test_both_ends_are_written_bit_for_bit(independent: tuple[Path, Path], tmp_path: Path) -> None:
    for alpha, end in zip((0.0, 1.0), independent, strict=True):
        interpolate(*independent, alpha=alpha, out=tmp_path / "end", overwrite=True)
        with open_checkpoint(end) as expected, open_checkpoint(tmp_path / "end") as found:
            assert found.names == expected.names
            for name in found.names:
                assert found.read(name).numpy().tobytes() == expected.read(name).numpy().tobytes()
