"""The plots of a report as files: one each, named so that any file system takes them, none overwritten unasked."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from ckpt_probe.errors import UsageError
from ckpt_probe.reporting.figures.export import draw_contents
from ckpt_probe.reporting.material import ReportOptions
from ckpt_probe.reporting.outputs import gather
from ckpt_probe.reporting.sections import Contents
from ckpt_probe.reporting.sources import open_sources

ESCAPE = "\x1b[31m"


@pytest.fixture(scope="module")
def contents(study: Any) -> Contents:
    """One of each kind of plot."""
    whole = gather(
        open_sources([study.sources[i] for i in (0, 2, 4)]), ReportOptions(class_names=("zero", f"one{ESCAPE}", "$2$"))
    )
    sections = []
    for section in whole.sections:
        groups = [type(group)(group.title, group.plots[:1]) for group in section.groups[:1]]
        sections.append(type(section)(section.key, section.title, section.lead, tuple(groups)))
    return Contents(whole.title, whole.reading, tuple(sections), whole.axis, whole.tracks, whole.origins)


def first_of(contents: Contents) -> Contents:
    return Contents(contents.title, (), contents.sections[:1], contents.axis, contents.tracks, ())


def words(svg: Path) -> str:
    return " ".join("".join(e.itertext()) for e in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text"))


def test_every_plot_is_a_figure_that_says_what_the_page_says(contents: Contents, tmp_path: Path) -> None:
    files = draw_contents(contents, tmp_path / "figures", "svg")
    assert sorted(file.name for file in files) == [
        "cosines-means-a.svg", "examples-learned-a.svg", "metric-accuracy.svg", "path-plain-loss.svg",
        "plane-abc-train.svg", "spectrum-class.means-a.svg",
    ]  # fmt: skip
    told = {file.name: words(file) for file in files}
    assert "zero one␛[31m $2$ 3" in told["cosines-means-a.svg"]
    assert "barrier" in told["path-plain-loss.svg"]
    assert "at collapse" in told["spectrum-class.means-a.svg"]
    assert {"A", "B", "C"} <= set(told["plane-abc-train.svg"].split())
    with pytest.raises(UsageError, match=r"metric-accuracy\.svg: exists already"):
        draw_contents(contents, tmp_path / "figures", "svg")
    before = files[0].read_bytes()
    [again] = draw_contents(first_of(contents), tmp_path / "figures", "svg", overwrite=True)
    assert (again, again.read_bytes()) == (files[0], before)


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_other_formats(contents: Contents, tmp_path: Path, kind: str, magic: bytes) -> None:
    [file] = draw_contents(first_of(contents), tmp_path, kind)
    assert file.read_bytes().startswith(magic)


def test_names_from_files_lead_nowhere_else(tmp_path: Path) -> None:
    names = ["../../up", "/abs", "a/b", "a b", "A/B", "." * 5, "x" * 300, "tab\x07"]
    lines = "".join(f'{{"step": {s}, {", ".join(f"{_json(n)}: {s + 1}" for n in names)}}}\n' for s in range(2))
    (tmp_path / "in.jsonl").write_text(lines)
    files = draw_contents(gather(open_sources([str(tmp_path / "in.jsonl")])), tmp_path / "out", "svg")
    assert len({file.name.lower() for file in files}) == len(files) == len(names)
    assert sorted((tmp_path / "out").iterdir()) == sorted(files)
    assert all(len(file.name) < 120 for file in files)


def _json(text: str) -> str:
    import json

    return json.dumps(text)
