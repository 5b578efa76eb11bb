"""The call that made a result, kept beside the result, so that a command can be stated that makes it again."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ckpt_probe.addresses import redacted, without_credentials

FLAGS = {"model_arguments": "--model-argument", "data_arguments": "--data-argument", "splits": "--split"}
"""Options of the commands whose name is not that of their keyword."""

SAMPLING = frozenset({"max_rows", "rows_seed", "subset_rows", "subset_seed"})
IMPLIED = frozenset({"directions"})
"""Keywords that follow from the number of checkpoints."""

BETWEEN = {"span": ":", "grid": "x"}
"""Separators between the numbers of an option."""


def request_of(inputs: Sequence[Path], out: Path, *settings: Any) -> dict[str, Any]:
    """Return a call in values that JSON has.

    Args:
        inputs: Checkpoints or runs, as they were named.
        out: Directory of the results.
        settings: Dataclass instances; their fields that differ from the defaults are kept.

    Returns:
        Names of `inputs`, `options` by name, and `directory`: the working directory, relative to `out`.
    """
    options = {
        field.name: getattr(part, field.name)
        for part in settings
        for field in fields(part)
        if getattr(part, field.name) != field.default
    }
    request = {"inputs": list(inputs), "directory": os.path.relpath(Path.cwd(), out), "options": options}
    return without_credentials(json.loads(redacted(json.dumps(request, default=str))))


def command_of(verb: str, request: Mapping[str, Any], out: Path) -> str:
    """Return the command line that makes the results in `out` again, from the directory in which it was given.

    Args:
        verb: Command of ckpt-probe.
        request: Request as `request_of` returns it.
        out: Directory of the results, as it is named now.
    """
    directory = (out / request["directory"]).resolve()
    elsewhere = directory != Path.cwd() and directory.is_dir()
    target = os.path.relpath(out.resolve(), directory) if elsewhere else str(out)
    options = [word for name, value in request["options"].items() for word in _words(name, value)]
    line = shlex.join(["ckpt-probe", verb, *request["inputs"], "-o", target, *options])
    return f"cd {shlex.quote(str(directory))} && {line}" if elsewhere else line


def _words(name: str, value: Any) -> list[str]:
    if name in IMPLIED:
        return []
    if name in SAMPLING:
        return ["--sampling", f"{name}={_text(name, value)}"]
    flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    return [word for each in (value if name == "splits" else [value]) for word in (flag, _text(name, each))]


def _text(name: str, value: Any) -> str:
    if isinstance(value, list):
        return BETWEEN[name].join(map(str, value))
    if isinstance(value, dict):
        return json.dumps(value)
    # None has a meaning for the number of points alone: chosen automatically.
    return "auto" if value is None else str(value)
