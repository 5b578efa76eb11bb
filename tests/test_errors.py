"""Text of files as a terminal or a page may show it."""

import pytest

from ckpt_probe.errors import printable


@pytest.mark.parametrize(
    ("text", "shown"),
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
def test_what_would_command_a_terminal_is_a_visible_sign(text: str, shown: str) -> None:
    assert printable(text) == shown
