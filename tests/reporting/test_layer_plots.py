"""Tests of the section of layers: numbers of the analysis and of similarity, in the page's plots and as figures."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ckpt_probe.analysis import Settings, read_series
from ckpt_probe.analysis.similarity import similarity, stored_rows
from ckpt_probe.cli.app import run
from ckpt_probe.dumps import open_dump
from ckpt_probe.errors import DataError
from ckpt_probe.metrics.similarity import mir
from ckpt_probe.reporting.figures import draw_contents
from ckpt_probe.reporting.formats import to_json_line
from ckpt_probe.reporting.material import Material
from ckpt_probe.reporting.plots.description import LayerMap, LinePlot, MatrixPlot
from ckpt_probe.reporting.sections import Contents, Section, gather
from ckpt_probe.reporting.sources import open_sources


@pytest.fixture(scope="module")
def contents(layered: Path) -> Contents:
    return gather(open_sources([str(layered)]))


@pytest.fixture(scope="module")
def records(layered: Path) -> list[dict]:
    return [dict(reading.record) for reading in read_series(layered, Settings(layers=True))]


def section(contents: Contents) -> Section:
    return next(section for section in contents.sections if section.key == "layers")


def test_a_map_has_the_number_of_each_layer_at_each_checkpoint(contents: Contents, records: list[dict]) -> None:
    maps = {plot.key: plot for plot in section(contents).plots if isinstance(plot, LayerMap)}
    assert {"layers-nc1.pinv", "layers-separation", "layers-sample.effective_rank"} <= set(maps)
    assert not {"layers-depth", "layers-separation.slope", "layers-reference.mir"} & set(maps)
    plot = maps["layers-sample.effective_rank"]
    assert [frame.split for frame in plot.frames] == ["train", "test"]
    assert plot.columns["dumps"] == ("0", "10", "30", "60")
    layers = plot.layers["dumps"]
    assert layers[-1] == "penultimate"
    for frame in plot.frames:
        assert frame.values.shape == (1, len(layers), 4)
        for record in (record for record in records if record["split"] == frame.split):
            position = layers.index(record["layer"]), plot.columns["dumps"].index(str(record["step"]))
            assert frame.values[0][position] == pytest.approx(record["sample.effective_rank"], rel=1e-12)


def test_colours_follow_the_logarithm_where_numbers_span_decades(contents: Contents) -> None:
    maps = {plot.key: plot for plot in section(contents).plots if isinstance(plot, LayerMap)}
    for plot in maps.values():
        values = np.concatenate([frame.values.ravel() for frame in plot.frames])
        values = values[np.isfinite(values)]
        assert plot.log == (values.min() > 0 and values.max() > 100 * values.min())


def test_matrices_have_the_numbers_of_similarity(contents: Contents, layered: Path) -> None:
    plots = {plot.key: plot for plot in section(contents).plots if isinstance(plot, MatrixPlot)}
    between = plots["layers-cka"]
    names = next(track for track in contents.tracks if track.run == "dumps").checkpoints
    for frame in between.frames:
        for position, number in enumerate(frame.checkpoints):
            (result,) = similarity(layered / f"{names[number]}.h5", splits=[frame.split], measures=["cka"])
            assert result.rows == between.labels["dumps"]
            np.testing.assert_array_equal(frame.values[position], np.array(result.values, dtype=float))
    for result in similarity(layered, measures=["cka"]):
        plot = plots[f"layers-cka-{result.layer}"]
        assert plot.of_run
        frame = next(frame for frame in plot.frames if frame.split == result.split)
        np.testing.assert_array_equal(frame.values[0], np.array(result.values, dtype=float))


def mir_or_nan(first: np.ndarray, second: np.ndarray) -> float:
    try:
        return mir(first, second)
    except DataError:
        return np.nan


def test_information_between_layers_uses_evenly_spaced_rows(layered: Path) -> None:
    contents = gather(open_sources([str(layered)]), Material(mir_rows=50))
    plot = next(plot for plot in section(contents).plots if plot.key == "layers-mir")
    assert isinstance(plot, MatrixPlot)
    assert "on 50 of these rows" in plot.meaning
    names = next(track for track in contents.tracks if track.run == "dumps").checkpoints
    for frame in plot.frames:
        assert frame.checkpoints == (0, 1, 2, 3)
        with open_dump(layered / f"{names[2]}.h5") as dump:
            stored = stored_rows(dump, frame.split)
        rows_chosen = np.linspace(0, len(stored.indices) - 1, 50).round().astype(int)
        rows = [values[rows_chosen].astype(float) for values in stored.layers.values()]
        expected = np.array([[mir_or_nan(first, second) for second in rows] for first in rows])
        assert np.isfinite(expected).mean() > 0.5
        np.testing.assert_allclose(frame.values[2], expected, rtol=1e-9)


def test_separation_is_drawn_with_the_line_that_the_analysis_fits(contents: Contents, records: list[dict]) -> None:
    plots = [plot for plot in section(contents).plots if isinstance(plot, LinePlot)]
    assert [plot.lines[0].split for plot in plots] == ["train", "test"]
    for plot in plots:
        assert len(plot.lines) == len(plot.chords) == 3
        for line, (x0, y0, x1, y1, _) in zip(plot.lines, plot.chords, strict=True):
            last = next(
                record
                for record in records
                if (record["checkpoint"], record["split"], record["layer"]) == (line.name, line.split, "penultimate")
            )
            assert (y1 - y0) / (x1 - x0) == pytest.approx(last["separation.slope"])


def test_other_sections_show_the_penultimate_layer_only(contents: Contents, records: list[dict]) -> None:
    plot = next(plot for section in contents.sections for plot in section.plots if plot.key == "metric-nc1.pinv")
    assert isinstance(plot, LinePlot)
    for line in plot.lines:
        mine = [r["nc1.pinv"] for r in records if r["split"] == line.split and r["layer"] == "penultimate"]
        assert list(line.y) == pytest.approx(mine, rel=1e-12)


def test_records_of_layers_have_maps_without_similarities(records: list[dict], tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("".join(to_json_line(record) + "\n" for record in records))
    plots = section(gather(open_sources([str(tmp_path / "r.jsonl")]))).plots
    assert {type(plot) for plot in plots} == {LayerMap, LinePlot}
    plain = [{k: v for k, v in json.loads(to_json_line(r)).items() if k != "layer"} for r in records if r["depth"] == 1]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(record) + "\n" for record in plain))
    assert "layers" not in [section.key for section in gather(open_sources([str(tmp_path / "plain.jsonl")])).sections]


def test_plots_of_layers_can_be_exported_as_figures(contents: Contents, tmp_path: Path) -> None:
    """Cover one plot of each kind; tests/reporting/test_figures.py checks that every plot of a page is drawn."""
    keys = "layers-nc1.pinv", "layers-mir", "layers-cka", "layers-cka-penultimate", "separation"
    plots = tuple(plot for plot in section(contents).plots if plot.key.startswith("separation") or plot.key in keys)
    groups = (replace(section(contents).groups[0], plots=plots),)
    chosen = replace(contents, sections=(replace(section(contents), groups=groups),))
    files = {file.name for file in draw_contents(chosen, tmp_path, "svg")}
    assert files == {
        *(f"{key}-dumps.svg" for key in keys[:4]),
        *("separation-dumps-train.svg", "separation-dumps-test.svg"),
    }


def test_the_command_without_rows_compares_layers_without_information(layered: Path, tmp_path: Path) -> None:
    assert run(["report", str(layered), "-o", str(tmp_path / "page.html"), "--set", "mir_rows=0"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "layers-cka" in page
    assert "layers-mir" not in page
