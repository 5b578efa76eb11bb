"""Exceptions of ckpt-probe, and the formatting of texts for messages and output."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class CkptProbeError(Exception):
    """Base class of errors that the user can correct; the command line prints one line and exits with `exit_code`.

    The message contains what happened, in which file, tensor or row, and what to do.
    """

    exit_code = 1


class DataError(CkptProbeError):
    """A file, a tensor or an array is missing, damaged or not of the expected kind (exit code 1)."""


class UsageError(CkptProbeError):
    """An argument, an option or a configuration is wrong (exit code 2)."""

    exit_code = 2


@contextmanager
def error_context(before: str = "", after: str = "") -> Iterator[None]:
    """Complete the messages of errors that are raised within the `with` block.

    Args:
        before: Text before the message, such as the file that it is about.
        after: Text after it, such as what to do.
    """
    try:
        yield
    except CkptProbeError as error:
        raise type(error)(f"{before}{error}{after}") from error


def listed(names: Sequence[str], most: int = 8, separator: str = ", ") -> str:
    """Join names for a message, with commas unless stated: the first `most` of them, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def shortened(text: str, most: int) -> str:
    """Return a text of at most `most` characters; a longer one ends in an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def last_line(error: BaseException) -> str:
    """Return the type of an exception and the first line of its message, like the last line of a traceback."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def printable(text: str) -> str:
    """Replace characters that could control a terminal or a page by visible ones; the result is one line.

    Control characters, including line breaks and those of escape sequences, become their pictures (␊, ␛); characters
    that change the direction of writing and other unprintable characters become �. Joiners are unchanged.
    """
    return text if text.isprintable() else "".join(_visible(character) for character in text)


def in_cell(text: str) -> str:
    """Return a text that is safe in a cell of a spreadsheet: `printable`, and not a formula.

    A text that starts with =, +, - or @ and is not a number gets an apostrophe before it.
    """
    cell = printable(text)
    if not cell.lstrip().startswith(("=", "+", "-", "@")) or _is_number(cell):
        return cell
    return f"'{cell}"


def in_utf8(text: str) -> str:
    """Return a text that UTF-8 can encode: half characters, and other bytes of file names, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def in_json(text: str) -> str:
    """Escape the characters that `printable` would replace in JSON, so that it parses to the same value."""
    if text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if _visible(character) == character or (character.isspace() and ord(character) > 0x7F):
        return character
    code = ord(character)
    # JSON needs a surrogate pair for a character of more than 16 bits.
    pair = [code] if code < 0x10000 else [0xD7C0 + (code >> 10), 0xDC00 + (code & 0x3FF)]
    return "".join(f"\\u{half:04x}" for half in pair)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _visible(character: str) -> str:
    if character in "\u200c\u200d" or character.isprintable():
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else " " if character.isspace() else "\ufffd"
