"""Tests of HTML for notebooks: it is well formed, texts are escaped, and lines go through the values."""

import re
import xml.etree.ElementTree as ET

import pytest

from ckpt_probe.notebook import EDGE, HEIGHT, WIDTH, sparkline, table, text

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "\x1b[31mred\x1b[0m\x00", "long" * 2500]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_escaped_and_shortened(name: str) -> None:
    html = table(name, [name], [[text(name), sparkline([1, 2], name)]])
    root = ET.fromstring(html)
    assert {e.tag for e in root.iter()} == {"table", "caption", "thead", "tr", "th", "td", "svg", "path", "circle"}
    assert "\x1b" not in html
    assert len(html) < 4000
    assert root.findtext("caption").startswith(name[:5].replace("\x1b", "\N{REPLACEMENT CHARACTER}"))


def points_of(svg: str) -> list[list[tuple[float, float]]]:
    path = ET.fromstring(svg).find("path").attrib["d"]
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", part)] for part in path.split("M")[1:]]


def test_a_line_goes_from_edge_to_edge_and_breaks_where_a_value_is_missing() -> None:
    [first, second] = points_of(sparkline([0.0, 5.0, None, 10.0, 2.5], "a"))
    bottom, top, right = HEIGHT - EDGE, EDGE, WIDTH - EDGE
    assert first == [(EDGE, bottom), (pytest.approx(31), pytest.approx(bottom - (bottom - top) / 2))]
    assert second == [(pytest.approx(89), top), (right, pytest.approx(bottom - (bottom - top) / 4))]


def test_a_single_value_is_a_point_equal_values_a_flat_line_and_no_values_nothing() -> None:
    assert points_of(sparkline([3.0], "a")) == [[(EDGE, HEIGHT - EDGE)]]
    assert {y for _, y in points_of(sparkline([3.0, 3.0, 3.0], "a"))[0]} == {HEIGHT - EDGE}
    assert sparkline([None, None], "a") == ""
