"""Tests of the contents of a report: sections, axes, references, thinned pictures, and notes on what is left out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_probe.analysis import analyze, read_records
from ckpt_probe.dumps import DumpWriter, open_dump
from ckpt_probe.errors import DataError
from ckpt_probe.reporting.material import Material
from ckpt_probe.reporting.plots import portraits
from ckpt_probe.reporting.plots.description import Frames, LinePlot, MatrixPlot, SpectrumPlot
from ckpt_probe.reporting.sections import Contents, gather
from ckpt_probe.reporting.sources import open_sources


@pytest.fixture(scope="module")
def contents(study: Any) -> Contents:
    return gather(open_sources(study.sources))


def report(tmp_path: Path, lines: list[dict[str, Any]], **options: Any) -> Contents:
    file = tmp_path / "run.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return gather(open_sources([str(file)]), Material(**options))


def plots(contents: Contents, section: str) -> dict[str, Any]:
    sections = [each for each in contents.sections if each.key == section]
    return {plot.key: plot for each in sections for plot in each.plots}


def frame(plot: Any, run: str, split: str) -> Frames:
    [match] = [each for each in plot.frames if (each.run, each.split) == (run, split)]
    return match


def test_every_section_appears_if_it_has_contents(contents: Contents, study: Any) -> None:
    keys = [section.key for section in contents.sections]
    assert keys == ["metrics", "cosines", "spectra", "classes", "examples", "paths", "planes"]
    for source, expected in (
        (study.records, ["metrics"]),
        (study.root / "paths" / "plain", ["paths"]),
        (study.root / "planes" / "abc", ["planes"]),
        (study.root / "runs" / "a", ["metrics"]),
    ):
        assert [section.key for section in gather(open_sources([str(source)])).sections] == expected


def test_plots_of_metrics_have_the_records_and_values_at_collapse(contents: Contents, study: Any) -> None:
    plot_of = plots(contents, "metrics")
    records = [record for record in read_records(study.records) if record["split"] == "test"]
    plot = plot_of["metric-class.mir"]
    [line] = [line for line in plot.lines if (line.condition, line.split) == ("a", "test")]
    assert list(line.x) == [0, 10, 30, 60]
    # A report computes errors, for which the rows are accumulated in halves.
    assert list(line.y) == pytest.approx([record["class.mir"] for record in records], rel=1e-12)
    assert [level.value for level in plot.levels] == [records[0]["reference.mir"]]
    assert (plot.title, plot.x.name, "arXiv 2409.16767" in plot.meaning) == ("MIR", "training step", True)
    assert {(line.condition, line.split) for line in plot.lines} == {(r, s) for r in "ab" for s in ("train", "test")}
    # A run has its colour and a split its dash and mark, so that colour alone distinguishes no two lines.
    styles = {(line.condition, line.split): line.style for line in plot.lines}
    assert styles["a", "train"].colour == styles["a", "test"].colour != styles["b", "test"].colour
    assert styles["a", "train"].dash != styles["a", "test"].dash
    assert (styles["a", "train"].hollow, styles["a", "test"].hollow) == (False, True)
    titles = [group.title for section in contents.sections if section.key == "metrics" for group in section.groups]
    assert titles[:3] == ["Fit", "Class means and classifier", "Neural collapse"]


def test_cosines_equal_those_of_class_means_and_classifier_rows(contents: Contents, study: Any) -> None:
    plot_of = plots(contents, "cosines")
    with open_dump(study.dumps / "step-000060.h5") as dump:
        weights = dump.weights
        labels, features = dump["test"].labels[:], dump["test"].features[:].astype(float)
    means = np.stack([features[labels == c].mean(axis=0) for c in range(10)])
    assert weights is not None
    for key, split, rows in (("means", "test", means - means.mean(axis=0)), ("weights", "", weights)):
        plot: MatrixPlot = plot_of[f"cosines-{key}"]
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        frame_of_split = frame(plot, "a", split)
        assert frame_of_split.checkpoints == (0, 1, 2, 3)
        assert frame_of_split.values[3] == pytest.approx(unit @ unit.T, abs=1e-9)
        assert plot.off_diagonal["a"] == pytest.approx(-1 / 9)
        assert plot.labels["a"] == tuple("0123456789")


def test_spectra_are_eigenvalues_of_unit_trace(contents: Contents) -> None:
    plot_of = plots(contents, "spectra")
    assert set(plot_of) == {
        "spectrum-class.means", "spectrum-class.weights", "spectrum-class.joint", "spectrum-sample.features",
        "spectrum-sample.label_rows", "spectrum-sample.joint", "spectrum-within",
    }  # fmt: skip
    for key in ("class.means", "class.weights", "sample.features", "sample.label_rows"):
        plot: SpectrumPlot = plot_of[f"spectrum-{key}"]
        values = frame(plot, "b", "train").values
        assert plot.ranks == tuple(range(1, values.shape[1] + 1))
        assert np.nansum(values, axis=1) == pytest.approx(1, abs=1e-6)
    assert plot_of["spectrum-class.means"].at_collapse == {"a": 9, "b": 9}


def test_a_path_has_its_chord_and_barrier_and_shares_its_scale_with_the_aligned_path(
    contents: Contents, study: Any
) -> None:
    plot_of = plots(contents, "paths")
    stored = json.loads((study.root / "paths" / "plain" / "path.json").read_text())
    summary = next(entry for entry in stored["summary"] if entry["split"] == "test")
    plot: LinePlot = plot_of["path-plain-loss"]
    [span] = [span for span in plot.spans if "test" in span.label]
    line = next(line for line in plot.lines if line.split == "test")
    at = list(line.x).index(summary["barrier.loss_alpha"])
    assert span.high == pytest.approx(line.y[at])
    assert span.high - span.low == pytest.approx(summary["barrier.loss"])
    assert f"barrier {summary['barrier.loss']:.3g}" in span.label
    [group] = next(section.groups for section in contents.sections if section.key == "paths")
    losses = [plot for plot in group.plots if isinstance(plot, LinePlot) and plot.key.endswith("loss")]
    assert ["not aligned" in plot.title for plot in losses] == [True, False]
    assert "aligned by permutation" in losses[1].title
    assert losses[0].y.bounds == losses[1].y.bounds


def test_a_plane_has_its_checkpoints_and_levels(contents: Contents) -> None:
    [train, _] = plots(contents, "planes").values()
    assert train.values.shape == (4, 4)
    assert [mark.name for mark in train.points] == ["A", "B", "C"]
    assert train.levels[0] == pytest.approx(np.nanmin(train.values))
    assert train.levels[-1] == pytest.approx(np.nanmax(train.values))


def test_the_report_has_sentences_and_the_origin_of_its_numbers(contents: Contents, study: Any) -> None:
    assert [about for about, _ in contents.reading] == ["a", "b", "plain", "aligned", "abc"]
    assert any("On the plane" in sentence for _, sentences in contents.reading for sentence in sentences)
    origin = contents.origins[0]
    with open_dump(study.dumps / "step-000060.h5") as dump:
        assert dump.provenance is not None
        assert origin.files[-1].sha256 == dump.provenance.checkpoint_sha256
    assert (origin.facts["model"], origin.facts["dumps"]) == ("mlp", "4")
    assert origin.command.startswith(f"ckpt-probe extract {study.root / 'runs' / 'a'} -o {study.dumps}")
    path = contents.origins[3]
    assert "--align permutation" in path.command
    assert [file.name for file in path.files] == ["plan.json", "points.jsonl", "path.json"]


def test_pictures_beyond_the_limit_are_thinned_evenly_with_a_note(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = gather(open_sources([str(study.dumps)]))
    assert not any(section.notes for section in complete.sections if section.key == "cosines")
    # At each of 4 checkpoints there are three 10 × 10 matrices: means of two splits, and the classifier.
    monkeypatch.setitem(portraits.MOST_NUMBERS, "cosines", 700)
    thinned = gather(open_sources([str(study.dumps)]))
    plot_of = plots(thinned, "cosines")
    assert frame(plot_of["cosines-means"], "a", "train").checkpoints == (0, 3)
    [section] = [section_of_page for section_of_page in thinned.sections if section_of_page.key == "cosines"]
    assert section.notes == ("a: cosines of 2 of 4 checkpoints, evenly spaced, to stay small",)
    assert len(frame(plots(thinned, "classes")["classes"], "a", "train").checkpoints) == 4


def test_matrices_and_table_have_the_names_of_classes(study: Any) -> None:
    names = ("zero", "", "two")
    contents_found = gather(open_sources([str(study.dumps)]), Material(class_names=names))
    expected = ("zero", "1", "two", *"3456789")
    assert plots(contents_found, "cosines")["cosines-means"].labels["a"] == expected
    table = plots(contents_found, "classes")["classes"]
    assert table.labels["a"] == expected
    record = next(iter(analyze(study.dumps)))
    assert table.frames[0].values[0, :, 0].sum() == record["samples"]
    assert any("zero: " in sentence for sentence in table.nearest[0][3])


def test_the_axis_is_the_quantity_that_distinguishes_checkpoints(tmp_path: Path) -> None:
    def records(**coordinates: list[Any]) -> list[dict[str, Any]]:
        count = len(next(iter(coordinates.values())))
        return [
            {"split": split, "loss": 1.0 + i, **{name: values[i] for name, values in coordinates.items()}}
            for i in range(count)
            for split in ("train", "test")
        ]

    stepped = report(tmp_path, records(step=[0, 1, 10, 100, 1000]))
    assert (stepped.axis.name, stepped.axis.log, stepped.axis.linear_to) == ("training step", True, 1)
    assert not report(tmp_path, records(step=[0, 10, 20, 30, 40])).axis.log
    pruned = report(tmp_path, records(step=[5, 5], checkpoint=["sparsity-0.5", "sparsity-0.9"]))
    assert (pruned.axis.name, pruned.tracks[0].positions) == ("sparsity", (0.5, 0.9))
    unnamed = report(tmp_path, records(checkpoint=["best", "last"]))
    assert (unnamed.axis.name, unnamed.tracks[0].positions) == ("checkpoint, in order", (0.0, 1.0))
    assert list(plots(unnamed, "metrics")["metric-loss"].lines[0].x) == [0, 1]


def test_records_of_classes_alone_give_the_table_of_classes(tmp_path: Path) -> None:
    rows = [{"checkpoint": "a", "step": 3, "split": "test", "class": c, "samples": 5 + c} for c in (2, 0)]
    contents_found = report(tmp_path, rows)
    assert [section.key for section in contents_found.sections] == ["classes"]
    table = plots(contents_found, "classes")["classes"]
    assert (table.labels["run"], table.frames[0].values.tolist()) == (("0", "2"), [[[5.0], [7.0]]])
    with pytest.raises(DataError, match=r"class is 0\.5"):
        report(tmp_path, [{**rows[0], "class": 0.5}])


def test_missing_values_have_a_note(tmp_path: Path) -> None:
    lines = [{"step": s, "split": "test", "loss": None if s == 1 else 1.0} for s in range(3)]
    [section] = report(tmp_path, lines).sections
    assert any("loss: 1 values are missing" in note for note in section.notes)
    assert np.isnan(plots(report(tmp_path, lines), "metrics")["metric-loss"].lines[0].y[1])


def test_a_run_without_the_common_axis_has_a_note(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text("".join(json.dumps({"step": s, "split": "test", "loss": 1.0}) + "\n" for s in range(3)))
    second.write_text(json.dumps({"checkpoint": "final", "split": "test", "loss": 2.0}) + "\n")
    contents_found = gather(open_sources([str(first), str(second)]))
    [section] = contents_found.sections
    assert section.notes == ("second: its records have no step that tells them apart; they are in no plot of metrics",)
    assert {line.condition for line in plots(contents_found, "metrics")["metric-loss"].lines} == {"first"}


def test_classes_have_the_names_stored_in_the_dumps(tmp_path: Path) -> None:
    names, labels = ("ant", "bee", "cat"), np.arange(30) % 3
    rows = np.random.default_rng(0).normal(size=(30, 4))
    with DumpWriter(tmp_path / "run-5.h5", None, classes=3, features=4) as writer:
        writer.write_classifier(rows[:3])
        writer.write_class_names(names)
        writer.start_split("test", len(labels), logits=False)
        writer.append("test", rows, labels)
    for options, expected in ((Material(), names), (Material(class_names=("x", "y", "z")), ("x", "y", "z"))):
        contents_found = gather(open_sources([f"run={tmp_path / 'run-5.h5'}"]), options)
        assert plots(contents_found, "cosines")["cosines-means"].labels["run"] == expected
        assert plots(contents_found, "classes")["classes"].labels["run"] == expected
