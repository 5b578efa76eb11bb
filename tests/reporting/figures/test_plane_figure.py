"""Contours of a plane: levels, the same bytes for the same result, points without a loss, refusal."""

import builtins
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from ckpt_probe.cli.plane import shade
from ckpt_probe.errors import UsageError
from ckpt_probe.paths import PlaneResult
from ckpt_probe.reporting.figures.export import draw_plane
from ckpt_probe.reporting.plots.paths import loss_levels


def plane(loss: Any, splits: tuple[str, ...] = ("test",)) -> PlaneResult:
    xs, ys = [-1.0, 0.0, 1.0, 2.0], [-0.5, 0.0, 0.5]
    points = [{"x": x, "y": y, "split": split, "loss": loss(x, y)} for y in ys for x in xs for split in splits]
    marks = [{"name": "A", "x": 0.0, "y": 0.0, "split": split, "loss": loss(0.0, 0.0)} for split in splits]
    return PlaneResult(points, marks, [{"split": split} for split in splits], {"cosine": 0.1}, xs, ys)


def test_levels_are_spaced_in_the_logarithm() -> None:
    levels = loss_levels([1, 1e5], 5)
    assert levels == pytest.approx([10, 100, 1e3, 1e4, 1e5])
    assert [shade(loss, levels) for loss in (1, 11, 1e5, None)] == [" ", "░", "█", "?"]
    assert shade(0, loss_levels([0, 0], 5)) == " "
    assert loss_levels([], 5) == []
    assert loss_levels([0.0, 2.0], 5)[0] > 0


def test_the_same_plane_is_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bowl = plane(lambda x, y: 0.1 + x * x + y * y, ("train", "test"))
    files = [tmp_path / name for name in ("one.svg", "two.svg")]
    for file in files:
        draw_plane(bowl, file)
    first, second = (file.read_bytes() for file in files)
    assert first == second
    other = tmp_path / "other.svg"
    draw_plane(plane(lambda x, y: 0.1 + x * x + 2 * y * y, ("train", "test")), other)
    assert other.read_bytes() != first
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


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"ends in \.svg, \.png, \.pdf"):
        draw_plane(plane(lambda x, y: 1.0), tmp_path / "plane.gif")
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **named)

    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r'pip install "ckpt-probe\[figures\]"'):
        draw_plane(plane(lambda x, y: 1.0), tmp_path / "plane.svg")
