"""Tests of the streaming writer against torch's arithmetic and the safetensors library; shards, averages, refusals."""

import itertools
import json
import math
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.checkpoints.tensors import decode, exact_dtype
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.merging import average, blending, interpolate, streaming

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    large = torch.randn(3, blending.ENTRIES // 2 + 5, generator=generator, dtype=torch.float64)
    return {
        "large": (large * torch.logspace(-20, 3, 3, dtype=torch.float64)[:, None]).to(dtype),
        "small": torch.randn(5, generator=generator).to(dtype),
        "scalar": torch.tensor(0.1 * seed).to(dtype),
        "empty": torch.zeros(0, 4, dtype=dtype),
        "steps": torch.tensor([seed, 7]),
        "mask": torch.tensor([True, False, seed > 1]),
    }


@pytest.fixture
def ends(tmp_path: Path) -> tuple[Path, Path]:
    for seed, name in ((1, "a"), (2, "b")):
        save_file(state(seed), tmp_path / f"{name}.safetensors", {"format": "pt", "mine": "kept"})
    return tmp_path / "a.safetensors", tmp_path / "b.safetensors"


def same(written: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert written[name].dtype == tensor.dtype, name
        assert torch.equal(written[name], tensor), name


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.9, -0.5, 1.5])
def test_a_point_equals_torchs_lerp_rounded_to_nearest_even(tmp_path: Path, kind: str, alpha: float) -> None:
    dtype = DTYPES[kind]
    a, b = state(1, dtype), state(2, dtype)
    for name, tensors in (("a", a), ("b", b)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    interpolate(tmp_path / "a.safetensors", tmp_path / "b.safetensors", alpha=alpha, out=tmp_path / "o.safetensors")
    exact = torch.float64 if kind == "float64" else torch.float32
    written = load_file(tmp_path / "o.safetensors")
    for name, tensor in a.items():
        if not tensor.is_floating_point():
            assert torch.equal(written[name], tensor)
            continue
        expected = torch.lerp(tensor.double(), b[name].double(), alpha)
        assert written[name].dtype == dtype
        # One rounding of the sum in `exact`, relative to the larger end, and one of the result.
        size = torch.maximum(tensor.double().abs(), b[name].double().abs()) * (1 + abs(alpha))
        allowed = (
            4 * torch.finfo(exact).eps * size + torch.finfo(dtype).eps / 2 * expected.abs() + 1e-7 * (kind == "float16")
        )
        assert bool(((written[name].double() - expected).abs() <= allowed).all()), name


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_values_are_rounded_to_nearest_even(kind: str) -> None:
    dtype = DTYPES[kind]
    generator = torch.Generator().manual_seed(0)
    halves = torch.randint(-(2**15), 2**15, (20_000,), generator=generator).to(torch.int16).view(dtype)
    values = halves[torch.isfinite(halves)].float()
    between = torch.cat([values, values * 1.0001, torch.nextafter(values, values * 2), values * (1 + 2**-9)])
    between = between[between.abs() < torch.finfo(dtype).max]
    into = torch.zeros(8 * len(between), dtype=torch.uint8).numpy()
    code = {"float16": "F16", "bfloat16": "BF16"}[kind]
    expected = between.to(dtype)
    encoded = blending.encode(between.clone().numpy(), code, into).copy()
    assert torch.equal(torch.from_numpy(encoded).view(torch.int16), expected.view(torch.int16))
    zeros = torch.zeros(8 * len(expected), dtype=torch.uint8).numpy()
    decoded = decode(encoded, code, zeros, exact_dtype(code))
    assert torch.equal(torch.from_numpy(decoded.copy()), expected.float())


def test_the_number_of_threads_changes_no_bit(ends: tuple[Path, Path], tmp_path: Path) -> None:
    written = []
    for threads in (1, 2, 5):
        out = tmp_path / f"o{threads}"
        interpolate(*ends, alpha=0.3, out=out, threads=threads)
        written.append(out.read_bytes())
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_both_ends_and_points_between_equal_checkpoints_are_bit_for_bit(
    ends: tuple[Path, Path], tmp_path: Path, alpha: float
) -> None:
    interpolate(*ends, alpha=alpha, out=tmp_path / "o")
    same(load_file(tmp_path / "o"), load_file(ends[int(alpha)]))
    interpolate(ends[0], ends[0], alpha=0.37, out=tmp_path / "same")
    same(load_file(tmp_path / "same"), load_file(ends[0]))


@pytest.mark.parametrize("kind", DTYPES)
def test_a_requested_dtype_is_that_of_the_result(ends: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    a, b = load_file(ends[0]), load_file(ends[1])
    for alpha in (0.0, 0.25):
        interpolate(*ends, alpha=alpha, out=tmp_path / "o", dtype=kind, overwrite=True)
        converted = load_file(tmp_path / "o")
        for name, tensor in a.items():
            if tensor.is_floating_point():
                exact = torch.lerp(tensor.double(), b[name].double(), alpha)
                expected = torch.lerp(tensor, b[name], alpha) if kind != "float64" else exact
                assert converted[name].dtype == DTYPES[kind]
                assert torch.allclose(
                    converted[name].double(), expected.to(DTYPES[kind]).double(), rtol=2e-3, atol=1e-6
                )
            else:
                assert torch.equal(converted[name], tensor)
    with pytest.raises(UsageError, match="dtype int8: expected one of float32"):
        interpolate(*ends, alpha=0.5, out=tmp_path / "no", dtype="int8")


def test_an_average_is_the_weighted_sum(ends: tuple[Path, Path], tmp_path: Path) -> None:
    save_file(state(3), tmp_path / "c.safetensors")
    paths = [*ends, tmp_path / "c.safetensors"]
    summary = average(paths, tmp_path / "o", weights=[0.5, 0.75, -0.25])
    result, tensors = load_file(tmp_path / "o"), [load_file(path) for path in paths]
    for name in ("large", "small", "scalar"):
        a, b, c = (checkpoint[name] for checkpoint in tensors)
        assert torch.equal(result[name], a * 0.5 + b * 0.75 + c * -0.25)
    assert torch.equal(result["steps"], tensors[0]["steps"])
    assert (summary.interpolated, set(summary.copied)) == (4, {"steps", "mask"})
    average([ends[0]] * 4, tmp_path / "same")
    same(load_file(tmp_path / "same"), load_file(ends[0]))
    with pytest.raises(UsageError, match="at least two"):
        average([ends[0]], tmp_path / "no")
    for weights in ([1.0], [0.5, math.nan]):
        with pytest.raises(UsageError, match="finite numbers, one per checkpoint"):
            average(ends, tmp_path / "no", weights=weights)


def sharded(directory: Path, seed: int, shards: int = 2) -> Path:
    directory.mkdir()
    tensors = state(seed)
    names = list(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        mine = names[number::shards]
        save_file({name: tensors[name] for name in mine}, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    index = {"metadata": {"total_size": 1, "mine": "kept"}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text('{"layers": 2}')
    (directory / "code.py").write_text("no code is taken along")
    return directory


def test_output_shards_have_the_layout_of_the_input(tmp_path: Path) -> None:
    a, b = sharded(tmp_path / "a", 1), sharded(tmp_path / "b", 2, shards=3)
    interpolate(a, b, alpha=0.25, out=tmp_path / "out", dtype="bfloat16")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]  # fmt: skip
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    written = {}
    for file in dict.fromkeys(index["weight_map"].values()):
        written |= load_file(tmp_path / "out" / file)
        assert all(index["weight_map"][name] == file for name in load_file(tmp_path / "out" / file))
    assert index["metadata"]["mine"] == "kept"
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in written.values())
    expected = torch.lerp(state(1)["small"], state(2)["small"], 0.25).bfloat16()
    assert torch.equal(written["small"], expected)
    with pytest.raises(UsageError, match="exists already"):
        interpolate(a, b, alpha=0.25, out=tmp_path / "out")
    interpolate(a / "model.safetensors.index.json", b, alpha=1, out=tmp_path / "out", overwrite=True)
    written = load_file(tmp_path / "out" / "model-00001-of-00002.safetensors")
    assert torch.equal(written["large"], state(2)["large"])
    (a / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index["weight_map"]}))
    interpolate(a, b, alpha=0, out=tmp_path / "out", overwrite=True)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in state(1).values())}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


def test_a_directory_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    a, b = sharded(zoo / "a", 1), sharded(zoo / "b", 2)
    (zoo / "thesis.tex").write_text("years of work")
    (tmp_path / "link").symlink_to(zoo)
    three_shards = sharded(tmp_path / "three_shards", 3)
    empty = tmp_path / "empty"
    empty.mkdir()
    single = tmp_path / "single"
    single.mkdir()
    save_file(state(1), single / "model.safetensors")
    broken = sharded(tmp_path / "broken", 4)
    (broken / "model-00002-of-00002.safetensors").unlink()
    noted = sharded(tmp_path / "noted", 5)
    (noted / "code.py").unlink()
    (noted / "notes.txt").write_text("no companion of the inputs")
    before = sorted(tmp_path.rglob("*"))
    for out, message in (
        (zoo, "contains one of the input checkpoints"), (tmp_path, "contains one of the input checkpoints"),
        (tmp_path / "link", "contains one of the input checkpoints"), (a, "is one of the input checkpoints"),
        (three_shards, r"it also contains code\.py"), (noted, r"not replaced, because it also contains notes\.txt"),
        (empty, "not replaced, because it contains nothing and is not a sharded checkpoint"),
        (single, r"not replaced, because it contains model\.safetensors and .* \(no index of shards\)"),
        (broken, r"not replaced, because it contains code\.py and is not a sharded checkpoint \(.*which is missing"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            interpolate(a, b, alpha=0.5, out=out, overwrite=True)
        with pytest.raises(UsageError, match=message):
            average([a, b], out, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_of_links_to_the_inputs_is_not_replaced(tmp_path: Path) -> None:
    blobs, b, hub = sharded(tmp_path / "blobs", 1), sharded(tmp_path / "b", 2), tmp_path / "hub"
    hub.mkdir()
    (blobs / "code.py").unlink()
    for file in blobs.iterdir():
        (hub / file.name).symlink_to(file)
    with pytest.raises(UsageError, match="contains one of the input checkpoints"):
        interpolate(hub / "model.safetensors.index.json", b, alpha=0.5, out=hub, overwrite=True)
    assert all(file.is_symlink() for file in hub.iterdir())


def test_a_file_added_during_the_writing_of_shards_prevents_the_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, out = (sharded(tmp_path / name, seed) for seed, name in enumerate(("a", "b", "out")))
    (out / "code.py").unlink()
    blend = blending.line(0.5)

    def slowly(*words: Any) -> Any:
        (out / "thesis.tex").write_text("years of work")
        return blend(*words)

    monkeypatch.setattr(blending, "line", lambda _alpha: slowly)
    before = (out / "model-00001-of-00002.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"also contains thesis\.tex"):
        interpolate(a, b, alpha=0.5, out=out, overwrite=True)
    assert (out / "thesis.tex").read_text() == "years of work"
    assert (out / "model-00001-of-00002.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


def test_metadata_is_copied_and_states_the_position_on_the_path(ends: tuple[Path, Path], tmp_path: Path) -> None:
    average(ends, tmp_path / "o", weights=[0.5, 0.5])
    with open_checkpoint(tmp_path / "o") as checkpoint:
        metadata = checkpoint.raw_metadata
    assert metadata["mine"] == "kept"
    path = json.loads(metadata["ckpt_probe.path"])
    assert path == {"average": ["a.safetensors", "b.safetensors"], "weights": [0.5, 0.5]}
    interpolate(*ends, alpha=0.3, out=tmp_path / "line")
    with open_checkpoint(tmp_path / "line") as checkpoint:
        path = json.loads(checkpoint.raw_metadata["ckpt_probe.path"])
    assert path == {"a": "a.safetensors", "b": "b.safetensors", "alpha": 0.3, "path": "linear"}
    average(ends, tmp_path / "half", dtype="float16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "half").values() if tensor.is_floating_point()} == {
        torch.float16
    }


def raw(path: Path, header: str, data: bytes = b"\0" * 8) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + data)
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ('{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "x": {}}', "'x' is present twice"),
        ('{"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}', "8 bytes do not fit F32 of shape"),
        ('{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "starts at byte"),
        ('{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "longer than its header says"),
        ('{"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}', "truncated: shorter than its header says"),
        (
            '{"x": {"dtype": "F4", "shape": [2, 8], "data_offsets": [0, 8]}}',
            "tensor 'x' has the unsupported dtype F4",
        ),
        (f'{{"x": {{"dtype": "F32", "shape": {[1] * 65}, "data_offsets": [0, 4]}}}}', "65 axes, expected at most 64"),
        ('{"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}', "are not all integers from 0"),
        ('{"x": 5}', "its header cannot be read"),
        ("[]", "its header cannot be read"),
        ("no JSON", "its header cannot be read"),
    ],
)
def test_headers_with_false_contents_are_refused(
    ends: tuple[Path, Path], tmp_path: Path, header: str, message: str
) -> None:
    bad = raw(tmp_path / "bad.safetensors", header)
    with pytest.raises(DataError, match=rf"bad\.safetensors: .*{message}"):
        interpolate(bad, ends[1], alpha=0.5, out=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(DataError, match="truncated one"), open_checkpoint(tmp_path / "bad.safetensors"):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: (d / "model-00002-of-00002.safetensors").unlink(),
            "which is missing",
        ),
        (
            lambda d: save_file(state(1), d / "model-00002-of-00002.safetensors"),
            "is present twice, in model-00001-of-00002.safetensors and model-00002-of-00002.safetensors",
        ),
        (lambda d: (d / "model.safetensors.index.json").write_text("{}"), "not an index of shards"),
        (
            lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../a.safetensors"}}'),
            "which is outside its directory",
        ),
        (
            lambda d: (d / "model.safetensors.index.json").write_text(
                '{"weight_map": {"other": "model-00001-of-00002.safetensors"}}'
            ),
            "says that tensor 'other' is in model-00001-of-00002.safetensors, but it is not",
        ),
    ],
)
def test_shards_that_contradict_their_index_are_refused(tmp_path: Path, change, message: str) -> None:
    folder = sharded(tmp_path / "a", 1)
    change(folder)
    with pytest.raises(DataError) as error, open_checkpoint(folder):
        pass
    assert message in str(error.value)


def test_tensors_without_a_sum_and_invalid_arguments_are_refused(ends: tuple[Path, Path], tmp_path: Path) -> None:
    eights = {"x": torch.ones(3).to(torch.float8_e4m3fn)}
    save_file(eights, tmp_path / "q.safetensors")
    with pytest.raises(DataError, match="tensor 'x' is F8_E4M3, which cannot be averaged"):
        interpolate(tmp_path / "q.safetensors", tmp_path / "q.safetensors", alpha=0.5, out=tmp_path / "o")
    interpolate(tmp_path / "q.safetensors", tmp_path / "q.safetensors", alpha=1, out=tmp_path / "o")
    assert torch.equal(load_file(tmp_path / "o")["x"].view(torch.uint8), eights["x"].view(torch.uint8))
    # safetensors stores a tensor shared by two names once, under either name.
    save_file({name: tensor for name, tensor in state(2).items() if name != "small"}, tmp_path / "tied.safetensors")
    with pytest.raises(DataError, match=r"1 missing from tied\.safetensors: small"):
        interpolate(ends[0], tmp_path / "tied.safetensors", alpha=0.5, out=tmp_path / "no")
    broken = state(2)
    broken["large"][2, 5] = math.inf
    save_file(broken, tmp_path / "inf.safetensors")
    with pytest.raises(DataError, match="tensor 'large' contains NaN or infinity"):
        average([ends[0], tmp_path / "inf.safetensors"], tmp_path / "no")
    save_file(state(2) | {"small": torch.full((5,), 1e6)}, tmp_path / "big.safetensors")
    with pytest.raises(DataError, match="tensor 'small' contains numbers over 65504"):
        interpolate(ends[0], tmp_path / "big.safetensors", alpha=0.5, out=tmp_path / "no", dtype="float16")
    with pytest.raises(UsageError, match="is one of the input checkpoints"):
        interpolate(*ends, alpha=0.5, out=ends[1], overwrite=True)
    with pytest.raises(UsageError, match="threads: expected at least 1"):
        interpolate(*ends, alpha=0.5, out=tmp_path / "no", threads=0)
    assert not (tmp_path / "no").exists()
    assert not list(tmp_path.glob(".*"))


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
# Bytecode files would be cut off at the limit, and the next import of the module would read them.
sys.dont_write_bytecode = True
from ckpt_probe.cli.app import run
sys.exit(run(sys.argv[1:]))
"""


def test_a_full_disk_gives_an_error_and_leaves_no_file(ends: tuple[Path, Path], tmp_path: Path) -> None:
    words = ["interpolate", *map(str, ends), "--alpha", "0.5", "--out", str(tmp_path / "o")]
    done = subprocess.run([sys.executable, "-c", LIMITED, *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'o'}: cannot be written: File too large")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


MEASURED = """
import sys
import threading
import time
from ckpt_probe.cli.app import run
code = run(sys.argv[1:])
assert "torch" not in sys.modules and "scipy" not in sys.modules and "h5py" not in sys.modules
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_depend_on_tensor_sizes_and_torch_is_not_imported(tmp_path: Path) -> None:
    peaks = []
    for million in (1, 24):
        paths = [tmp_path / f"{name}-{million}.safetensors" for name in "abc"]
        for path in paths[:2]:
            save_file({"x": torch.ones(million * 10**6, dtype=torch.bfloat16)}, path)
        words = ["average", *map(str, paths[:2]), "-o", str(paths[2])]
        done = subprocess.run([sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) / 1024)
    assert max(peaks) <= 100
    assert peaks[1] <= peaks[0] + 10


def test_ctrl_c_does_not_wait_for_the_remaining_blocks() -> None:
    def task(_buffers: object, block: int) -> None:
        if block == 3:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        # A block waits for reading and writing, during which other threads run.
        time.sleep(0.001)

    # A test run in the background may ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            # The file is endless, so that the call would never return if it waited for all blocks.
            streaming._run(task, itertools.count(), 2, 2)
    finally:
        signal.signal(signal.SIGINT, before)
