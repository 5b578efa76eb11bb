"""The call that made a result, kept beside the result, so that a command can be stated that makes it again."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ckpt_probe.addresses import redacted, without_credentials

SPELLED = {"span": "range", "splits": "split", "with_logits": "logits"}
"""Options of a command by the names of the parameters that differ from them."""

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


def command_of(verb: str, request: Mapping[str, Any], out: Path, *more: str) -> str:
    """Return the command line that makes the results in `out` again, from the directory in which it was given.

    Args:
        verb: Command of ckpt-probe.
        request: Request as `request_of` returns it.
        out: Directory of the results, as it is named now.
        more: Further words of the command.
    """
    directory = (out / request["directory"]).resolve()
    elsewhere = directory != Path.cwd() and directory.is_dir()
    target = os.path.relpath(out.resolve(), directory) if elsewhere else str(out)
    options = [word for name, value in request["options"].items() for word in _words(name, value)]
    line = shlex.join(["ckpt-probe", verb, *request["inputs"], "-o", target, *options, *more])
    return f"cd {shlex.quote(str(directory))} && {line}" if elsewhere else line


def _words(name: str, value: Any) -> list[str]:
    option = SPELLED.get(name, name).replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    if name == "splits":
        return [word for split in value for word in (f"--{option}", split)]
    if isinstance(value, dict):
        return [f"--{option}", json.dumps(value)]
    if isinstance(value, list):
        return [f"--{option}", BETWEEN[name].join(map(str, value))]
    # None has a meaning for the number of points alone: chosen automatically.
    return [f"--{option}", "auto" if value is None else str(value)]
