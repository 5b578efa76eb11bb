"""Tests of files that are parts of one model: opened as one checkpoint or refused with the reason, never as steps."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_probe.checkpoints import is_series, open_checkpoint, open_series
from ckpt_probe.errors import DataError, UsageError


def write(*names: str, within: Path, apart: bool = False) -> None:
    """Write files of these names; with `apart` each has a tensor of another name, otherwise all have the same one."""
    for number, name in enumerate(names):
        file = within / name
        file.parent.mkdir(parents=True, exist_ok=True)
        state = {f"layer{number}.weight" if apart else "weight": torch.full((2, 3), float(number))}
        if name.endswith(".safetensors"):
            save_file(state, file)
        elif name.endswith((".json", ".metadata")):
            file.write_text("{}")
        else:
            torch.save(state, file)


def open_checkpoint_of(path: Path) -> None:
    with open_checkpoint(path):
        pass


REFUSED = {
    "Meta's layout": ["consolidated.00.pth", "consolidated.01.pth", "params.json"],
    "folders of their own": ["mp_rank_00/model_optim_rng.pt", "mp_rank_01/model_optim_rng.pt"],
    "in folders of their own": ["mp_rank_00_000/model_optim_rng.pt", "mp_rank_00_001/model_optim_rng.pt"],
    "in folders": ["tp_rank_00_pp_rank_000/model.ckpt", "tp_rank_01_pp_rank_000/model.ckpt"],
    "sharded by DeepSpeed (here are mp": ["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"],
    "sharded by DeepSpeed (here are zero": [
        "zero_pp_rank_0_mp_rank_00_model_states.pt",
        "bf16_zero_pp_rank_0_optim_states.pt",
    ],
    "DeepSpeed into layers": ["layer_00-model_00-model_states.pt", "layer_01-model_00-model_states.pt"],
    "layers or experts": ["mp_rank_00_model_states.pt", "layer_0_expert_0_mp_rank_00_model_states.pt"],
    "whose .metadata is missing": ["__0_0.distcp", "__1_0.distcp"],
    "torchtune": ["hf_model_0001_0.pt", "hf_model_0002_0.pt"],
    "one file for each process (here are rank0": ["rank0.pt", "rank1.pt"],
    "one file for each process (here are ep1": ["ep1-ba100-rank0.pt", "ep1-ba100-rank1.pt"],
    "each process (here are model": ["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"],
    "each process (here are pytorch": ["pytorch_model_fsdp_rank0.bin", "pytorch_model_fsdp_rank1.bin"],
    "each process (here are check": ["checkpoint_1_100-shard0.pt", "checkpoint_1_100-shard1.pt"],
    "each process (here are reshard": ["reshard-model_part-0.pt", "reshard-model_part-1.pt"],
    "each process (here are model-rank": ["model-rank-0-part-0.safetensors", "model-rank-1-part-0.safetensors"],
    "each process (here are model_tp": ["model_tp0.pt", "model_tp1.pt"],
    "cut into pieces": ["model.safetensors.part0", "model.safetensors.part1"],
    "model-00002-of-00003.safetensors is missing": [
        "model-00001-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ],
    "an adapter": ["adapter_config.json", "adapter_model.safetensors", "model.safetensors"],
    "a pipeline of several models": ["model_index.json", "unet/model.safetensors", "vae/model.safetensors"],
}


@pytest.mark.parametrize(("message", "names"), REFUSED.items())
@pytest.mark.parametrize("folder", ["", "run/step-500"])
def test_parts_of_a_model_are_refused_with_their_description(
    message: str, names: list[str], folder: str, tmp_path: Path
) -> None:
    write(*names, within=tmp_path / folder)
    for opens in (open_series,) if folder else (open_series, open_checkpoint_of, is_series):
        with pytest.raises(DataError, match=re.escape(message)):
            opens(tmp_path / folder.partition("/")[0])


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ("sharded by DeepSpeed", ["zero_pp_rank_0_mp_rank_00_model_states.pt"]),
        ("Meta's layout", ["consolidated.01.pth", "consolidated.00.pth"]),
        ("is missing", ["pytorch_model-00001-of-00002.bin"]),
        ("is missing", ["model-1-of-2.pt"]),
        ("is present twice, in model-1-of-2.pt and model-2-of-2.pt", ["model-1-of-2.pt", "model-2-of-2.pt"]),
        ("is present twice", ["model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors"]),
    ],
)
def test_a_single_part_is_refused_too(message: str, names: list[str], tmp_path: Path) -> None:
    write(*names, within=tmp_path)
    with pytest.raises(DataError, match=message):
        open_checkpoint(tmp_path / names[0]).__enter__()


@pytest.mark.parametrize(
    "names",
    [
        ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ["model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors"],
        ["checkpoint_1_of_3.pt", "checkpoint_2_of_3.pt", "checkpoint_3_of_3.pt"],
        ["diffusion_model-00001-of-00002.fp16.safetensors", "diffusion_model-00002-of-00002.fp16.safetensors"],
    ],
)
def test_shards_without_an_index_are_one_model(names: list[str], tmp_path: Path) -> None:
    write(*names, within=tmp_path, apart=True)
    [member] = open_series(tmp_path)
    assert member.step is None
    for path in (tmp_path, *(tmp_path / name for name in names)):
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.names == [f"layer{number}.weight" for number in range(len(names))]
            assert sorted(file.name for file in checkpoint.files) == names
            for number, name in enumerate(checkpoint.names):
                assert torch.equal(checkpoint.read(name), torch.full((2, 3), float(number)))


def test_a_state_key_applies_to_pickled_shards(tmp_path: Path) -> None:
    torch.save({"student.a": torch.ones(2), "teacher.a": torch.zeros(2)}, tmp_path / "m-1-of-2.pt")
    torch.save({"student.b": torch.ones(3)}, tmp_path / "m-2-of-2.pt")
    with open_checkpoint(tmp_path, state_key="student") as checkpoint:
        assert checkpoint.names == ["a", "b"]
    with pytest.raises(UsageError, match="no tensor name starts with it"):
        open_checkpoint(tmp_path, state_key="tutor").__enter__()


@pytest.mark.parametrize(
    ("opened", "names"),
    [
        ("consolidated.00.pth", ["consolidated.00.pth", "params.json"]),
        ("mp_rank_00_model_states.pt", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"]),
        ("model_optim_rng.pt", ["mp_rank_00/model_optim_rng.pt", "mp_rank_00/distrib_optim.pt"]),
        ("ep1-ba100-rank0.pt", ["ep1-ba100-rank0.pt"]),
        ("model.safetensors", ["model.safetensors", "consolidated.safetensors"]),
        ("model.safetensors", ["model.safetensors", "consolidated.00.pth", "consolidated.01.pth"]),
        ("model.safetensors", ["model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"]),
        ("model.safetensors", ["model.safetensors", "model.fp16-00001-of-00002.safetensors"]),
        ("model.fp16.safetensors", ["model.fp16.safetensors"]),
        ("consolidated.safetensors", ["consolidated.safetensors"]),
        ("model.safetensors", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "optim.pt"]),
        ("step_1.pt", ["step_1.pt", "step_1_optimizer.pt", "step_1.scheduler.pt", "step_1-scaler_state.pt"]),
        ("model.pt", ["model.pt", "train.pt", "recipe_state.pt", "lr_scheduler.pt", "training_args.bin"]),
        ("model.safetensors", ["model.safetensors", "global_step500/zero_pp_rank_0_mp_rank_00_model_states.pt"]),
    ],
)  # fmt: skip
def test_a_model_with_copies_and_a_trainers_state_is_one_checkpoint(
    opened: str, names: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "checkpoint-500"
    write(*names, within=folder)
    for path in (folder, folder.parent):
        [member] = open_series(path)
        assert member.path.name == opened
    assert member.name == "checkpoint-500"
    assert not is_series(folder)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.file.name == opened


@pytest.mark.parametrize(
    "names",
    [
        ["step_100_of_200.pt", "step_200_of_200.pt"],
        ["lora_rank_4.pt", "lora_rank_8.pt"],
        ["step_1k.pt", "step_1.5k.pt", "step_500.pt"],
        ["ep1-ba100-rank0.pt", "ep2-ba200-rank0.pt"],
        ["step_500/model.pt", "step_1k/model.pt", "step-1_500/model.pt", "step1000-unsharded/model.pt"],
    ],
)
def test_checkpoints_of_a_run_are_not_parts(names: list[str], tmp_path: Path) -> None:
    write(*names, within=tmp_path)
    assert len(open_series(tmp_path)) == len(names)


def hub(tmp_path: Path, *commits: str, main: str | None = None) -> Path:
    """Write a model in the layout of huggingface_hub's cache, with links to blobs, and return its directory."""
    folder = tmp_path / "models--owner--name"
    (folder / "blobs").mkdir(parents=True)
    for number, commit in enumerate(commits):
        write("model.safetensors", within=folder / "snapshots" / commit)
        file = folder / "snapshots" / commit / "model.safetensors"
        file.rename(folder / "blobs" / str(number))
        file.symlink_to(Path("../../blobs") / str(number))
    if main is not None:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(main)
    return folder


@pytest.mark.parametrize(("commits", "main"), [(["abc"], None), (["abc", "def"], "abc"), (["abc"], "gone")])
def test_a_directory_of_the_hubs_cache_opens_as_its_snapshot(
    commits: list[str], main: str | None, tmp_path: Path
) -> None:
    folder = hub(tmp_path, *commits, main=main)
    assert not is_series(folder)
    [member] = open_series(folder)
    assert member.path == folder / "snapshots" / "abc" / "model.safetensors"
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.file == member.path


@pytest.mark.parametrize(("commits", "names"), [(["abc", "def"], "abc, def"), ([], "none")])
def test_with_several_snapshots_in_the_hubs_cache_the_error_names_them(
    commits: list[str], names: str, tmp_path: Path
) -> None:
    folder = hub(tmp_path, *commits, main="gone")
    (folder / "snapshots").mkdir(exist_ok=True)
    for opens in (open_series, is_series):
        with pytest.raises(DataError, match=f"name one of its snapshots in .*snapshots: {names}"):
            opens(folder)


def test_a_shard_opens_by_its_index(tmp_path: Path) -> None:
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    write(*names, within=tmp_path, apart=True)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"layer{number}.weight": names[number] for number in (0, 1)}}))
    with open_checkpoint(tmp_path / names[1]) as checkpoint:
        assert checkpoint.file == index
