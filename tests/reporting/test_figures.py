"""Tests of figures of all plots of a report, and of planes."""

import builtins
import math
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from ckpt_probe.cli.plane import shade
from ckpt_probe.errors import UsageError
from ckpt_probe.paths import PlaneResult
from ckpt_probe.reporting.figures import draw_contents, draw_plane
from ckpt_probe.reporting.material import Material
from ckpt_probe.reporting.plots.paths import loss_levels
from ckpt_probe.reporting.sections import Contents, gather
from ckpt_probe.reporting.sources import open_sources

ESCAPE = "\x1b[31m"


@pytest.fixture(scope="module")
def contents(study: Any) -> Contents:
    """Return the contents of a report with one plot of each kind."""
    complete = gather(
        open_sources([study.sources[i] for i in (0, 2, 4)]), Material(class_names=("zero", f"one{ESCAPE}", "$2$"))
    )
    sections = []
    for section in complete.sections:
        groups = [type(group)(group.title, group.plots[:1]) for group in section.groups[:1]]
        sections.append(type(section)(section.key, section.title, section.lead, tuple(groups)))
    return Contents(complete.title, complete.reading, tuple(sections), complete.axis, complete.tracks, complete.origins)


def first_of(contents: Contents) -> Contents:
    return Contents(contents.title, (), contents.sections[:1], contents.axis, contents.tracks, ())


def words(svg: Path) -> str:
    return " ".join("".join(e.itertext()) for e in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text"))


def test_every_plot_is_a_figure_with_the_texts_of_the_page(contents: Contents, tmp_path: Path) -> None:
    files = draw_contents(contents, tmp_path / "figures", "svg")
    assert sorted(file.name for file in files) == [
        "cosines-means-a.svg", "examples-learned-a.svg", "metric-accuracy.svg", "path-plain-loss.svg",
        "plane-abc-train.svg", "spectrum-class.means-a.svg",
    ]  # fmt: skip
    text_of = {file.name: words(file) for file in files}
    assert "zero one␛[31m $2$ 3" in text_of["cosines-means-a.svg"]
    assert "barrier" in text_of["path-plain-loss.svg"]
    assert "at collapse" in text_of["spectrum-class.means-a.svg"]
    assert {"A", "B", "C"} <= set(text_of["plane-abc-train.svg"].split())
    with pytest.raises(UsageError, match=r"metric-accuracy\.svg: exists already"):
        draw_contents(contents, tmp_path / "figures", "svg")
    before = files[0].read_bytes()
    [again] = draw_contents(first_of(contents), tmp_path / "figures", "svg", overwrite=True)
    assert (again, again.read_bytes()) == (files[0], before)


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_figures_can_be_written_in_other_formats(contents: Contents, tmp_path: Path, kind: str, magic: bytes) -> None:
    [file] = draw_contents(first_of(contents), tmp_path, kind)
    assert file.read_bytes().startswith(magic)


def test_names_in_files_cannot_lead_out_of_the_directory(tmp_path: Path) -> None:
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


def plane(loss: Any, splits: tuple[str, ...] = ("test",)) -> PlaneResult:
    xs, ys = [-1.0, 0.0, 1.0, 2.0], [-0.5, 0.0, 0.5]
    points = [{"x": x, "y": y, "split": split, "loss": loss(x, y)} for y in ys for x in xs for split in splits]
    marks = [{"name": "A", "x": 0.0, "y": 0.0, "split": split, "loss": loss(0.0, 0.0)} for split in splits]
    return PlaneResult(points, marks, [{"split": split} for split in splits], {"cosine": 0.1}, xs, ys)


def test_levels_of_a_plane_are_evenly_spaced_in_the_logarithm() -> None:
    levels = loss_levels([1, 1e5], 5)
    assert levels == pytest.approx([10, 100, 1e3, 1e4, 1e5])
    assert [shade(loss, levels) for loss in (1, 11, 1e5, None)] == [" ", "░", "█", "?"]
    assert shade(0, loss_levels([0, 0], 5)) == " "
    assert loss_levels([], 5) == []
    assert loss_levels([0.0, 2.0], 5)[0] > 0


def test_figures_of_the_same_plane_are_identical(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bowl = plane(lambda x, y: 0.1 + x * x + y * y, ("train", "test"))
    files = [tmp_path / name for name in ("one.svg", "two.svg")]
    for file in files:
        draw_plane(bowl, file)
    first, second = (file.read_bytes() for file in files)
    assert first == second
    second_figure = tmp_path / "other.svg"
    draw_plane(plane(lambda x, y: 0.1 + x * x + 2 * y * y, ("train", "test")), second_figure)
    assert second_figure.read_bytes() != first
    with pytest.raises(UsageError, match="exists already"):
        draw_plane(bowl, files[0])
    draw_plane(bowl, files[0], overwrite=True)
    for suffix, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        draw_plane(bowl, tmp_path / f"plane{suffix}")
        assert (tmp_path / f"plane{suffix}").read_bytes().startswith(magic)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: None if x > 0 else 1 + x * x,
        lambda x, y: None,
        lambda x, y: 0.0,
        lambda x, y: 0.7,
        lambda x, y: max(0.0, x) * math.exp(20 * y),
    ],
)
def test_planes_with_few_losses_are_drawn(loss: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_plane(plane(loss), tmp_path / "plane.svg")
    assert (tmp_path / "plane.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")


def test_other_suffixes_and_a_missing_matplotlib_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"ends in \.svg, \.png, \.pdf"):
        draw_plane(plane(lambda x, y: 1.0), tmp_path / "plane.gif")
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r'pip install "ckpt-probe\[figures\]"'):
        draw_plane(plane(lambda x, y: 1.0), tmp_path / "plane.svg")
