"""Tests of invalid checkpoints, models and data of other programs: one clear line, and nothing is written."""

import io
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ckpt_probe.cli.app import run

NETWORK = """
import torch


class Net(torch.nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(64, 16), torch.nn.Linear(16, classes)

    def forward(self, images):
        return self.fc2(self.fc1(images.flatten(1)).relu())


def no_module():
    return "a text"


def raises():
    return {}["missing"]
"""


class Hostile:
    """An object that runs a command when it is unpickled without restrictions."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def weights(classes: int = 10) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"fc1.weight": (16, 64), "fc1.bias": (16,), "fc2.weight": (classes, 16), "fc2.bias": (classes,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def pickled(content: Any, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def safetensors(content: dict[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    return save(content)


def with_member(archive: bytes, name: str) -> bytes:
    file = io.BytesIO(archive)
    with zipfile.ZipFile(file, "a") as opened:
        opened.writestr(name, "x")
    return file.getvalue()


def missing_shard(folder: Path, index: str, shard: str, write: Callable[[dict[str, torch.Tensor], Path], Any]) -> None:
    names = list(weights())
    write({name: weights()[name] for name in names[:2]}, folder / shard.format(1))
    table = {name: shard.format(1 if name in names[:2] else 2) for name in names}
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": table}))


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # loading a model's file adds its directory
    return tmp_path


def error_of(words: list[str], code: int, directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    before = sorted(directory.rglob("*"))
    assert run(words) == code
    output = capsys.readouterr()
    assert (output.out, output.err.strip().count("\n")) == ("", 0), output.err
    assert output.err.startswith("error: ")
    remaining = [
        path for path in sorted(directory.rglob("*")) if "__pycache__" not in path.parts and path.name != "out"
    ]
    assert [path for path in remaining if path not in before] == []
    return output.err


FILES = {
    "x.safetensors": lambda: safetensors(weights()),
    "x.pt": lambda: pickled(weights()),
    "legacy.pth": lambda: pickled(weights(), legacy=True),
    "epoch=0-step=5.ckpt": lambda: pickled({"state_dict": weights(), "global_step": 5, "epoch": 0}),
    "pytorch_model.bin": lambda: pickled({"model": weights()}),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:-1], "truncated"),
        (lambda _: b"", ("an empty file", "a header of 0 bytes")),
        (lambda _: b"hello\n" * 100, ("not a checkpoint of a known format", "not a safetensors file")),
    ],
    ids=["half", "a byte short", "empty", "another file's"],
)
def test_damaged_checkpoints_are_refused(
    name: str, change: Callable[[bytes], bytes], parts: str | tuple[str, ...], directory: Path, capsys: Any
) -> None:
    (directory / name).write_bytes(change(FILES[name]()))
    message = error_of(["inspect", name], 1, directory, capsys)
    assert name in message
    assert any(part in message for part in ([parts] if isinstance(parts, str) else parts))


@pytest.mark.parametrize("name", FILES)
def test_an_empty_directory_in_place_of_a_file_is_refused(name: str, directory: Path, capsys: Any) -> None:
    (directory / name).mkdir()
    assert f"{name}: no checkpoint found" in error_of(["inspect", name], 1, directory, capsys)


def test_a_file_with_the_suffix_of_another_format_is_opened_by_its_content(directory: Path, capsys: Any) -> None:
    (directory / "x.pt").write_bytes(FILES["x.safetensors"]())
    (directory / "x.safetensors").write_bytes(FILES["x.pt"]())
    for name in ("x.pt", "x.safetensors"):
        assert run(["inspect", name]) == 0
        assert "fc2.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("index", "shard", "write"),
    [
        ("model.safetensors.index.json", "model-0000{}-of-00002.safetensors", save_file),
        ("pytorch_model.bin.index.json", "pytorch_model-0000{}-of-00002.bin", torch.save),
    ],
)
def test_a_missing_shard_is_named(index: str, shard: str, write: Any, directory: Path, capsys: Any) -> None:
    missing_shard(directory, index, shard, write)
    message = error_of(["inspect", "."], 1, directory, capsys)
    assert f"{index}: names the shard {shard.format(2)}, which is missing" in message


@pytest.mark.parametrize(
    ("content", "code", "parts"),
    [
        (lambda: pickled({"model": weights(), "more": Hostile()}), 1, ["posix.system", "could run code"]),
        (lambda: pickled(torch.nn.Linear(3, 4)), 1, ["a whole pickled module", "torch.save(model.state_dict()"]),
        (lambda: b"\x80\x02]q\x00" + b"(h\x00" * 9 + b"t" * 9 + b".", 1, ["a plain pickle", "could run code"]),
        (lambda: with_member(pickled(weights()), "../../escaped.txt"), 1, ["'../../escaped.txt'", "outside"]),
        (
            lambda: pickled({"nets": {"student": weights(), "teacher": weights()}}),
            2,
            ["nets.student (4 tensors", "nets.teacher", "--state-key nets.student"],
        ),
    ],
    ids=["forbidden global", "whole module", "plain pickle", "member that escapes", "two candidates"],
)
def test_invalid_and_ambiguous_pickles_are_refused(
    content: Callable[[], bytes], code: int, parts: list[str], directory: Path, capsys: Any
) -> None:
    (directory / "x.pt").write_bytes(content())
    message = error_of(["inspect", "x.pt"], code, directory, capsys)
    assert all(part in message for part in ["x.pt", *parts]), message
    assert not (directory / "ran").exists()


def extract(*words: str, checkpoint: str = "x.safetensors", data: str = "digits") -> list[str]:
    return ["extract", checkpoint, "-o", "out", "--data", data, *words]


def image_folder(folder: Path) -> None:
    from PIL import Image

    for name in ("ant", "bee"):
        (folder / "photos" / "test" / name).mkdir(parents=True)
        pixels = np.zeros((8, 8), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / "test" / name / "0.png")


def test_a_model_of_1000_classes_for_data_of_two_named_classes_is_refused(directory: Path, capsys: Any) -> None:
    (directory / "net.py").write_text(NETWORK)
    image_folder(directory)
    save_file(weights(1000), directory / "x.safetensors")
    words = ["--model", "net.py:Net", "--model-argument", "classes=1000", "--data-argument", "channels=1"]
    message = error_of(extract(*words, data="imagefolder:photos"), 1, directory, capsys)
    assert "the data have 2 classes (ant, bee), the model has 1,000 and no names" in message
    assert run(extract(*words, "--data-argument", "match=order", data="imagefolder:photos")) == 0


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("net.py:no_module", ["net.py:no_module", "returned str, not a torch.nn.Module"]),
        ("net.py:raises", ["net.py:raises", "the function raised KeyError: 'missing'"]),
        ("net.py:Nets", ["net.py has no function Nets", "Net"]),
        ("broken.py:net", ["cannot import broken.py: SyntaxError"]),
        ("missing.py:net", ["missing.py"]),
    ],
)
def test_invalid_functions_of_models_are_refused(model: str, parts: list[str], directory: Path, capsys: Any) -> None:
    save_file(weights(), directory / "x.safetensors")
    (directory / "net.py").write_text(NETWORK)
    (directory / "broken.py").write_text("def net(:\n")
    message = error_of(extract("--model", model), 2, directory, capsys)
    assert all(part in message for part in parts), message


def test_debug_prints_the_traceback_of_a_models_function(directory: Path, capsys: Any) -> None:
    save_file(weights(), directory / "x.safetensors")
    (directory / "net.py").write_text(NETWORK)
    assert run(["--debug", *extract("--model", "net.py:raises")]) == 2
    errors = capsys.readouterr().err
    assert 'net.py", line' in errors
    assert 'return {}["missing"]' in errors


def test_quantised_tensors_are_refused(directory: Path, capsys: Any) -> None:
    (directory / "net.py").write_text(NETWORK)
    eight = {**weights(), "fc2.weight": torch.ones(10, 16, dtype=torch.int8), "fc2.SCB": torch.ones(10)}
    four = {**weights(), "fc2.weight": torch.ones(80, 1, dtype=torch.uint8), "fc2.weight.absmax": torch.ones(3)}
    for state in (eight, four):
        save_file(state, directory / "x.safetensors")
        message = error_of(extract("--model", "net.py:Net"), 1, directory, capsys)
        assert "'fc2.weight'" in message
        assert "quantised" in message


def test_an_adapter_without_its_base_is_refused(directory: Path, capsys: Any) -> None:
    (directory / "adapter").mkdir()
    save_file(
        {"base_model.model.fc2.lora_A.weight": torch.ones(2, 16)}, directory / "adapter" / "adapter_model.safetensors"
    )
    (directory / "adapter" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4})
    )
    assert "with --base" in error_of(["inspect", "adapter"], 2, directory, capsys)


@pytest.mark.parametrize(
    ("table", "code", "parts"),
    [
        ("a,b,c\n1,2,3\n", 1, ["t.csv", "label"]),
        ("text,label\nsome words,x\nother words,y\n", 2, ["text needs a tokenizer"]),
    ],
    ids=["no label column", "no tokenizer"],
)
def test_tables_without_labels_or_a_tokenizer_are_refused(
    table: str, code: int, parts: list[str], directory: Path, capsys: Any
) -> None:
    save_file(weights(), directory / "x.safetensors")
    (directory / "net.py").write_text(NETWORK)
    (directory / "t.csv").write_text(table)
    message = error_of(extract("--model", "net.py:Net", data="csv:t.csv"), code, directory, capsys)
    assert all(part in message for part in parts), message
