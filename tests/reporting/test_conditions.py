"""Tests that `report` and `plot` of Python take paths, mappings and records, and write the files of the commands."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

import ckpt_probe as cp
from ckpt_probe.cli.app import run
from ckpt_probe.progress import MessageLog
from ckpt_probe.reporting.plots.curves import panels_of
from ckpt_probe.reporting.sections import gather
from ckpt_probe.reporting.sources import open_sources

pytest.importorskip("matplotlib")


def write(file: Path, factor: float = 1.0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"step": step, "split": split, "accuracy": factor * step / 10, "loss": 1.0, "class.mir": 0.5}
        for step in (0, 5, 9)
        for split in ("train", "test")
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_report_writes_a_page_and_figures_of_one_source(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl")
    summary = cp.report(source, tmp_path / "r.html", figures=tmp_path / "figures", title="T")
    assert "<title>T</title>" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert summary.sections == 1
    assert summary.size == (tmp_path / "r.html").stat().st_size
    assert tmp_path / "figures" / "metric-accuracy.svg" in summary.figures
    with pytest.raises(cp.UsageError, match="exists already"):
        cp.report(source, tmp_path / "r.html")


def test_a_dump_that_cannot_be_analyzed_is_left_out_and_named(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "run").mkdir()
    for step in range(3):
        with h5py.File(tmp_path / "run" / f"step-{step}.h5", "w") as file:
            file["test/features"] = generator.normal(size=(60, 4)) * (np.nan if step == 1 else 1)
            file["test/labels"] = np.arange(60) % 3
            file["classifier/weights"] = generator.normal(size=(3, 4))
    progress = MessageLog()
    contents = gather(open_sources([str(tmp_path / "run")]), progress=progress)
    assert contents.tracks[0].checkpoints == ("step-0", "step-2")
    sentence = dict(contents.reading)["run"][0]
    assert re.fullmatch(r"Left out: .*step-1\.h5: test: features: 60 rows hold NaN or infinity.*", sentence)
    assert any(message.startswith("left out: ") for message in progress.messages)


def test_steps_that_are_in_a_file_twice_are_in_no_plot_of_metrics(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl")
    source.write_text(source.read_text() + write(tmp_path / "other.jsonl", 0.5).read_text())
    with pytest.raises(cp.DataError, match="nothing to show: a: its records have no step that tells them apart"):
        cp.report(source, tmp_path / "r.html")
    cp.report({"twice": source, "once": write(tmp_path / "b.jsonl")}, tmp_path / "r.html")
    assert "twice: its records have no step that tells them apart" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_any_name_of_a_metric_is_drawn(tmp_path: Path) -> None:
    names = ["a, b", "loss[train]", "Loss", "loss", "*"]
    rows = [{"step": step, "split": 3} | dict.fromkeys(names, step / 10) for step in range(5)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8-sig")
    cp.report(tmp_path / "a.jsonl", tmp_path / "r.html", figures=tmp_path / "figures")
    assert len(list((tmp_path / "figures").glob("metric*"))) == len(names)


def test_a_mapping_names_the_sources_and_labels_the_classes(tmp_path: Path) -> None:
    sources = {"plain": write(tmp_path / "a.jsonl"), "decay": write(tmp_path / "b.jsonl", 0.5)}
    cp.report(sources, tmp_path / "r.html", labels=["cat", "dog"])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert '"plain"' in page
    assert '"decay"' in page


def test_a_report_needs_an_output(tmp_path: Path) -> None:
    with pytest.raises(cp.UsageError, match="choose an output"):
        cp.report(write(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("form", ["file", "directory", "records", "list", "mapping"])
def test_a_figure_equals_that_of_the_command(tmp_path: Path, form: str) -> None:
    file = write(tmp_path / "run" / "metrics.jsonl")
    records = {
        "file": file,
        "directory": file.parent,
        "records": cp.read_records(file),
        "list": [file],
        "mapping": {"run": [file]},
    }[form]
    command = [
        "plot",
        f"run={file}",
        "-o",
        str(tmp_path / "a.svg"),
        "--metric",
        "accuracy,loss",
        "--metric",
        "class.mir",
    ]
    assert run(command) == 0
    assert cp.plot(records, tmp_path / "b.svg", metrics=["acc,Loss", "MIR"]) == []
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "a.svg").read_bytes()


def test_plot_accepts_conditions_of_several_seeds_and_marks(tmp_path: Path) -> None:
    seeds = [write(tmp_path / f"{number}.jsonl", 1 + number) for number in range(2)]
    out = tmp_path / "a.svg"
    cp.plot({"plain": seeds, "other": seeds[0]}, out, metrics="accuracy", splits="test", marks={5: "pruned"})
    text = out.read_text()
    assert "pruned" in text
    assert "other" in text
    with pytest.raises(cp.DataError, match="nowhere"):
        cp.plot(tmp_path / "nowhere.jsonl", tmp_path / "b.svg", metrics="accuracy")


def test_panels_can_be_a_text_with_commas_or_a_sequence() -> None:
    assert panels_of("class.mir, class.hdr") == [["class.mir", "class.hdr"]]
    assert panels_of(["class.mir", "loss"]) == [["class.mir"], ["loss"]]
    assert panels_of([["class.mir", "loss"], "accuracy"]) == [["class.mir", "loss"], ["accuracy"]]
    for empty in ("", [], [","]):
        with pytest.raises(cp.UsageError, match="expected names of metrics"):
            panels_of(empty)


def test_comparisons_become_a_data_frame(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    for group, factor in (("plain", 1.0), ("decay", 0.5)):
        for seed in range(3):
            write(tmp_path / group / f"seed-{seed}" / "metrics.jsonl", factor + seed / 100)
    frame = cp.to_dataframe(cp.compare([tmp_path / "plain", tmp_path / "decay"], metrics="accuracy"))
    assert list(frame["verdict"]) == ["baseline", "different"]
    assert list(frame["group"]) == ["plain", "decay"]
    assert frame["difference"].isna().tolist() == [True, False]
    assert float(frame["difference"][1]) == pytest.approx(-0.45)


def test_export_writes_what_the_command_writes(tmp_path: Path) -> None:
    sources = [str(write(tmp_path / f"{name}.jsonl", factor)) for name, factor in (("a", 1.0), ("b", 0.5))]
    messages = MessageLog()
    rows = cp.export(sources, tmp_path / "both.csv", progress=messages)
    assert run(["export", *sources, "-o", str(tmp_path / "command.csv")]) == 0
    assert (tmp_path / "both.csv").read_text() == (tmp_path / "command.csv").read_text()
    assert len(rows) == 12
    assert [row["group"] for row in rows] == ["a"] * 6 + ["b"] * 6
    assert messages.messages == [f"{tmp_path / 'both.csv'}: 12 records"]
    assert cp.export({"a": cp.read_records(sources[0])}, tmp_path / "copy.jsonl")[0]["accuracy"] == 0
    with pytest.raises(cp.UsageError, match="choose an output"):
        cp.export(sources)
