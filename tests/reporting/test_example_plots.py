"""Tests of the section of examples: the numbers of `examples`, and pictures of the worst if the data are named."""

from typing import Any

import numpy as np
import pytest

import ckpt_probe as cp
from ckpt_probe.data import load_data
from ckpt_probe.reporting.figures import draw_contents
from ckpt_probe.reporting.formats import to_json_line
from ckpt_probe.reporting.material import Material
from ckpt_probe.reporting.plots import examples as example_plots
from ckpt_probe.reporting.sections import Contents, Section, gather
from ckpt_probe.reporting.sources import open_sources


@pytest.fixture(scope="module")
def contents(study: Any) -> Contents:
    sources = open_sources(study.sources[:2])
    return gather(sources, Material(splits=("test",), data="digits"))


@pytest.fixture(scope="module")
def section(contents: Contents) -> Section:
    (section_of_examples,) = [section for section in contents.sections if section.key == "examples"]
    return section_of_examples


def plot(section: Section, key: str) -> Any:
    (match,) = [plot for plot in section.plots if plot.key == key]
    return match


def test_histograms_have_the_numbers_of_the_records(section: Section, study: Any) -> None:
    learned, forgotten = plot(section, "examples-learned"), plot(section, "examples-forgotten")
    records = list(cp.examples(study.dumps, splits="test"))
    (frame,) = [frame for frame in learned.frames if frame.run == "a"]
    assert learned.columns["a"] == ("0", "10", "30", "60", "not learned")
    for row, label in enumerate(learned.layers["a"]):
        of_class = [record for record in records if str(record["class"]) == label]
        steps = [*(0, 10, 30, 60), None]
        assert frame.values[0, row].tolist() == [sum(r["first_learned"] == step for r in of_class) for step in steps]
    (frame,) = [frame for frame in forgotten.frames if frame.run == "a"]
    times = np.bincount([record["forgotten"] for record in records], minlength=frame.values.shape[2])
    assert frame.values[0].sum(axis=0).tolist() == times.tolist()


def test_the_worst_examples_have_pictures(section: Section, study: Any) -> None:
    table = plot(section, "examples-worst")
    first = table.tables[0]
    records = cp.examples(study.dumps, splits="test")
    assert [row[0] for row in first.cells] == [record["index"] for record in records[: len(first.cells)]]
    assert len(first.cells) == example_plots.MOST_EXAMPLES
    assert first.summary.startswith("450 examples: ")
    image = load_data("digits").split("test").batch(slice(0, 450))[0][first.cells[0][0], 0].numpy()
    assert first.pictures.shape == (30, 8, 8, 3)
    expected = np.round(255 * (image - image.min()) / np.ptp(image))
    np.testing.assert_allclose(first.pictures[0, :, :, 1], expected, atol=1)


def test_matrices_and_curves_have_the_numbers_of_the_functions(section: Section, study: Any) -> None:
    for matrix in cp.function_similarity(study.dumps, splits="test"):
        (frame,) = [f for f in plot(section, f"examples-{matrix.measure}").frames if f.run == "a"]
        expected = np.array(matrix.values, dtype=float)
        np.fill_diagonal(expected, np.nan)
        np.testing.assert_allclose(frame.values[0], expected)
    (line,) = [line for line in plot(section, "metric-function.disagreement").lines if line.condition == "a"]
    records = cp.examples(study.dumps, splits="test", by="step")[1:]
    assert list(line.y) == [record["function.disagreement"] for record in records]


def test_pairs_of_runs_have_a_table(section: Section, study: Any) -> None:
    ((row,),) = [table.cells for table in plot(section, "examples-runs").tables]
    (record,) = cp.examples({"a": study.sources[0], "b": study.sources[1]}, splits="test", by="run")
    assert row == tuple(record[name] for name in example_plots.PAIRS)


def test_long_runs_and_many_classes_are_thinned(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MOST_CHECKPOINTS", 2), ("MOST_CLASSES", 3), ("LOGARITHMS", 1000)):
        monkeypatch.setattr(example_plots, name, value)
    contents_found = gather(open_sources([str(study.dumps)]), Material(splits=("test",)))
    (section,) = [section for section in contents_found.sections if section.key == "examples"]
    assert plot(section, "examples-disagreement").columns["a"] == ("0", "60")
    assert plot(section, "examples-divergence").meaning.endswith("in nats, on 100 rows")
    assert len(plot(section, "examples-learned").layers["a"]) == 3
    assert "a: 3 of 10 classes, those that were forgotten most often" in section.notes


def test_data_of_other_rows_give_a_reason_instead_of_pictures(study: Any) -> None:
    options = Material(splits=("test",), data="digits", data_arguments={"split_seed": 5})
    contents_found = gather(open_sources([str(study.dumps)]), options)
    (section,) = [section for section in contents_found.sections if section.key == "examples"]
    assert plot(section, "examples-worst").tables[0].pictures is None
    assert any("no pictures of examples: digits: split test has other labels" in note for note in section.notes)


def test_maps_are_exported_as_figures(contents: Contents, section: Section, tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    alone = Contents(contents.title, (), (section,), contents.axis, contents.tracks, ())
    names = {file.name for file in draw_contents(alone, tmp_path, "png")}
    assert {"examples-learned-a.png", "examples-disagreement-b.png", "metric-function.forgotten.png"} <= names


def test_a_page_cannot_be_made_of_records_of_examples(study: Any, tmp_path: Any) -> None:
    records = tmp_path / "examples.jsonl"
    records.write_text("".join(to_json_line(record) + "\n" for record in cp.examples(study.dumps, splits="test")))
    with pytest.raises(cp.DataError, match="nothing to show: the sources have no number by step"):
        gather(open_sources([str(records)]))
