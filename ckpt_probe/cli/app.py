"""The command `ckpt-probe`: loads the module of a subcommand when it is used; reports an error in one line."""

import _thread
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape, glob
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from ckpt_probe import __version__
from ckpt_probe.addresses import clean_words, is_address, redacted, refuse_address, without_credentials, without_secrets
from ckpt_probe.cli.flags import flags_for_keywords
from ckpt_probe.cli.output import discard_output
from ckpt_probe.errors import CkptProbeError, UsageError, last_line, printable
from ckpt_probe.files import INTERRUPTS
from ckpt_probe.keywords import suggestion

VERBS = (
    "demo",
    "train",
    "prune",
    "extract",
    "analyze",
    "weights",
    "similarity",
    "events",
    "examples",
    "compare",
    "plot",
    "report",
    "export",
    "interpolate",
    "barriers",
    "plane",
    "average",
    "inspect",
)
WRITTEN = frozenset({"-o", "--out", "--spectra", "--figure", "--figures", "--tensorboard"})
"""Options that name an output file or directory."""
LOCAL_VERBS = frozenset({"demo", "train", "events", "compare", "plot", "report", "export"})
"""Subcommands that do not accept addresses."""
MERGING_VERBS = frozenset({"average", "interpolate", "prune"})
"""Subcommands that refuse an input as their output themselves."""
DUMP_VERBS = frozenset({"analyze", "examples", "similarity"})
"""Subcommands that read dumps alone, whose suffix no result may have."""
RECORDS, FIGURES = frozenset({".csv", ".jsonl", ".parquet"}), frozenset({".html", ".pdf", ".png", ".svg"})
"""Suffixes of results: of records, which only LOCAL_VERBS read, and of results that no subcommand reads."""
HELP_WIDTH = 100
"""Characters of a line of help, unless the terminal is narrower."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG})
"""Errors of a disk that is full, of a quota, file size or length of a name that is reached."""
OUT_OF_MEMORY = ("can't allocate memory", "out of memory")
INTERRUPTED = 130
INTERNAL_ERROR = 70


class Interrupted(Exception):
    """The user has interrupted a subcommand; click would print an empty line first."""


class Verbs(click.Group):
    """Command group that imports the module of a subcommand only when it is used."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return the context of a command line; in a pipe, help is as wide as on a wide terminal."""
        if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
            extra.setdefault("terminal_width", HELP_WIDTH)
        return super().make_context(info_name, args, parent, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the subcommands in the order of a typical study."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the subcommand, None for an unknown name."""
        if cmd_name not in VERBS:
            return None
        return import_module(f"ckpt_probe.cli.{cmd_name}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the subcommand and its words; raise UsageError with the nearest names for an unknown one."""
        if not args[0].startswith("-") and args[0] not in VERBS:
            ctx.fail(f"No such command {args[0]!r}{suggestion(args[0], VERBS) or '.'}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error
        except BrokenPipeError:
            # click would exit with 1.
            discard_output()
            return 0


@click.command(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH},
    epilog="Start with: ckpt-probe demo",
    invoke_without_command=True,
    no_args_is_help=True,
)
@click.version_option(__version__, prog_name="ckpt-probe")
@click.option("--debug", is_flag=True, help="Show the traceback of an error; may appear anywhere in the command line.")
@click.option("--quiet", is_flag=True, help="Print only results and errors; may appear anywhere in the command line.")
def group(debug: bool, quiet: bool) -> None:
    """Show what happened inside a training run, from its checkpoints alone.

    Extracts penultimate features and classifier weights from checkpoints, and computes matrix entropy, mutual
    information (MIR, HDR) and neural collapse (NC1-NC4) from them, also along the path between two checkpoints.
    """


def main() -> None:
    """Run the command line and exit; output to a stream that the caller has closed is discarded."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a character that the terminal's encoding lacks
    code = run(sys.argv[1:])
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_DFL)  # Python would show a traceback if it is interrupted on exit
    exec("")  # or it would exit as interrupted, if the interruption was within another exec of a text, as in an import
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line in this process and return its exit code: 0, 1 bad data, 2 wrong use, 130 interrupted.

    SIGTERM and SIGHUP interrupt it like Ctrl-C, with exit codes 143 and 129.
    """
    with _interrupted_by_signals() as received:
        return _run(arguments, received)


def _run(arguments: Sequence[str], received: Sequence[int]) -> int:
    debug = "--debug" in arguments
    try:
        # This comes first, so that no error and no result can contain a credential.
        words = clean_words(arguments)
        _require_possible_files(words)
    except CkptProbeError as error:
        return _fail(f"error: {error}", error.exit_code, debug)
    debug, quiet = "--debug" in words, "--quiet" in words
    words = [word for word in words if word not in {"--debug", "--quiet"}]
    try:
        first = ["--quiet"] if quiet and words else []
        with ignored_interruptions_repeated():
            code = group.main([*first, *words], prog_name="ckpt-probe", standalone_mode=False, obj=words)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (click.Abort, Interrupted, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):
            # click reports the end of any file as an abort of interactive input.
            return _internal(error.__cause__, debug)
        line = (
            "interrupted; files written so far are complete: run the same command again to continue (train: --resume)"
        )
        return _fail(line, 128 + received[0] if received else INTERRUPTED, debug)
    except CkptProbeError as error:
        command = group.get_command(click.Context(group), _verb(words))
        return _fail(f"error: {flags_for_keywords(str(error), command)}", error.exit_code, debug)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        return _fail(f"error: {_usage_message(error)}", error.exit_code, debug)
    except BrokenPipeError:
        discard_output()
        return 0
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            line = "too many open files; allow more with `ulimit -n 4096`, or close other programs"
        elif error.errno in FULL:
            line = f"{error.filename or 'the output'}: cannot be written: {error.strerror}"
            if error.filename is None:
                discard_output()  # or Python would fail again when it writes the rest on exit, with code 120
        else:
            return _internal(error, debug)
        return _fail(f"error: {line}", 1, debug)
    except Exception as error:
        # torch raises a RuntimeError of these words.
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in OUT_OF_MEMORY):
            return _internal(error, debug)
        line = f"not enough memory ({last_line(error)}); end other programs, or use a machine with more"
        return _fail(f"error: {line}", 1, debug)


@contextmanager
def _interrupted_by_signals() -> Iterator[Sequence[int]]:
    """Raise KeyboardInterrupt in a `with` block also for SIGTERM and SIGHUP; yield the numbers of those received."""
    received: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    ours = [each for each in INTERRUPTS if main and signal.getsignal(each) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield received
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def ignored_interruptions_repeated() -> Iterator[None]:
    """Interrupt this process again whenever Python has ignored a KeyboardInterrupt, within a `with` block.

    h5py keeps its objects in a dictionary of weak references, whose callback runs whenever one of them is freed: about
    one of 15 interruptions of an analysis arrives there, and the command would go on as if nothing had happened.
    """
    before = sys.unraisablehook
    repetitions: list[_thread.LockType] = []

    def repeat(repetition: _thread.LockType) -> None:
        _thread.interrupt_main()
        repetition.release()

    def hook(unraisable: "sys.UnraisableHookArgs", /) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        while True:
            with suppress(KeyboardInterrupt):
                repetition = _thread.allocate_lock()
                repetition.acquire()
                repetitions.append(repetition)
                # The thread runs after this hook has returned; otherwise the hook is called and repeats it again.
                _thread.start_new_thread(repeat, (repetition,))
                return

    sys.unraisablehook = hook
    try:
        yield
        for repetition in repetitions:
            repetition.acquire()
    finally:
        sys.unraisablehook = before


def _require_possible_files(words: Sequence[str]) -> None:
    """Raise UsageError for an output that is an address, nameless or also an input, and for an address to read locally.

    An output that is also an input, or a file in a directory of inputs, would be replaced by the results, with
    --overwrite.
    """
    verb, outputs = _verb(words), list(_outputs(words))
    for option, output in outputs:
        if not output.strip():
            raise UsageError(f"{option}: an empty name, as of a variable that is not set")
        refuse_address(output)
    address = next(filter(is_address, words), None)
    if address is not None and (verb in LOCAL_VERBS or "--follow" in words):
        raise UsageError(f"{without_secrets(address)}: {verb} reads local files only; download it and name the copy")
    if verb in MERGING_VERBS or "--overwrite" not in words:
        return
    texts = [part for word in words for part in (word, word.partition("=")[2], word[2:] if word[:2] == "-o" else "")]
    for text in (verb, *(output for _, output in outputs)):
        texts.remove(text)
    names = [name for text in texts for name in (text, *text.split(","))]
    inputs = [path for name in names for path in _existing(name, escape(name))]
    results = FIGURES if verb in LOCAL_VERBS else FIGURES | RECORDS
    for output in filter(Path.is_file, _existing(*(escape(name) for _, name in outputs))):
        is_result = verb in DUMP_VERBS or output.suffix.lower() in results
        folders = [] if is_result else output.resolve().parents
        if any(path.samefile(output) if path.is_file() else path.resolve() in folders for path in inputs):
            raise UsageError(f"{output}: both an input and the output; choose another name")


def _existing(*patterns: str) -> list[Path]:
    """Return the existing paths that match any of some patterns, which may also be too long, or not for paths."""
    return [path for pattern in patterns for path in map(Path, glob(pattern)) if path.exists()]  # noqa: PTH207


def _verb(words: Sequence[str]) -> str:
    return next((word for word in words if not word.startswith("-")), "")


def _outputs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option that names an output, with that name: `--out NAME`, `--out=NAME`, `-o NAME` or `-oNAME`."""
    for number, word in enumerate(words, 1):
        option, equals, value = word.partition("=")
        if option in WRITTEN and (equals or number < len(words)):
            yield option, value if equals else words[number]
        elif word.startswith("-o") and word != "-o":
            yield "-o", word[2:]


def _internal(error: BaseException, debug: bool) -> int:
    summary = redacted(str(error).splitlines()[0]) if str(error) else ""
    hint = "a bug in ckpt-probe, or in a function that you passed to it; --debug shows the traceback"
    return _fail(f"internal error: {type(error).__name__}: {summary} ({hint})", INTERNAL_ERROR, debug)


def _fail(line: str, code: int, debug: bool) -> int:
    lines = redacted(traceback.format_exc()).splitlines() if debug else []
    with suppress(OSError):  # a terminal that was closed
        for each in [*lines, without_credentials(line)]:
            print(printable(each), file=sys.stderr)
    return code


def _usage_message(error: click.ClickException) -> str:
    message = error.format_message()
    context = getattr(error, "ctx", None)
    return f"{message} (see: {context.command_path} --help)" if context else message
