"""The one family of exceptions that ckpt-probe raises on purpose, and how their messages list names."""

from collections.abc import Sequence


class CkptProbeError(Exception):
    """An error that a person can act on; the command line prints it as one line and exits with `exit_code`.

    The message says what happened, in which file, tensor or row, and what to do next.
    """

    exit_code = 1


class DataError(CkptProbeError):
    """A file, a tensor or an array is missing, damaged or not of the expected kind (exit code 1)."""


class UsageError(CkptProbeError):
    """The command, an option or a configuration was used wrongly (exit code 2)."""

    exit_code = 2


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names for a message, the first `most` of them and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def last_line(error: BaseException) -> str:
    """An exception as the last line of its traceback has it, cut where its message goes on over more lines."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def printable(text: str) -> str:
    """Text of a file's own as a terminal or a page may show it: what would command these is a visible sign instead.

    Control characters, those of a terminal's escape sequences among them, become their pictures (␛), characters that
    turn the direction of writing or have no place in text become �; line breaks, tabs and joiners stay.
    """
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if character in "\n\t\u200c\u200d" or character.isprintable():
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else " " if character.isspace() else "\ufffd"
