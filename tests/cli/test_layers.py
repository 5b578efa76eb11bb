"""Tests of the commands `analyze` and `similarity` on dumps with layers."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.analysis.comparison.groups import measure
from ckpt_probe.cli.app import run
from ckpt_probe.models import build_model

CLASSES = 3
MODEL = '{"input_shape": [1, 8, 8], "classes": 3}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Extract two checkpoints of a small residual network with all layers, and one of them again without layers."""
    directory = tmp_path_factory.mktemp("layers")
    draw = np.random.default_rng(0)
    x = draw.random((60, 1, 8, 8), dtype=np.float32)
    np.savez(directory / "data.npz", x_test=x, y_test=np.arange(60) % CLASSES)
    (directory / "run").mkdir()
    for step in (0, 100):
        torch.manual_seed(step)
        model = build_model("resnet", json.loads(MODEL))
        torch.save(model.state_dict(), directory / "run" / f"step-{step:06d}.pth")
    words = [
        "--model",
        "resnet",
        "--model-argument",
        MODEL,
        "--data",
        f"npz:{directory / 'data.npz'}",
        "--device",
        "cpu",
    ]
    sampling = ["--sampling", "subset_rows=40"]
    assert (
        run(
            [
                "--quiet",
                "extract",
                str(directory / "run"),
                "-o",
                str(directory / "dumps"),
                *words,
                "--layers",
                "all",
                *sampling,
            ]
        )
        == 0
    )
    checkpoint = str(directory / "run" / "step-000100.pth")
    assert run(["--quiet", "extract", checkpoint, "-o", str(directory / "plain"), *words]) == 0
    other_rows = ["--layers", "3", *sampling, "--sampling", "subset_seed=1"]
    assert run(["--quiet", "extract", checkpoint, "-o", str(directory / "seeded"), *words, *other_rows]) == 0
    return directory


def output_of(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    capsys.readouterr()
    assert run(["--quiet", *words]) == code
    text = capsys.readouterr()
    return text.out if code == 0 else text.err


def test_a_table_has_a_row_per_layer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = output_of(["analyze", str(folder / "dumps"), "--json"], capsys).splitlines()
    records = [json.loads(line) for line in lines]
    assert [(record["step"], record["layer"]) for record in records] == [
        (step, layer) for step in (0, 100) for layer in ("2", "3", "4", "5", "penultimate")
    ]
    text = output_of(["analyze", str(folder / "dumps" / "step-000100.h5"), "--wide"], capsys)
    assert text.splitlines()[0].split()[:5] == ["checkpoint", "step", "split", "layer", "depth"]
    alone = output_of(["analyze", str(folder / "dumps"), "--json", "--set", "layers=false"], capsys).splitlines()
    plain = output_of(["analyze", str(folder / "plain"), "--json"], capsys).splitlines()
    assert len(alone) == 2
    assert alone[1] == plain[0]


def test_a_metric_is_printed_by_layer_and_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["analyze", str(folder / "dumps"), "--only", "nc1", "--set", "layer_metric=separation"]
    text = output_of(words, capsys).splitlines()
    assert text[0] == "test: separation"
    assert text[1].split() == ["layer", "depth", "0", "100"]
    assert [line.split()[0] for line in text[2:]] == ["2", "3", "4", "5", "penultimate"]
    rows = list(csv.DictReader(io.StringIO(output_of([*words, "--csv"], capsys))))
    [record] = [
        json.loads(line)
        for line in output_of(["analyze", str(folder / "dumps"), "--only", "nc1", "--json"], capsys).splitlines()
        if '"layer": "4"' in line and '"step": 100' in line
    ]
    assert float(rows[2]["100"]) == record["separation"]


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (
            ["plain", "--set", "layer_metric=separation"],
            1,
            "no layers in these dumps; extract them again with --layers all and --overwrite",
        ),
        (["dumps", "--set", "layer_metric=accurracy"], 1, "no layer has a number 'accurracy'; did you mean accuracy"),
        (
            ["dumps", "--set", "layer_metric=loss", "--json"],
            2,
            "--json needs records: --layer-metric prints a table of layers and steps",
        ),
    ],
)
def test_tables_by_layer_that_cannot_be_printed_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, line: str
) -> None:
    assert line in output_of(["analyze", str(folder / words[0]), *words[1:]], capsys, code)


def test_inspect_lists_the_layers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(folder / "run" / "step-000100.pth")
    words = ["inspect", checkpoint, "--model", "resnet", "--model-argument", MODEL]
    text = output_of(words, capsys)
    assert "layers that extract with --layers all stores: 5\n  0.00  2            16 × 8 × 8, mean: 16 features" in text
    assert "  1.00  penultimate  64\n" in text
    facts = json.loads(output_of([*words, "--json"], capsys))
    assert [layer["layer"] for layer in facts["head"]["layers"]] == ["2", "3", "4", "5", "penultimate"]
    dump = json.loads(output_of(["inspect", str(folder / "dumps" / "step-000000.h5"), "--json"], capsys))
    assert {"name": "test/subset/indices", "dtype": "int64", "shape": [40]} in dump["tensors"]


def test_layers_of_a_checkpoint_are_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "dumps" / "step-000100.h5"
    cka, mir = (json.loads(line) for line in output_of(["similarity", str(path), "--json"], capsys).splitlines())
    assert (cka["kind"], cka["measure"], mir["measure"]) == ("layers", "cka", "mir")
    assert cka["rows"] == cka["columns"] == ["2", "3", "4", "5", "penultimate"]
    assert (cka["checkpoint"], cka["step"], cka["split"], cka["samples"]) == ("step-000100", 100, "test", 40)
    with cp.open_dump(path) as dump:
        rows = {layer.name: layer.rows[:].astype(np.float64) for layer in dump["test"].layers}
    assert cka["values"][1][3] == pytest.approx(cp.cka(rows["3"], rows["5"]))
    assert mir["values"][3][1] == pytest.approx(cp.mir(rows["3"], rows["5"]))
    assert [cka["values"][n][n] for n in range(5)] == pytest.approx([1] * 5)
    text = output_of(["similarity", str(path), "--measure", "cka", "--layer", "4", "--layer", "5"], capsys).splitlines()
    assert text[0] == "test: CKA, layers of step-000100, 40 rows"
    assert text[1].split() == ["layer", "4", "5"]
    assert text[2].split()[:2] == ["4", "1.000"]


def test_a_layer_is_compared_over_the_steps_of_a_series(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output_of(["similarity", str(folder / "dumps"), "-o", str(tmp_path / "a.csv"), "--layer", "3"], capsys)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [(row["row"], row["column"]) for row in rows] == [(a, b) for a in ("0", "100") for b in ("0", "100")]
    assert {(row["kind"], row["layer"], row["measure"]) for row in rows} == {("steps", "3", "cka")}
    assert float(rows[1]["value"]) == float(rows[2]["value"]) < 1
    output_of(["similarity", str(folder / "dumps"), "-o", str(tmp_path / "a.parquet"), "--layer", "3"], capsys)
    frame = pd.read_parquet(tmp_path / "a.parquet")
    assert frame["value"].tolist() == [float(row["value"]) for row in rows]


def test_layers_of_two_dumps_are_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a dump without layers the rows that a subset would contain are compared; of 60 rows these are all."""
    two = [str(folder / "dumps" / f"step-000{step}.h5") for step in ("000", "100")]
    [matrix] = [json.loads(output_of(["similarity", *two, "--measure", "cka", "--json"], capsys))]
    assert (matrix["kind"], matrix["checkpoint"], matrix["other"]) == ("models", "step-000000", "step-000100")
    assert matrix["values"][0][1] != matrix["values"][1][0]
    alone = json.loads(output_of(["similarity", str(folder / "plain"), "--measure", "cka", "--json"], capsys))
    assert alone["rows"] == ["penultimate"]
    assert alone["samples"] == 60


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["dumps/step-000100.h5", "seeded"], 1, "different rows are stored for comparisons (40 of 60, 40 of 60)"),
        (["dumps/step-000100.h5", "plain"], 1, "different rows are stored for comparisons (40 of 60, 60 of 60)"),
        (["dumps", "plain"], 2, "several dumps; name one of them"),
        (["dumps", "--layer", "9"], 1, "no layer '9'; there are: 2, 3, 4, 5, penultimate"),
        (["nowhere"], 1, "nowhere: no such file or directory"),
        (["dumps", "--split", "train"], 1, "no split 'train'"),
    ],
)
def test_layers_that_cannot_be_compared_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, line: str
) -> None:
    paths = ("dumps", "plain", "seeded", "nowhere")
    arguments = [str(folder / word) if word.partition("/")[0] in paths else word for word in words]
    assert line in output_of(["similarity", *arguments], capsys, code)


def test_records_by_layer_are_compared_by_their_penultimate_layer(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Comparing seeds needs one record per step; of records by layer that of the penultimate layer is read."""
    result = []
    for name, more in (("layers", []), ("plain", ["--set", "layers=false"])):
        file = tmp_path / f"{name}.jsonl"
        output_of(["analyze", str(folder / "dumps"), "--only", "nc1", "-o", str(file), *more], capsys)
        result.append(measure(file, ["nc1.pinv"], split="test", step=100))
    assert result[0] == result[1]
    assert len(cp.read_records(tmp_path / "layers.jsonl")) == 10
