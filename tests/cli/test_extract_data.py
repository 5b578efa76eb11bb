"""Tests of `extract` and later commands on images and tables of users, and of invalid data."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ckpt_probe.checkpoints import save_checkpoint
from ckpt_probe.cli.app import run

Probe = Callable[..., tuple[int, str, str]]
NETWORK = """
from torch import nn

def network(classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, classes))

def thin(classes=3):
    return nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, classes))
"""
NAMES = ("ant", "b c", "[red]x")


@pytest.fixture
def probe(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Probe:
    """Return a function that runs a command beside net.py and its weights, and returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "net.py").write_text(NETWORK)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 3))
    save_checkpoint(tmp_path / "net.safetensors", network.state_dict(), {})
    save_checkpoint(tmp_path / "thin.safetensors", thin().state_dict(), {})

    def call(*words: object) -> tuple[int, str, str]:
        code = run([*map(str, words)])
        description = capsys.readouterr()
        return code, description.out, description.err.strip()

    return call


@pytest.fixture
def photos(tmp_path: Path) -> None:
    """Write 40 pictures of each class; one of the files is empty."""
    generator = np.random.default_rng(0)
    for name in NAMES:
        (tmp_path / "photos" / "test" / name).mkdir(parents=True)
        for number in range(40):
            pixels = generator.integers(0, 256, (6, 5, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / "test" / name / f"{number:02}.png")
    (tmp_path / "photos" / "test" / "ant" / "07.png").write_bytes(b"")


def thin() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3))


IMAGES = ("extract", "net.safetensors", "-o", "dumps", "--model", "net.py:network", "--data", "imagefolder:photos")
TABLE = ("extract", "thin.safetensors", "-o", "dumps", "--model", "net.py:thin", "--data")
SMALL = ("--data-argument", "resize=[4,4]", "--data-argument", "mean=0.5,0.5,0.5", "--set", "data_workers=1")


@pytest.mark.usefixtures("photos")
def test_names_of_folders_are_the_names_of_classes_in_tables(probe: Probe) -> None:
    code, _, errors = probe(*IMAGES, *SMALL)
    lines = [line for line in errors.splitlines() if not line.startswith("accuracy stays near chance")]
    assert (code, lines) == (
        0,
        [
            "inputs: imagefolder:photos: size 4×4 (argument), channels 3 (default), scaling to [0, 1] (default), "
            "normalisation mean 0.5, 0.5, 0.5 (argument)",
            "split test: 1 of 120 samples cannot be read, and are left out: ant/07.png (an empty file)",
            "dumps: 1 dump written, 0 already complete",
        ],
    )
    code, description, _ = probe("analyze", "dumps", "--per-class", "--json")
    rows = [json.loads(line) for line in description.splitlines()]
    # Classes are in the order of the names of folders.
    assert [(row["class"], row["class_name"], row["samples"]) for row in rows] == [
        (0, "[red]x", 40),
        (1, "ant", 39),
        (2, "b c", 40),
    ]
    by_number = dict(pair.split(":") for pair in rows[1]["nearest.confusion"].split())
    expected = {"0": '"[red]x"', "1": "ant", "2": '"b c"'}
    assert rows[1]["nearest.named"] == " ".join(f"{expected[number]}:{count}" for number, count in by_number.items())
    code, description, _ = probe("analyze", "dumps", "--per-class", "--wide")
    assert code == 0
    assert "class_name" in description
    assert "[red]x" in description
    code, description, _ = probe("inspect", "dumps/net.h5")
    assert "classes: [red]x, ant, b c" in description
    assert json.loads(probe("inspect", "dumps/net.h5", "--json")[1])["class_names"] == ["[red]x", "ant", "b c"]


@pytest.mark.usefixtures("photos")
def test_a_path_between_checkpoints_is_evaluated_on_images(probe: Probe, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 3))
    save_checkpoint(tmp_path / "b.safetensors", network.state_dict(), {})
    words = (
        "interpolate",
        "net.safetensors",
        "b.safetensors",
        "-o",
        "path",
        "--points",
        3,
        "--json",
        "--set",
        "keep_dumps=true",
    )
    code, description, errors = probe(*words, "--model", "net.py:network", "--data", "imagefolder:photos", *SMALL)
    assert code == 0, errors
    assert [json.loads(line)["samples"] for line in description.splitlines() if '"alpha"' in line] == [119] * 3
    assert errors.startswith(
        "split test: 1 of 120 samples cannot be read, and are left out: ant/07.png (an empty file)"
    )
    assert sorted(path.suffix for path in (tmp_path / "path" / "dumps").iterdir()) == [".h5"] * 3


CSV = "x,y,label\n1,2,a\n3,4,b\n5,6,a\n"


@pytest.mark.parametrize(
    ("words", "content", "code", "message"),
    [
        (("--data-argument", "label=kind"), CSV, 1, "no column 'kind'; there are: x, y"),
        ((), CSV + "1\n", 1, "Row #5: Expected 3 columns, got 1"),
        ((), "x,y,label\n1,2,0\n3,4,9\n", 1, "10 classes"),
        (("--set", "data_workers=-1"), CSV, 2, "--set data_workers=-1: "),
    ],
)
def test_invalid_data_is_refused_in_one_line_and_nothing_is_written(
    probe: Probe, tmp_path: Path, words: tuple[str, ...], content: str, code: int, message: str
) -> None:
    (tmp_path / "t.csv").write_text(content)
    exit_code, output, errors = probe(*TABLE, "csv:t.csv", *words)
    assert (exit_code, output, errors.count("\n")) == (code, "", 0), errors
    assert message in errors
    assert not list(tmp_path.glob("dumps/*"))


def test_more_classes_of_the_model_than_of_the_data_are_matched_by_order_only_on_request(
    probe: Probe, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    code, _, errors = probe(*TABLE, "csv:t.csv")
    assert code == 1
    assert "the data have 2 classes" in errors
    assert "add --data-argument match=order" in errors
    assert not list(tmp_path.glob("dumps/*"))
    assert probe(*TABLE, "csv:t.csv", "--data-argument", "match=order")[0] == 0


def test_fewer_numbered_classes_than_in_the_model_are_reported(probe: Probe, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y,label\n1,2,0\n3,4,1\n")
    code, _, errors = probe(*TABLE, "csv:t.csv")
    assert code == 0
    assert "labels are below 2, the model has 3 classes" in errors
