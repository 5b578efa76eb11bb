"""Tests of `printable`: text of files cannot control a terminal or a page."""

import pytest

from ckpt_probe.errors import printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, Größe 日本 😀", "plain, Größe 日本 😀"),
        ("\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
        ("a\x00b\x07c\r\x7f", "a␀b␇c␍␡"),
        ("\x9b31m", "\ufffd31m"),
        ("right \u202eto left", "right \ufffdto left"),
        ("two\nlines\tand a tab", "two␊lines␉and a tab"),
        ("می\u200cروم, no\u00a0break", "می\u200cروم, no break"),
        ("\ud800", "\ufffd"),
    ],
)
def test_control_characters_become_visible_signs(text: str, expected: str) -> None:
    assert printable(text) == expected
