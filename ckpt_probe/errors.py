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


def in_cell(text: str) -> str:
    """Text of a file's own as a cell of a spreadsheet may have it: `printable`, and no formula.

    What a spreadsheet would take for one, since it begins with = + - or @ and is no number, begins with an apostrophe.
    """
    told = printable(text)
    if not told.lstrip().startswith(("=", "+", "-", "@")) or _is_number(told):
        return told
    return f"'{told}"


def in_json(text: str) -> str:
    """JSON as a terminal may show it: what `printable` would change stands as an escape, and still reads back."""
    if text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if _shown(character) == character or (character.isspace() and ord(character) > 0x7F):
        return character
    code = ord(character)
    # Beyond 16 bits JSON has two escapes, of a surrogate pair.
    pair = [code] if code < 0x10000 else [0xD7C0 + (code >> 10), 0xDC00 + (code & 0x3FF)]
    return "".join(f"\\u{half:04x}" for half in pair)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(character: str) -> str:
    if character in "\n\t\u200c\u200d" or character.isprintable():
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else " " if character.isspace() else "\ufffd"
