"""Tests of checkpoints whose names or dtypes differ: prefixes of wrappers, extra tensors, dtypes to convert."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ckpt_probe.cli.app import run
from ckpt_probe.errors import DataError
from ckpt_probe.merging import average, interpolate
from ckpt_probe.paths import evaluate_path
from ckpt_probe.progress import MessageLog


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


class Module(nn.Module):
    """A module that stores the network under an attribute, as a Lightning module does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def partly_compiled(model: nn.Module) -> nn.Module:
    model[3] = torch.compile(model[3])
    return model


WRAPPERS = {
    "data-parallel": nn.DataParallel,
    "compiled": torch.compile,
    "both": lambda model: nn.DataParallel(torch.compile(model)),
    "a layer compiled": partly_compiled,
    "Lightning": Module,
    "compiled in Lightning": lambda model: Module(torch.compile(model)),
}


def saved(path: Path, model: nn.Module, **beside: Tensor) -> Path:
    save_file({**model.state_dict(), **beside}, path)
    return path


def middle() -> dict[str, Tensor]:
    a, b = network(1).state_dict(), network(2).state_dict()
    return {name: torch.lerp(a[name], b[name], 0.5) if a[name].is_floating_point() else a[name] for name in a}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_network_is_matched_with_the_plain_one(
    tmp_path: Path, wrapper: str, capsys: pytest.CaptureFixture
) -> None:
    plain, wrapped = saved(tmp_path / "plain", network(1)), saved(tmp_path / "wrapped", WRAPPERS[wrapper](network(2)))
    for files in ((plain, wrapped), (wrapped, plain)):
        assert run(["average", *map(str, files), "-o", str(tmp_path / "o"), "--overwrite"]) == 0
        note = f"{files[1].name}: tensor names differ from those of {files[0].name} by the prefix of a wrapper ("
        assert note in capsys.readouterr().err
        assert run(["interpolate", *map(str, files), "--alpha", "0.5", "-o", str(tmp_path / "p"), "--overwrite"]) == 0
        for out in (tmp_path / "o", tmp_path / "p"):
            # The output has the names of the first checkpoint: torch loads it into a network wrapped like that.
            model = network(0)
            wrapping = WRAPPERS[wrapper] if files[0] is wrapped else nn.Sequential.eval
            wrapping(model).load_state_dict(load_file(out))
            for tensor, expected in zip(model.state_dict().values(), middle().values(), strict=True):
                assert torch.allclose(tensor, expected)


def test_networks_in_different_wrappers_are_matched(tmp_path: Path) -> None:
    files = [saved(tmp_path / name.replace(" ", "-"), wrap(network(1))) for name, wrap in WRAPPERS.items()]
    average(files, tmp_path / "o", weights=[0.5, 0.5, 0, 0, 0, 0])
    written, expected = load_file(tmp_path / "o"), load_file(files[0])
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())


def test_tensors_outside_the_wrapped_network_are_left_out_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plain = saved(tmp_path / "plain", network(1))
    beside = saved(tmp_path / "beside", AveragedModel(network(2)))
    assert run(["average", str(plain), str(beside), "-o", str(tmp_path / "o")]) == 0
    assert "1 tensors outside it are left out: n_averaged" in capsys.readouterr().err
    written = load_file(tmp_path / "o")
    assert written.keys() == middle().keys()
    assert all(torch.allclose(written[name], tensor) for name, tensor in middle().items())
    with pytest.raises(DataError, match=r"1 missing from plain: n_averaged"):
        average([beside, plain], tmp_path / "no")


def test_names_that_differ_beyond_a_prefix_are_an_error(tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain", network(1))
    for name, state, message in (
        ("more", {**network(2).state_dict(), "more": torch.ones(1)}, "1 extra in more: more"),
        ("less", {n: t for n, t in network(2).state_dict().items() if n != "3.bias"}, "1 missing from less: 3.bias"),
        ("other", nn.Sequential(*network(2)[:3]).state_dict(), "2 missing from other: 3.bias, 3.weight"),
    ):
        save_file(state, tmp_path / name)
        with pytest.raises(DataError, match=message):
            average([plain, tmp_path / name], tmp_path / "no")


def test_a_name_of_torchs_own_format_causes_a_message(tmp_path: Path) -> None:
    file, log = saved(tmp_path / "a", network(1)), MessageLog()
    average([file, file], tmp_path / "b.pt", progress=log)
    assert log.messages == [
        f"{tmp_path / 'b.pt'}: written as safetensors, whatever its name; torch.load cannot read it"
    ]
    average([file, file], tmp_path / "b.safetensors", progress=log)
    assert len(log.messages) == 1


def test_a_path_is_evaluated_between_a_wrapped_network_and_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The directory of the file is prepended to sys.path; the test restores it.
    monkeypatch.setattr(sys, "path", [*sys.path])
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))
    files = [saved(tmp_path / "a", a), saved(tmp_path / "b", b), saved(tmp_path / "wrapped", nn.DataParallel(b))]
    module = tmp_path / "linear.py"
    module.write_text("from torch import nn\ndef build(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n")
    log = MessageLog()
    options = {"model": f"{module}:build", "data": "digits", "splits": ["test"], "points": 3, "progress": log}
    plain, wrapped = (
        evaluate_path(files[0], file, tmp_path / f"path-{file.name}", **options).points for file in files[1:]
    )
    assert [point["loss"] for point in plain] == [point["loss"] for point in wrapped]
    [note] = [message for message in log.messages if "prefix of a wrapper" in message]
    assert note.startswith("wrapped: tensor names differ from those of a by")


@pytest.mark.parametrize("pair", [("float32", "bfloat16"), ("bfloat16", "float16"), ("float16", "float64")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_dtypes_may_differ_if_dtype_is_given(tmp_path: Path, pair: tuple[str, str], dtype: str) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(301).to(getattr(torch, kind)) for kind in pair]
    files = [tmp_path / "a", tmp_path / "b"]
    for file, tensor in zip(files, tensors, strict=True):
        save_file({"w": tensor}, file)
    exact = torch.float64 if "float64" in (dtype, *pair) else torch.float32
    first, second = (tensor.to(exact) for tensor in tensors)
    expected = (first * 0.5 + second * 0.5).to(getattr(torch, dtype))
    average(files, tmp_path / "o", dtype=dtype)
    interpolate(*files, alpha=0.5, out=tmp_path / "p", dtype=dtype)
    assert torch.equal(load_file(tmp_path / "o")["w"], expected)
    assert torch.allclose(
        load_file(tmp_path / "p")["w"], expected, rtol=1e-2 if dtype == "bfloat16" else 1e-6, atol=1e-6
    )
    for alpha, tensor in ((0, first), (1, second)):
        interpolate(*files, alpha=alpha, out=tmp_path / f"end-{alpha}", dtype=dtype)
        assert torch.equal(load_file(tmp_path / f"end-{alpha}")["w"], tensor.to(getattr(torch, dtype)))
    with pytest.raises(DataError, match=r"1 of another dtype \(`dtype=` converts floating numbers\): w "):
        average(files, tmp_path / "no")


def test_integers_are_not_converted(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "a")
    save_file({"w": torch.ones(3, dtype=torch.int32)}, tmp_path / "b")
    with pytest.raises(DataError, match="1 of another dtype: w F32 / I32"):
        average([tmp_path / "a", tmp_path / "b"], tmp_path / "no", dtype="float32")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"l.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)}, "'l.weight' is F8_E4M3, which cannot be averaged"),
        ({"l.weight": torch.ones(2, 2).to(torch.complex64)}, "'l.weight' is C64, which cannot be averaged"),
        (
            {"l.weight": torch.ones(2, 2, dtype=torch.int8), "l.SCB": torch.ones(2)},
            "is quantised .bitsandbytes, 8 bits",
        ),
        (
            {"l.weight": torch.ones(8, 1, dtype=torch.uint8), "l.weight.absmax": torch.ones(1)},
            "is quantised .bitsandbytes, 4 bits",
        ),
        ({"l.qweight": torch.ones(1, 4, dtype=torch.int32), "l.scales": torch.ones(1, 4)}, "is quantised"),
    ],
)
def test_quantised_and_complex_tensors_are_refused(tmp_path: Path, state: dict[str, Tensor], message: str) -> None:
    save_file(state, tmp_path / "a")
    with pytest.raises(DataError, match=message):
        average([tmp_path / "a", tmp_path / "a"], tmp_path / "no")
    # An end is copied without arithmetic, unless a dtype requests a conversion.
    interpolate(tmp_path / "a", tmp_path / "a", alpha=0, out=tmp_path / "copy")
    with pytest.raises(DataError, match=message):
        interpolate(tmp_path / "a", tmp_path / "a", alpha=0, out=tmp_path / "no", dtype="float32")
