"""Tests of hashes in the metadata of checkpoints: a flipped bit is reported with its tensor, for every writer."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_probe.checkpoints import CheckpointMetadata, CheckpointWriter, open_checkpoint, save_checkpoint
from ckpt_probe.checkpoints.formats.safe import HASHES, PIECE, hash_of, piece_digests, read_header, tensor_hash
from ckpt_probe.errors import DataError
from ckpt_probe.merging import average, interpolate

NAMES = ("big", "empty", "number", "ä")


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "big": torch.randn(300, 700, generator=generator),  # hashed in several pieces
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(7),
        "ä": torch.randn(5, generator=generator).to(torch.bfloat16),
    }


def hashes_in(path: Path) -> dict[str, str]:
    """Return the hashes in the header of a file, read without the package."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"][HASHES])


def write(path: Path, writer: str) -> Path:
    a, b = path.with_name("a.safetensors"), path.with_name("b.safetensors")
    if writer == "saved":
        save_checkpoint(path, state(), CheckpointMetadata(step=3))
        return path
    save_checkpoint(a, state(0), CheckpointMetadata(step=3))
    save_checkpoint(b, state(1))
    if writer == "line":
        interpolate(a, b, alpha=0.3, out=path, threads=3)
    elif writer == "halved":
        interpolate(a, b, alpha=0.3, out=path, dtype="float16")
    elif writer == "copied":
        interpolate(a, b, alpha=0, out=path)
    else:
        average([a, b], path)
    return path


@pytest.mark.parametrize("writer", ["saved", "line", "halved", "copied", "averaged"])
def test_every_writer_stores_the_hash_of_every_tensor_and_of_the_metadata(tmp_path: Path, writer: str) -> None:
    path = write(tmp_path / "out.safetensors", writer)
    tensors, hashes = load_file(path), hashes_in(path)
    assert set(hashes) == {*NAMES, "__metadata__"}
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
    for name, tensor in tensors.items():
        assert hashes[name] == hash_of((kinds[tensor.dtype], tuple(tensor.shape)), tensor)
    with open_checkpoint(path) as checkpoint:
        assert all(map(checkpoint.is_hashed, NAMES))
        assert HASHES not in checkpoint.raw_metadata
        checkpoint.state_dict()


def test_each_shard_has_its_hashes(tmp_path: Path) -> None:
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        parts = {"x.safetensors": ("big",), "y.safetensors": ("number", "ä")}
        for file, names in parts.items():
            save_file({name: state(number)[name] for name in names}, tmp_path / folder / file)
        weight_map = {name: file for file, names in parts.items() for name in names}
        (tmp_path / folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    interpolate(tmp_path / "a", tmp_path / "b", alpha=0.5, out=tmp_path / "mid")
    assert set(hashes_in(tmp_path / "mid" / "x.safetensors")) == {"big", "__metadata__"}
    with open_checkpoint(tmp_path / "a") as foreign, open_checkpoint(tmp_path / "mid") as ours:
        assert not any(map(foreign.is_hashed, foreign.names))
        assert all(map(ours.is_hashed, ours.names))


def test_the_hash_does_not_depend_on_the_size_of_blocks() -> None:
    data = bytes(range(256)) * (5 * PIECE // 512)
    blocks = [data[start : start + 2 * PIECE] for start in range(0, len(data), 2 * PIECE)]
    digests, kind = [digest for block in blocks for digest in piece_digests(block)], ("U8", (len(data),))
    assert tensor_hash(kind, digests) == tensor_hash(kind, piece_digests(data))
    assert tensor_hash(("I8", (len(data),)), digests) != tensor_hash(kind, digests)


@pytest.mark.parametrize("name", ["big", "number", "ä"])
def test_a_flipped_bit_in_a_tensor_is_reported_with_its_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "out.safetensors", "saved")
    span, data = read_header(path).tensors[name], bytearray(path.read_bytes())
    data[span.stop - 1] ^= 16
    path.write_bytes(data)
    with open_checkpoint(path) as checkpoint:
        with pytest.raises(DataError, match=rf"out\.safetensors: tensor '{name}' is damaged"):
            checkpoint.state_dict()
        for intact in {*NAMES} - {name}:
            assert torch.equal(checkpoint.read(intact), state()[intact])


@pytest.mark.parametrize("alpha", [0, 0.3])
def test_no_interpolation_from_a_damaged_file_is_written(tmp_path: Path, alpha: float) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_checkpoint(a, state(0))
    save_checkpoint(b, state(1))
    span, data = read_header(a).tensors["big"], bytearray(a.read_bytes())
    data[span.stop - 8] ^= 1
    a.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.safetensors: tensor 'big' is damaged"):
        interpolate(a, b, alpha=alpha, out=tmp_path / "mid.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {a.name, b.name}


def test_no_flipped_bit_of_a_small_file_changes_a_number_without_an_error(tmp_path: Path) -> None:
    """Flipped bits of white space or of the key of the hashes change no number and need not be detected."""
    path, state = tmp_path / "a.safetensors", {"a": torch.arange(4.0), "b": torch.tensor([1, 2])}
    save_checkpoint(path, state, CheckpointMetadata(step=12, model="mlp", model_arguments={"hidden": [3]}))
    intact = path.read_bytes()
    with open_checkpoint(path) as checkpoint:
        metadata = checkpoint.metadata
    errors = 0
    bits = range(0, len(intact) * 8, 11)  # covers every bit position of a byte
    for bit in bits:
        damaged = bytearray(intact)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            with open_checkpoint(path) as checkpoint:
                loaded = checkpoint.state_dict()
                assert loaded.keys() == state.keys(), bit
                assert all(torch.equal(loaded[name], state[name]) for name in state), bit
                assert checkpoint.metadata == metadata or not checkpoint.is_hashed("a"), bit
        except DataError:
            errors += 1
    assert errors > 0.9 * len(bits)


def test_a_file_may_have_no_hashes_but_hashes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "foreign.safetensors", {"theirs": "1"})
    with open_checkpoint(tmp_path / "foreign.safetensors") as checkpoint:
        assert not checkpoint.is_hashed("big")
        assert checkpoint.raw_metadata == {"theirs": "1"}
    save_checkpoint(tmp_path / "ours.safetensors", state(), CheckpointMetadata(step=3))
    metadata = {HASHES: json.dumps(hashes_in(tmp_path / "ours.safetensors"))}
    metadata |= {"ckpt_probe.format": "1", "ckpt_probe.step": "3"}
    path = tmp_path / "other.safetensors"
    for change, message in (
        ({"more": torch.zeros(1)}, "tensor 'more' has no hash"),
        ({"number": torch.tensor(8)}, "tensor 'number' is damaged"),
        ({"number": torch.tensor(7, dtype=torch.int32)}, "tensor 'number' is damaged"),
    ):
        save_file({**state(), **change}, path, {**metadata, "format": "pt", "note": "theirs"})
        with pytest.raises(DataError, match=message), open_checkpoint(path) as checkpoint:
            checkpoint.state_dict()
    for changed, message in (
        ({"ckpt_probe.step": "4"}, "its metadata differs from the metadata that was written"),
        ({HASHES: "[" * 100_000}, "not an object of hashes"),
        ({HASHES: '{"big": 3}'}, "not an object of hashes"),
        ({HASHES: "[]"}, "its metadata differs"),
    ):
        save_file(state(), path, {**metadata, "format": "pt", **changed})
        with pytest.raises(DataError, match=rf"other\.safetensors: damaged, or changed by another program.*{message}"):
            open_checkpoint(path).__enter__()


def test_a_writer_that_lacks_a_tensor_leaves_no_file(tmp_path: Path) -> None:
    layout = {"a": ("F32", (2,)), "b": ("F32", (2,))}
    with (
        pytest.raises(DataError, match="1 tensors were not written, first 'b'"),
        CheckpointWriter(tmp_path / "x.safetensors", layout) as writer,
    ):
        writer.write("a", torch.zeros(2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("step", '"100"'), ("step", "1.5"), ("step", "true"), ("step", "9" * 5000), ("epoch", '"x"'), ("epoch", "NaN"),
        ("model", "{}"), ("model_arguments", "[1]"), ("metrics", "3"), ("config", "[" * 100_000), ("format", "\u00b2"),
    ],
)  # fmt: skip
def test_metadata_of_another_type_are_refused_in_one_line(tmp_path: Path, field: str, text: str) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state(), path, {"ckpt_probe.format": "1", f"ckpt_probe.{field}": text})
    with open_checkpoint(path) as checkpoint, pytest.raises(DataError, match=f"checkpoint metadata .*{field}") as error:
        _ = checkpoint.metadata
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("texts", "step", "epoch"),
    [
        ({"step": "100"}, 100, None),
        ({"global_step": "7", "epoch": "2.5"}, 7, 2.5),
        ({"ss_steps": "40", "ss_epoch": "3"}, 40, 3),
        ({"step": "abc", "epoch": "nan"}, None, None),
        ({"step": "9" * 30}, None, None),
    ],
)
def test_the_step_is_read_from_the_texts_of_a_foreign_header(
    tmp_path: Path, texts: dict[str, str], step: int | None, epoch: float | None
) -> None:
    save_file(state(), tmp_path / "w.safetensors", texts)
    with open_checkpoint(tmp_path / "w.safetensors") as checkpoint:
        assert (checkpoint.metadata.step, checkpoint.metadata.epoch) == (step, epoch)
