"""Tests of shards with an index, pickled or not: they are one checkpoint, and no file outside the directory is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification

from ckpt_probe.checkpoints import open_checkpoint, open_series
from ckpt_probe.errors import DataError, UsageError

CONFIG = BertConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=8,
)  # fmt: skip
SAFE, PICKLED = "model.safetensors.index.json", "pytorch_model.bin.index.json"


def pickled(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """Write pickled shards with an index, as save_pretrained did before safetensors; return the directory."""
    folder.mkdir(parents=True)
    names = sorted(state)
    files = {name: f"pytorch_model-0000{1 + (number % 2)}-of-00002.bin" for number, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({name: state[name] for name in names if files[name] == file}, folder / file)
    (folder / PICKLED).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


@pytest.fixture(scope="module")
def model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(CONFIG)


@pytest.fixture
def safe(model: BertForSequenceClassification, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "safe", max_shard_size="4KB")
    return tmp_path / "safe"


def test_shards_of_save_pretrained_are_one_checkpoint(model: BertForSequenceClassification, safe: Path) -> None:
    state = model.state_dict()
    for path in (safe, safe / SAFE):
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.names == sorted(state)
            assert len(checkpoint.files) > 3
            assert checkpoint.format == f"safetensors, {len(checkpoint.files) - 1} shards"
            assert checkpoint.size == sum(file.stat().st_size for file in safe.iterdir() if file.name != "config.json")
            assert checkpoint.config_directory == safe
            for name, tensor in state.items():
                assert torch.equal(checkpoint.read(name), tensor)
    [member] = open_series(safe)
    assert (member.name, member.path) == ("model", safe / SAFE)


def test_pickled_shards_are_one_checkpoint(model: BertForSequenceClassification, tmp_path: Path) -> None:
    state = model.state_dict()
    folder = pickled(tmp_path / "old", state)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.format == "torch zip, 2 shards"
        assert checkpoint.file.name == PICKLED
        assert checkpoint.names == sorted(state)
        for name, tensor in state.items():
            assert torch.equal(checkpoint.read(name), tensor)
    # Weights that are saved in both formats are one checkpoint.
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    shutil.copy(folder / "pytorch_model-00001-of-00002.bin", folder / "pytorch_model.bin")
    (folder / PICKLED).unlink()
    for shard in folder.glob("*-of-*"):
        shard.unlink()
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.names == ["w"]


def test_the_hash_depends_on_all_shards(safe: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(safe, tmp_path / "changed")
    last = sorted(changed.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-1] + b"\x01")
    with open_checkpoint(safe) as first, open_checkpoint(changed) as second:
        assert first.content_hash() != second.content_hash()


def absent(folder: Path, index: Path) -> None:
    next(file for file in sorted(folder.iterdir()) if "-00001-of-" in file.name).unlink()


def moved_to(name: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, index: Path) -> None:
        saved = json.loads(index.read_text())
        first = min(saved["weight_map"])
        index.write_text(json.dumps({"weight_map": saved["weight_map"] | {first: name.format(outside=folder.parent)}}))

    return change


def linked(folder: Path, index: Path) -> None:
    shard = next(file for file in sorted(folder.iterdir()) if "-00001-of-" in file.name)
    shutil.move(shard, folder.parent / "outside")
    shard.symlink_to(folder.parent / "outside")


def renamed(folder: Path, index: Path) -> None:
    saved = json.loads(index.read_text())
    first = min(saved["weight_map"])
    moved = {("other" if name == first else name): file for name, file in saved["weight_map"].items()}
    index.write_text(json.dumps({"weight_map": moved}))


@pytest.mark.parametrize("kind", ["safe", "pickled"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (absent, "which is missing"),
        (moved_to("../x.safetensors"), r"'\.\./x\.safetensors', which is outside its directory"),
        (moved_to("{outside}/x.bin"), "which is outside its directory"),
        (moved_to(".."), r"'\.\.', which is outside its directory"),
        (moved_to("c\\x.bin"), "which is outside its directory"),
        (linked, "a link that leads out of its directory"),
        (renamed, "says that tensor 'other' is in"),
        (lambda folder, index: index.write_text("{}"), "not an index of shards"),
        (lambda folder, index: index.write_text('{"weight_map": {}}'), "not an index of shards"),
        (lambda folder, index: index.write_text("[" * 10**5), "not an index of shards"),
        (lambda folder, index: index.write_bytes(b"\xff\xfe"), "not an index of shards"),
    ],
)  # fmt: skip
def test_invalid_indices_are_refused(
    model: BertForSequenceClassification, safe: Path, tmp_path: Path, kind: str, change: Callable, message: str
) -> None:
    folder = safe if kind == "safe" else pickled(tmp_path / "old", model.state_dict())
    change(folder, folder / (SAFE if kind == "safe" else PICKLED))
    with pytest.raises(DataError, match=message):
        open_checkpoint(folder).__enter__()


def test_a_snapshot_of_the_hubs_cache_opens_through_its_links(safe: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(safe.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(blobs / str(number))
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.read(checkpoint.names[0]) is not None


def test_one_of_two_networks_in_a_file_is_chosen_by_the_prefix_of_its_names(tmp_path: Path) -> None:
    save_file({"student.w": torch.ones(2), "teacher.w": torch.zeros(2)}, tmp_path / "a.safetensors")
    with open_checkpoint(tmp_path / "a.safetensors", state_key="teacher") as checkpoint:
        assert checkpoint.names == ["w"]
        assert not checkpoint.read("w").any()
        raw = bytearray(4)
        checkpoint.fill("w", 4, memoryview(raw))
        assert raw == bytes(4)
    with pytest.raises(UsageError, match="`state_key='tutor'`: no tensor name starts with it; names start with s"):
        open_checkpoint(tmp_path / "a.safetensors", state_key="tutor").__enter__()
