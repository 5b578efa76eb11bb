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
