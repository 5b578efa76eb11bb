"""Tests of files of torch.save: the state dict is detected, other content is inert or refused, and no code runs."""

import argparse
import collections
import datetime
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ckpt_probe.budget import Budget
from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.checkpoints.formats import pickled
from ckpt_probe.checkpoints.formats.scanning import scan
from ckpt_probe.checkpoints.formats.stand_ins import STAND_INS
from ckpt_probe.errors import DataError, UsageError

ZIP, STREAM = "torch zip", "torch stream"
KINDS = pytest.mark.parametrize("kind", [ZIP, STREAM])


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def save(path: Path, saved: Any, kind: str = ZIP) -> Path:
    torch.save(saved, path, _use_new_zipfile_serialization=kind == ZIP)
    return path


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


@KINDS
def test_a_bare_state_dict_is_read(tmp_path: Path, kind: str) -> None:
    state = network().state_dict()
    with open_checkpoint(save(tmp_path / "a.pth", state, kind)) as checkpoint:
        assert (checkpoint.format, checkpoint.state_key) == (kind, None)
        assert checkpoint.names == sorted(state)
        assert checkpoint.shape("0.weight") == (3, 4)
        assert checkpoint.dtype("1.num_batches_tracked") == "I64"
        assert checkpoint.files == (tmp_path / "a.pth",)
        for name, tensor in state.items():
            assert torch.equal(checkpoint.read(name), tensor)
            raw = np.empty(tensor.numel() * tensor.element_size(), np.uint8)
            checkpoint.fill(name, 0, raw.data)
            assert raw.tobytes() == tensor.numpy().tobytes()


@KINDS
@pytest.mark.parametrize(
    "key", ["state_dict", "model", "model_state", "model_state_dict", "net", "params", "ema", "a.deeper.level"]
)
def test_the_state_dict_is_found_under_any_key(tmp_path: Path, kind: str, key: str) -> None:
    model, optimizer = trained()
    saved: Any = model.state_dict()
    for part in reversed(key.split(".")):
        saved = {part: saved}
    saved |= {"optimizer": optimizer.state_dict(), "lr_schedulers": [{"last_epoch": 3}], "epoch": 3, "loss": 0.5}
    with open_checkpoint(save(tmp_path / "a.pt", saved, kind)) as checkpoint:
        assert checkpoint.state_key == key
        assert torch.equal(checkpoint.read("0.weight"), model.state_dict()["0.weight"])
        assert checkpoint.metadata.epoch == 3
        assert checkpoint.facts == {"epoch": 3, "loss": 0.5}


@pytest.mark.parametrize(
    ("field", "step"),
    [("global_step", 7), ("step", 7), ("iteration", np.int64(7)), ("iter", torch.tensor(7)), ("num_updates", 7.0)],
)
def test_the_step_is_read_from_fields_beside_the_state_dict(tmp_path: Path, field: str, step: Any) -> None:
    saved = {"model": network().state_dict(), field: step}
    with open_checkpoint(save(tmp_path / "a.pt", saved)) as checkpoint:
        assert checkpoint.metadata.step == 7
        assert checkpoint.step_source == f"{field} in the file"


def test_two_state_dicts_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    first, second = network(1).state_dict(), network(2).state_dict()
    path = save(tmp_path / "a.pth", {"model": first, "ema": {"module": second, "decay": 0.9}})
    message = (
        r"a\.pth: holds several state dicts: model \(9 tensors, 36 numbers\), ema\.module \(9 tensors, 36 numbers\)"
    )
    with pytest.raises(UsageError, match=rf"{message}; choose one with `state_key='model'`"), open_checkpoint(path):
        pass
    hashes = set()
    for key, expected in (("model", first), ("ema.module", second), ("ema", second)):
        with open_checkpoint(path, state_key=key) as checkpoint:
            assert torch.equal(checkpoint.read("0.weight"), expected["0.weight"])
            hashes.add(checkpoint.content_hash())
            assert len(checkpoint.others) == 1
    assert len(hashes) == 2
    with (
        pytest.raises(UsageError, match=r"`state_key='emb'`: no state dict there; the file has: model \("),
        open_checkpoint(path, state_key="emb"),
    ):
        pass


def test_one_of_two_networks_in_a_state_dict_is_chosen_by_the_prefix_of_its_names(tmp_path: Path) -> None:
    first, second = network(1).state_dict(), network(2).state_dict()
    state = {f"module.query.{n}": t for n, t in first.items()} | {f"module.key.{n}": t for n, t in second.items()}
    path = save(tmp_path / "a.pth", {"state_dict": state})
    with open_checkpoint(path, state_key="state_dict.module.key") as checkpoint:
        assert checkpoint.names == sorted(second)
        assert torch.equal(checkpoint.read("2.weight"), second["2.weight"])


def test_a_much_smaller_second_mapping_is_listed_and_left_out(tmp_path: Path) -> None:
    saved = {"model": {"w": torch.ones(100, 100)}, "criterion": {"center": torch.ones(5)}}
    with open_checkpoint(save(tmp_path / "a.pth", saved)) as checkpoint:
        assert checkpoint.state_key == "model"
        assert checkpoint.others == ("criterion (1 tensors, 5 numbers)",)
    saved = {"backbone": {"w": torch.ones(100, 100)}, "head": {"w": torch.ones(2, 3)}}
    with (
        pytest.raises(UsageError, match=r"backbone .*, head "),
        open_checkpoint(save(tmp_path / "b.pth", saved)),
    ):
        pass


def test_entries_that_are_not_tensors_are_listed(tmp_path: Path) -> None:
    saved = {"w": torch.ones(3), "version": 2, "b": nn.Parameter(torch.ones(2))}
    with open_checkpoint(save(tmp_path / "a.pth", saved)) as checkpoint:
        assert checkpoint.names == ["b", "w"]
        assert checkpoint.dropped == ("version",)
        assert not checkpoint.read("b").requires_grad
    with (
        pytest.raises(DataError, match=r"b\.pth: holds no state dict; it has: epoch \(int\), loss \(Tensor\)"),
        open_checkpoint(save(tmp_path / "b.pth", {"epoch": 1, "loss": torch.tensor(0.5)})),
    ):
        pass


@KINDS
def test_other_objects_of_trainers_are_read_without_importing_their_classes(tmp_path: Path, kind: str) -> None:
    saved = {
        "state_dict": network().state_dict(),
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs/a"), more=argparse.Namespace(x=[1, 2])),
        "best": np.float64(0.75),
        "count": np.int32(3),
        "history": np.arange(3.0),
        "when": datetime.timedelta(days=2),
        "log": collections.defaultdict(list, {"loss": [0.5]}),
        "last": collections.deque([1, 2], maxlen=2),
        "ordered": collections.OrderedDict(a=1),
        "config": OmegaConf.create({"model": {"width": 4, "names": ["a", "b"]}}),
    }
    with open_checkpoint(save(tmp_path / "a.ckpt", saved, kind)) as checkpoint:
        assert checkpoint.facts == {
            "args": {"lr": 0.1, "out": "runs/a", "more": {"x": [1, 2]}},
            "best": 0.75,
            "count": 3,
            "history": "array f8 of shape (3)",
            "when": [2, 0, 0],
            "log": {"loss": [0.5]},
            "last": [1, 2],
            "ordered": {"a": 1},
            "config": {"model": {"width": 4, "names": ["a", "b"]}},
        }


@KINDS
def test_a_whole_module_is_refused_with_the_two_lines_that_convert_it(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    path = save(tmp_path / "net.pth", model, kind)
    with pytest.raises(DataError, match="a whole pickled module; opening it would run code") as caught:
        open_checkpoint(path).__enter__()
    monkeypatch.chdir(tmp_path)
    exec(str(caught.value).rpartition("convert it: ")[2], {"torch": torch})
    with open_checkpoint(tmp_path / "net-weights.pt") as checkpoint:
        assert torch.equal(checkpoint.read("0.weight"), model.state_dict()["0.weight"])


class CallsOnLoad:
    """An object of a hostile file, which calls a function when it is unpickled."""

    def __init__(self, called: Any, *arguments: Any) -> None:
        self.called = called
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.called, self.arguments


@KINDS
def test_a_forbidden_global_is_named_and_not_called(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "called"
    path = save(tmp_path / "a.pth", {"w": torch.ones(3), "x": CallsOnLoad(os.system, f"touch {target}")}, kind)
    with pytest.raises(DataError, match=rf"a\.pth: needs {os.system.__module__}\.system, not on the list"):
        open_checkpoint(path).__enter__()
    assert not target.exists()


@KINDS
@pytest.mark.parametrize(
    ("called", "arguments", "message"),
    [
        # torch allows these calls with weights_only, and they allocate the memory that the file claims.
        (bytearray, (2**40,), "needs builtins.bytearray"),
        (torch.FloatTensor, (2**40,), "needs torch.FloatTensor"),
        (torch._tensor._rebuild_from_type_v2, (torch.Size, torch.Tensor, ((1,),), {}), "_rebuild_from_type_v2 of"),
        (torch._utils._rebuild_sparse_tensor, (torch.sparse_coo, ()), "holds sparse tensors"),
        (eval, ("1",), "needs builtins.eval"),
    ],
)
def test_calls_that_torch_allows_but_no_checkpoint_needs_are_refused(
    tmp_path: Path, kind: str, called: Any, arguments: tuple[Any, ...], message: str
) -> None:
    path = save(tmp_path / "a.pth", {"w": torch.ones(3), "x": CallsOnLoad(called, *arguments)}, kind)
    with pytest.raises(DataError, match=message):
        open_checkpoint(path).__enter__()


@KINDS
def test_quantised_and_sparse_tensors_are_refused(tmp_path: Path, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8)
    for tensor, kind_of_tensor in ((quantised, "quantised"), (torch.eye(3).to_sparse(), "sparse")):
        with pytest.raises(DataError, match=f"holds {kind_of_tensor} tensors; convert them"):
            open_checkpoint(save(tmp_path / "a.pth", {"w": tensor}, kind)).__enter__()


@KINDS
def test_a_tensor_that_claims_more_bytes_than_the_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / "a.pth", {"w": torch.ones(1).expand(10**10)}, kind)
    with pytest.raises(DataError, match="tensor 'w' claims 40,000,000,000 bytes, more than the whole file has"):
        open_checkpoint(path).__enter__()


@KINDS
@pytest.mark.parametrize(
    ("claimed", "message"), [(200, "torch cannot read it"), (10**10, "claims 40,000,000,000 bytes")]
)
def test_a_tensor_that_ends_beyond_its_storage_is_refused(
    tmp_path: Path, kind: str, claimed: int, message: str
) -> None:
    """On the meta device torch enlarges the storage of such a tensor in place of an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = torch.ones(5).storage()
    tensor = CallsOnLoad(
        torch._utils._rebuild_tensor_v2, storage, 0, (claimed,), (1,), False, collections.OrderedDict()
    )
    path = save(tmp_path / "a.pth", {"w": tensor, "v": torch.ones(1000)}, kind)
    with pytest.raises(DataError, match=message), open_checkpoint(path) as checkpoint:
        checkpoint.read("w")


def rewritten(path: Path, change: Any) -> Path:
    """Replace the members of a zip archive by those that `change` returns from them; return the path."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    changed = change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in changed.items():
            archive.writestr(name, data)
    return path


def test_archives_with_invalid_members_are_refused(tmp_path: Path) -> None:
    state = {"w": torch.ones(5)}

    def fresh(name: str) -> Path:
        return save(tmp_path / f"{name}.pth", state)

    for name, change, message in (
        ("escapes", lambda m: m | {"escapes/../../x": b"x"}, "'escapes/../../x' points outside the archive"),
        ("absolute", lambda m: m | {"/etc/x": b"x"}, "points outside the archive"),
        ("smaller", lambda m: m | {"smaller/data/0": b"1234"}, "claims 20 bytes for data/0, which has 4"),
        ("gone", lambda m: {n: d for n, d in m.items() if n != "gone/data/0"}, "storage data/0 is missing"),
        ("plain", lambda _: {"x.txt": b"text"}, "a zip file, but not one written by torch.save"),
        ("numpy", lambda _: {"a.npy": b"", "b.npy": b""}, "a zip file, but not one written by torch.save"),
        ("code", lambda m: m | {"code/constants.pkl": b""}, "TorchScript"),
        ("text", lambda m: m | {"text/data.pkl": b"no pickle"}, "text.pth"),
        ("short", lambda m: m | {"short/data.pkl": m["short/data.pkl"][:-9]}, "short.pth"),
    ):
        path = rewritten(fresh(name), change)
        with pytest.raises(DataError, match=message.replace(".", r"\.") if "(" not in message else message):
            open_checkpoint(path).__enter__()
    packed = fresh("packed")
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("packed/data/1", b"0" * 10**6)
    with pytest.raises(DataError, match=r"'packed/data/1' is compressed"):
        open_checkpoint(packed).__enter__()


def with_two_directories(shown: Path, loaded: Path) -> bytes:
    """Return an archive with the members of two: zipfile reads the directory of one, and torch that of the other."""
    content, directories = b"", []
    for path in (loaded, shown):
        with zipfile.ZipFile(path) as archive:
            members, data = archive.infolist(), path.read_bytes()
            directory = bytearray(data[archive.start_dir : -22])
        # zipfile takes the first directory for bytes in front of the archive.
        shift, position = len(content) - sum(map(len, directories)), 0
        for member in members:
            struct.pack_into("<I", directory, position + 42, member.header_offset + shift)
            position += 46 + len(member.filename)
        content += data[: archive.start_dir]
        directories.append(directory)
    first, second = directories
    assert len(first) == len(second)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(members), len(members), len(first), len(content), 0)
    return content + first + second + end


def test_an_archive_with_two_directories_is_refused(tmp_path: Path) -> None:
    """Otherwise the members that are checked are not those that torch loads."""
    paths = [tmp_path / "shown" / "a.pth", tmp_path / "loaded" / "a.pth"]
    for path, state in zip(paths, ({"w": torch.ones(500)}, {"v": torch.ones(500)}), strict=True):
        path.parent.mkdir()
        rewritten(save(path, state), lambda members: members)
    path = tmp_path / "a.pth"
    path.write_bytes(with_two_directories(*paths))
    assert list(torch.load(path)) == ["v"]
    with pytest.raises(DataError, match=r"a\.pth: its end is not that of a file of torch\.save"):
        open_checkpoint(path).__enter__()


def test_a_member_that_zipfile_and_torch_call_differently_is_refused(tmp_path: Path) -> None:
    path = rewritten(save(tmp_path / "a.pth", {"w": torch.ones(5)}), lambda members: {**members, "a/xversion": b"3"})
    path.write_bytes(path.read_bytes().replace(b"a/xversion", b"a/x\0ersion"))
    with pytest.raises(DataError, match="a zip file, but not one written by torch"):
        open_checkpoint(path).__enter__()


def test_numbers_in_the_other_byte_order_are_read(tmp_path: Path) -> None:
    """torch ends the process if it is to reverse the bytes of tensors without data."""
    other = "little" if sys.byteorder == "big" else "big"
    numbers = np.arange(6, dtype=np.float32)
    path = save(tmp_path / "a.pth", {"w": torch.from_numpy(numbers.byteswap())})
    rewritten(path, lambda members: members | {"a/byteorder": other.encode()})
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("w").tolist() == numbers.tolist()
    rewritten(path, lambda members: members | {"a/byteorder": b"middle" * 1000})
    with pytest.raises(DataError, match="unknown byte order, b'middlemiddlemiddlemi'; copy it again"):
        open_checkpoint(path).__enter__()


def test_torchscript_is_refused_with_advice(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    with pytest.raises(DataError, match=r"a\.pt: a TorchScript archive, which holds code; if you trust it, convert"):
        open_checkpoint(tmp_path / "a.pt").__enter__()


def test_a_stream_that_claims_more_bytes_than_it_has_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"w": torch.ones(2**10)}, STREAM)
    data = path.read_bytes()
    # Replace the number of values of the storage, a two-byte integer in the pickle, by a larger one of four bytes.
    offset = data.index(b"M" + struct.pack("<H", 2**10))
    path.write_bytes(data[:offset] + b"J" + struct.pack("<i", 2**30) + data[offset + 3 :])
    with pytest.raises(DataError, match="truncated: claims 4,294,967,304 bytes of tensors, but only 4,"):
        open_checkpoint(path).__enter__()


def pickle_of(*parts: bytes) -> io.BytesIO:
    return io.BytesIO(b"\x80\x02" + b"".join(parts) + b".")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle_of(b"X" + struct.pack("<I", 2**31) + b"short"), "expected 2147483648 bytes"),
        (pickle_of(b"\x8e" + struct.pack("<Q", 2**40)), "expected 1099511627776 bytes|BINBYTES8"),
        (pickle_of(b"(" * 3, b"t"), "no complete pickle|stack"),
        (pickle_of(b"0"), "opcode POP, which torch.save does not write"),
        (pickle_of(b"q\x05"), "no complete pickle"),
        (pickle_of(b"h\x05"), "no complete pickle"),
        (pickle_of(b"K\x01a"), "no complete pickle"),
        (io.BytesIO(b"\x80\x02]"), "exhausted|no complete pickle"),
        # Hashing this key would visit 2^n leaves.
        (
            pickle_of(b"}", b"K\x01", b"q\x00h\x00\x86" * 40, b"K\x01s"),
            "unpacks to",
        ),
        # So would hashing the entry of this tuple, from which a set is made.
        (
            pickle_of(b"cbuiltins\nset\nK\x01", b"q\x00h\x00\x86" * 40, b"\x85\x85R"),
            "unpacks to",
        ),
        # So would the state of an ordered dictionary, a list of pairs.
        (
            pickle_of(b"ccollections\nOrderedDict\n)R]K\x01", b"q\x00h\x00\x86" * 40, b"K\x01\x86ab"),
            "unpacks to",
        ),
        # So would spelling the name of a storage.
        (
            pickle_of(
                b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nK\x01",
                b"q\x00h\x00\x86" * 40 + b"X\x03\x00\x00\x00cpuK\x01tQ",
            ),
            "unpacks to",
        ),
        # So would looking up this layout, or the storage of this view.
        (
            pickle_of(b"ctorch.serialization\n_get_layout\nK\x01", b"q\x00h\x00\x86" * 40, b"\x85R"),
            "unpacks to",
        ),
        (
            pickle_of(
                b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01K\x01",
                b"q\x00h\x00\x86" * 40 + b"K\x00K\x01\x87tQ",
            ),
            "unpacks to",
        ),
        # The hash of a key calls itself for each of these.
        (
            pickle_of(b"})", b"\x85" * 1000, b"K\x01s"),
            "more than 100 tuples in one another",
        ),
        # The same long text is encoded many times.
        (
            pickle_of(
                b"]c_codecs\nencode\nq\x00X" + struct.pack("<I", 2**16) + b"a" * 2**16 + b"\x85q\x01",
                b"(" + b"h\x00h\x01R" * 20_000 + b"e",
            ),
            "unpacks to",
        ),
    ],
)
def test_invalid_and_exploding_pickles_are_refused(data: io.BytesIO, message: str) -> None:
    with pytest.raises((ValueError, DataError), match=message):
        scan(data, Budget("a.pt"))


@pytest.mark.parametrize("opcode", [b"}", b"]", b"N", b"K\x01\x85"])
def test_a_pickle_beyond_its_budget_is_refused(opcode: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_probe.budget.MEMORY", 2**20)
    scan(pickle_of(b"](" + opcode * 1000 + b"e"), Budget("a.pt"))
    with pytest.raises(DataError, match=r"^a\.pt: unpacks to 1,\d+,\d+ bytes or more, which its size does not justify"):
        scan(pickle_of(b"](" + opcode * 5000 + b"e"), Budget("a.pt"))


def test_a_pickle_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_probe.budget.SECONDS", 0.0)
    with pytest.raises(DataError, match=r"^a\.pt: takes more than 0 seconds to read"):
        scan(pickle_of(b"](" + b"N" * 5000 + b"e"), Budget("a.pt"))


def test_a_state_without_fields_is_accepted() -> None:
    namespace = STAND_INS["argparse.Namespace"]()
    namespace.__setstate__((5, 6))
    assert namespace.plain() == []


def test_a_pickle_of_shared_lists_is_read_once(tmp_path: Path) -> None:
    """The file has forty nested lists, each of which contains the next one twice, as in a billion laughs attack."""
    laughs: Any = ["ha"]
    for _ in range(40):
        laughs = [laughs, laughs]
    with open_checkpoint(save(tmp_path / "a.pth", {"model": {"w": torch.ones(3)}, "laughs": laughs})) as checkpoint:
        assert checkpoint.names == ["w"]
        assert len(str(checkpoint.facts)) < 100_000


def test_a_plain_pickle_is_refused_and_not_called(tmp_path: Path) -> None:
    target = tmp_path / "called"
    for protocol in (2, 4):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(CallsOnLoad(os.system, f"touch {target}"), protocol))
        with pytest.raises(DataError, match=r"a\.pkl: a plain pickle, not written by torch\.save"):
            open_checkpoint(tmp_path / "a.pkl").__enter__()
    assert not target.exists()


MEASURED = """
import sys, torch
from pathlib import Path
def resident():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS"))) / 1024
from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.checkpoints.formats import pickled
before = resident()
with open_checkpoint(Path(sys.argv[1])) as checkpoint:
    checkpoint.read("layer.3").sum()
    print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_one_tensor_of_a_large_archive_takes_no_more_memory_than_it_has(tmp_path: Path) -> None:
    saved = {"model": {f"layer.{i}": torch.ones(2**20) for i in range(50)}}
    path = save(tmp_path / "a.pth", saved)
    done = subprocess.run([sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 60


def description(path: Path, state_key: str | None) -> tuple[object, ...]:
    with open_checkpoint(path, state_key=state_key) as checkpoint:
        return (
            checkpoint.layout,
            checkpoint.state_key,
            checkpoint.others,
            checkpoint.dropped,
            checkpoint.facts,
            checkpoint.metadata,
        )


def tensors_of_all_dtypes() -> dict[str, Any]:
    names = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    newer = ("complex64", "complex128", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")
    return {name: torch.zeros(2, 3, dtype=getattr(torch, name)) for name in (*names, *newer)}


def saved_objects() -> dict[str, Any]:
    model, optimizer = trained()
    state = model.state_dict()
    base = torch.arange(12.0)
    return {
        "bare": state,
        "dtypes": tensors_of_all_dtypes(),
        "views": {
            "a": base[2:8].view(2, 3),
            "t": base.view(3, 4).T,
            "e": base[:1].expand(5, 1),
            "n": torch.zeros(0, 4),
        },
        "parameters": dict(model.named_parameters()),
        "parameter and attributes": {
            "w": torch.nn.Parameter(torch.ones(3, 2), requires_grad=False),
            "n": 3,
            "t": "text",
        },
        "trainer": {
            "model_state_dict": state,
            "optimizer": optimizer.state_dict(),
            "epoch": 3,
            "global_step": 2**40,
            "loss": 0.5,
            "done": False,
            "names": ["a", "b"],
            "shape": torch.Size([2, 3]),
            "best": None,
            "ema": {"shadow": [torch.zeros(1)]},
        },
        "two": {"net": {"a": torch.ones(4, 4)}, "params": {"b": torch.ones(5, 5)}},
        "ordered": collections.OrderedDict(state_dict=collections.OrderedDict(state), step=7),
        "default": collections.defaultdict(list, model=dict(state), epoch=2),
        "a scalar beside": {"model": state, "loss": torch.tensor(0.25), "epoch": 1},
        "arguments": {"model": state, "args": argparse.Namespace(lr=0.1, out=Path("runs/a")), "epoch": 1},
    }


@KINDS
@pytest.mark.parametrize("name", sorted(saved_objects()))
def test_a_file_is_listed_with_the_content_that_torch_reads(
    name: str, kind: str, tmp_path: Path, monkeypatch: Any
) -> None:
    state_key, saved = "net" if name == "two" else None, saved_objects()[name]
    if kind == STREAM:
        # torch cannot read tensors of its newest dtypes from the streams that it writes.
        saved = {key: value for key, value in saved.items() if not key.startswith(("uint16", "uint32", "uint64", "f"))}
    path = save(tmp_path / "a.pt", saved, kind)
    listed = description(path, state_key)
    with open_checkpoint(path, state_key=state_key) as checkpoint:
        first = checkpoint.names[0]
        assert tuple(checkpoint.read(first).shape) == checkpoint.shape(first)
    monkeypatch.setattr(pickled, "LISTING_DEVICE", "cpu")
    assert listed == description(path, state_key)


def test_a_file_that_changes_before_a_tensor_is_read_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", {"a": torch.ones(2, 3)})
    with open_checkpoint(path) as checkpoint:
        save(path, {"a": torch.ones(3, 3)})
        with pytest.raises(DataError, match="changed while it was open"):
            checkpoint.read("a")


@pytest.mark.parametrize("removed", [1, 8, 40])
def test_a_truncated_stream_is_refused(tmp_path: Path, removed: int) -> None:
    path = save(tmp_path / "a.pth", {"v": torch.ones(16), "w": torch.ones(2**10), "x": torch.ones(0)}, STREAM)
    path.write_bytes(path.read_bytes()[:-removed])
    with pytest.raises(DataError, match=r"a\.pth: truncated: claims 4,184 bytes of tensors, but only 4,1"):
        open_checkpoint(path).__enter__()


def test_a_conjugated_view_is_read_as_its_numbers(tmp_path: Path) -> None:
    saved = torch.tensor([[1 + 2j, 3 - 1j]]).conj()
    torch.save({"w": saved, "b": saved.clone().conj().imag}, tmp_path / "w.pt")
    with open_checkpoint(tmp_path / "w.pt") as checkpoint:
        assert torch.equal(checkpoint.read("w"), saved)
        buffer = bytearray(16)
        checkpoint.fill("w", 0, memoryview(buffer))
        assert struct.unpack("4f", buffer) == (1, -2, 3, 1)
        buffer = bytearray(8)
        checkpoint.fill("b", 0, memoryview(buffer))
        assert struct.unpack("2f", buffer) == (2, -1)


def test_a_pickle_protocol_that_torch_refuses_is_named(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "w.pt", pickle_protocol=4)
    with pytest.raises(DataError, match="pickle_protocol=4"), open_checkpoint(tmp_path / "w.pt"):
        pass


@pytest.mark.parametrize("key", ["models.\u00b2", "models." + "9" * 5000])
def test_a_state_key_of_strange_digits_leads_nowhere(tmp_path: Path, key: str) -> None:
    torch.save({"models": [{"w": torch.ones(2, 2)}, {"w": torch.zeros(2, 2)}]}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="no state dict there"), open_checkpoint(tmp_path / "w.pt", state_key=key):
        pass
