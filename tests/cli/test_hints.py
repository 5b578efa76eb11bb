"""Checks that commands and options in pages and messages can be executed as printed."""

import json
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import h5py
import pytest

from ckpt_probe.cli.app import group, run
from ckpt_probe.cli.flags import parameters_of
from ckpt_probe.extraction import Setup, Storage
from ckpt_probe.extraction.config import command_of
from ckpt_probe.paths.options import PathOptions, PlaneOptions

CONFIG = """
[data]
name = "digits"
[model]
name = "mlp"
arguments = { hidden = [12, 8] }
[training]
steps = 2
[checkpoints]
steps = [0]
"""
ONE, LAST = "runs/s 0/checkpoints/step-000000.safetensors", "runs/s 0/checkpoints/step-000002.safetensors"
OTHER = "runs/s1/checkpoints/step-000002.safetensors"
COMMANDS = {
    "dumps": (
        'extract "runs/s 0" -o dumps --layers all --sampling subset_rows=50 --set feature_dtype=float64 --limit 60 '
        "--split test --set with_logits=false --device cpu --set classifier=5 "
        "--model-argument '{\"hidden\": [12, 8]}' --model mlp"
    ),
    "line": f'interpolate "{ONE}" {OTHER} -o line --points 3 --set span=-0.5:1.5 --split test',
    "curve": f'interpolate "{LAST}" {OTHER} -o curve --path bezier --points auto --set curve_epochs=0.1 --device cpu',
    "plane": f'plane "{ONE}" "{LAST}" {OTHER} -o plane --grid 3x2 --set margin=0.1 --split test',
    "around": f"plane {OTHER} -o around --set radius=0.5 --set seed=3 --grid 2 --split test",
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("a study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        Path("c.toml").write_text(CONFIG)
        for seed, name in enumerate(("s 0", "s1")):
            assert run(["train", "c.toml", "-o", f"runs/{name}", "--set", f"seed={seed}", "--device", "cpu"]) == 0
        for line in COMMANDS.values():
            assert run(shlex.split(line.replace("", ""))) == 0
        assert run(["report", *COMMANDS, "-o", "page.html"]) == 0
    return root


def origins(page: Path) -> dict[str, dict[str, Any]]:
    """Return the provenance of the sources of a page, by their names."""
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    return {origin["name"]: origin for origin in json.loads(text)["origins"]}


def content(name: str) -> Any:
    """Return the contents of a result, except times."""
    folder = Path(name)
    if name == "dumps":
        return {file.name: sorted(h5py.File(file)["test"]) for file in folder.glob("*.h5")}
    return (folder / "points.jsonl").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_in_a_page_reproduces_the_source(
    name: str, study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(study)
    command = origins(Path("page.html"))[name]["command"]
    words = shlex.split(command)
    assert words[0] == "ckpt-probe"
    before = content(name)
    # The command refuses a directory that was made with other options.
    assert run(words[1:]) == 0, capsys.readouterr().err
    assert "0 dumps written" in capsys.readouterr().err or name != "dumps"
    if name in {"dumps", "around"}:
        Path(name).rename(f"{name} aside")
        assert run(words[1:]) == 0, capsys.readouterr().err
    assert content(name) == before


def test_a_page_written_in_another_directory_names_the_directory_of_its_commands(
    study: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["report", str(study / "dumps"), str(study / "dumps" / "step-000002.h5"), "-o", "page.html"]) == 0
    for origin in origins(Path("page.html")).values():
        directory, command = origin["command"].split(" && ")
        monkeypatch.chdir(shlex.split(directory)[1])
        assert Path.cwd() == study
        assert run(shlex.split(command)[1:]) == 0


def test_checkpoints_of_one_name_get_distinct_labels(study: Path) -> None:
    marks = json.loads((study / "plane" / "plane.json").read_text())["marks"]
    expected = [name.removeprefix("runs/") for name in (ONE, LAST, OTHER)]
    assert [mark["checkpoint"] for mark in marks] == expected
    path = json.loads((study / "curve" / "path.json").read_text())
    assert (path["from"], path["to"]) == tuple(expected[1:])


def test_dumps_of_one_name_get_distinct_labels(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(study)
    line = "extract runs/s1 -o other --layers all --sampling subset_rows=50 --split test --limit 60"
    assert run(line.split()) == 0
    capsys.readouterr()
    assert run(["similarity", "dumps/step-000002.h5", "other/step-000002.h5", "--measure", "cka"]) == 0
    assert "layers of dumps/step-000002 (rows) and other/step-000002 (columns)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("store", "words"),
    [
        ([], ["analyze", "thin", "--set", "layer_metric=separation"]),
        (["--store", "moments"], ["analyze", "thin"]),
        (["--layers", "all"], ["analyze", "thin", "--wide"]),
    ],
)
def test_the_options_in_a_message_suffice(
    store: list[str], words: list[str], study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(study)
    extract = ["extract", "runs/s1", "-o", "thin", "--limit", "80", "--device", "cpu"]
    assert run([*extract, *store, "--overwrite"]) == 0
    capsys.readouterr()
    run(words)
    outputs = capsys.readouterr()
    [hint, *_] = re.findall(r"extract (?:them )?again with (--[^);]*--overwrite)", outputs.out + outputs.err)
    store_options = [] if "--store" in hint or "--layers" in hint else store
    assert run([*extract, *store_options, *hint.replace(" and ", " ").split()]) == 0
    capsys.readouterr()
    assert run(words) == 0
    outputs = capsys.readouterr()
    assert hint not in outputs.out + outputs.err


@pytest.mark.parametrize(
    ("verb", "settings"),
    [("extract", (Setup, Storage)), ("interpolate", (Setup, PathOptions)), ("plane", (Setup, PlaneOptions))],
)
def test_every_setting_is_an_option_with_the_same_default(verb: str, settings: tuple[Any, ...], tmp_path: Path) -> None:
    command = group.get_command(click.Context(group), verb)
    assert command is not None
    spelled = parameters_of(command)
    defaults = command.make_context(verb, ["A", "B", "-o", "C"] if verb != "extract" else ["A", "-o", "C"]).params
    for field in (field for part in settings for field in fields(part)):
        if (field.name in {"layers", "pooling", "unlabelled"} and verb != "extract") or field.name == "directions":
            continue
        assert (defaults[field.name] or None) == (field.default or None)
        value = {"splits": ["x"], "span": [0, 1], "grid": [3, 2]}.get(field.name, 1)
        request = {"inputs": [], "directory": ".", "options": {field.name: value}}
        line = command_of(verb, request, tmp_path)
        _, spelling = spelled[field.name]
        assert f" {spelling}{'=' if ' ' in spelling else ' '}" in f"{line} "
