"""Tests of the section Weights of a page: from a directory of checkpoints, and from records of `weights`."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.cli.app import run
from ckpt_probe.reporting.figures import draw_contents
from ckpt_probe.reporting.sections import gather
from ckpt_probe.reporting.sources import open_sources


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return five checkpoints of a small network, without records and metadata."""
    torch.manual_seed(0)
    state = {"first.weight": torch.randn(30, 40), "first.bias": torch.randn(30), "head.weight": torch.randn(24, 30)}
    for step in range(5):
        state = {name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in state.items()}
        (tmp_path / "run").mkdir(exist_ok=True)
        torch.save(state, tmp_path / "run" / f"step-{step}.pt")
    return tmp_path / "run"


def section(contents, key: str = "weights"):
    return next(part for part in contents.sections if part.key == key)


def test_a_directory_of_checkpoints_gives_a_page(directory: Path, tmp_path: Path) -> None:
    assert cp.report(directory, tmp_path / "page.html").sections == 2
    contents = gather(open_sources([str(directory)]))
    assert dict(contents.reading)["run"][0].startswith("5 checkpoints, nothing wrong")
    titles = [group.title for group in section(contents).groups]
    assert titles == ["By block and checkpoint", "Trajectory", "Spectra of weight matrices"]
    plots = tuple(p for p in section(contents).plots if p.key in ("weights-spectrum.alpha", "weights-trajectory-run"))
    groups = (replace(section(contents).groups[0], plots=plots),)
    chosen = replace(contents, sections=(replace(section(contents), groups=groups),))
    names = {file.name for file in draw_contents(chosen, tmp_path / "figures", "svg")}
    assert names == {"weights-spectrum.alpha-run.svg", "weights-trajectory-run.svg"}


def test_heat_maps_have_the_numbers_of_the_records(directory: Path) -> None:
    contents = gather(open_sources([str(directory)]))
    plots = {plot.key: plot for plot in section(contents).plots}
    steps = plots["weights-motion.step"]
    assert steps.layers["run"] == ("first", "head")
    records = [r for r in cp.weights(directory, only="motion", by="block") if r["block"] == "head"]
    expected = [np.nan if r["motion.step"] is None else r["motion.step"] for r in records]
    np.testing.assert_allclose(steps.frames[0].values[0][1], expected)


def test_spectra_have_the_tail_and_the_edge(directory: Path) -> None:
    plots = [plot for plot in section(gather(open_sources([str(directory)]))).plots if "spectrum-" in plot.key]
    assert [plot.title for plot in plots] == ["first.weight", "head.weight"]
    assert {line.metric for line in plots[0].lines} == {"eigenvalue", "tail"}
    assert [span.name for span in plots[0].spans] == ["edge"]
    tail = next(line for line in plots[0].lines if line.metric == "tail")
    slope = np.diff(np.log(tail.y))[0] / np.diff(np.log(tail.x))[0]
    records = [r for r in cp.weights(directory, only="spectra", by="tensor") if r["tensor"] == "first.weight"]
    assert slope == pytest.approx(1 - records[0]["spectrum.alpha"], rel=1e-6)


def test_records_of_weights_give_a_section_and_figures_by_block(directory: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "blocks.jsonl"
    assert run(["weights", str(directory), "--by", "block", "-o", str(file)]) == 0
    contents = gather(open_sources([str(file)]))
    assert [group.title for group in section(contents).groups] == ["By block and checkpoint"]
    assert run(["plot", str(file), "-o", str(tmp_path / "a.svg"), "--metric", "motion.step,spectrum.alpha"]) == 0
    assert run(["weights", str(directory), "-o", str(tmp_path / "whole.jsonl"), "--only", "audit,motion"]) == 0
    complete = gather(open_sources([str(tmp_path / "whole.jsonl")]))
    assert [group.title for group in section(complete).groups] == ["Trajectory"]
    first = json.loads((tmp_path / "whole.jsonl").read_text().splitlines()[0])
    assert "shares of variance" in section(complete).plots[0].meaning
    assert f"{first['motion.pca_share_1']:.0%}" in section(complete).plots[0].meaning
