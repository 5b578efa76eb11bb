"""`ckpt-probe inspect`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ckpt_probe.cli.flags import PATH, flags_for_keywords
from ckpt_probe.cli.options import MODEL_SETTINGS, flag, model_options, option_group, setting_group, verb
from ckpt_probe.cli.output import bars
from ckpt_probe.errors import DataError, in_json, listed, printable

MOST_TRAINER_LINES = 40
"""Number of values of the trainer's metadata that are printed; --json has all of them."""


@verb("inspect", "Example: ckpt-probe inspect runs/digits/checkpoints/step-000000.safetensors")
@click.argument("path", type=PATH)
@option_group(
    "Contents",
    flag("--statistics", "Compute norm, mean, spread, and shares of zeros, NaN and infinities of tensors."),
    flag("--verify", "Read every byte and check it against the file's hashes or checksums."),
)
@option_group("Output", flag("--json", "Print all information as one JSON object."))
@model_options
@setting_group("--set", "Less common settings", MODEL_SETTINGS)
def command(path: Path, statistics: bool, verify: bool, json: bool, **options: Any) -> None:
    """Describe PATH: a checkpoint of any format, a directory of checkpoints, or a dump.

    For a checkpoint: its tensors, step, metadata of its trainer, likely heads and quantised tensors; only --statistics
    and --verify read the values. For a directory of several: one line per checkpoint, in order, a warning if two have
    the same step or identical weights, and the verdict of an audit of the weights. With --model or --data, the model is
    built and run on one sample to show its head, how it was identified, and the layers that extract --layers all
    stores.
    """
    from json import dumps

    from ckpt_probe.inspection import inspect

    with bars() as progress:
        facts = inspect(path, statistics=statistics, verify=verify, progress=progress, **options)
    if json:
        click.echo(in_json(dumps(facts, ensure_ascii=False, allow_nan=False)))
    else:
        lines, columns, rows, notes = _series(facts) if facts["kind"] == "series" else _single(facts, statistics)
        notes += _verification(facts["verified"]) if verify else []
        notes += [facts["audit"]["verdict"]] if "audit" in facts else []
        click.echo("\n".join([*map(printable, lines), *_table(columns, rows), *map(printable, notes)]))
    damaged = facts["verified"]["damaged"] if verify else ()
    if damaged:
        count, tensors = len(damaged), facts["verified"]["tensors"]
        raise DataError(f"{path}: {count} of {tensors} tensors {'is' if count == 1 else 'are'} damaged")
    if unreadable := list(facts.get("unreadable", {}).values()):
        count = len(unreadable) + len(facts["checkpoints"])
        raise DataError(f"{path}: {len(unreadable)} of {count} checkpoints cannot be opened: {listed(unreadable, 3)}")


STATISTICS = ("norm", "mean", "spread", "zeros", "nan", "inf")
Page = tuple[list[str], list[str], list[list[str]], list[str]]
"""Lines of text, the columns and rows of a table, and the lines below it."""


def _single(facts: dict[str, Any], statistics: bool) -> Page:
    """Return the page of a checkpoint or a dump."""
    lines = [flags_for_keywords(line) for line in list(_lines(facts))]
    more = STATISTICS if statistics else ()
    rows = []
    for tensor in facts["tensors"]:
        shape = " × ".join(map(str, tensor["shape"])) or "scalar"
        rows.append([tensor["name"], tensor["dtype"], shape, *(_cell(tensor.get(name)) for name in more)])
    title = f"{facts['file']}: a whole {facts['kind']}, {facts['bytes']:,} bytes"
    return [title, *lines], ["tensor", "dtype", "shape", *more], rows, []


def _series(facts: dict[str, Any]) -> Page:
    """Return the page of a directory of checkpoints."""
    columns = ["checkpoint", "step", "from", "epoch", "format", "bytes", "tensors", "parameters", "also"]
    names = ["checkpoint", "step", "step_source", "epoch", "format", "bytes", "tensors", "parameters", "same_weights"]
    rows = [[_cell(row[name]) for name in names] for row in facts["checkpoints"]]
    return [f"{facts['file']}: {len(rows)} checkpoints, in order"], columns, rows, [*facts["warnings"]]


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    """Yield the description as lines of text, without empty values."""
    if facts.get("format"):
        yield f"format: {facts['format']}" + (f", {len(facts['files'])} files" if len(facts["files"]) > 1 else "")
    if facts.get("state_key"):
        yield f"state dict: {facts['state_key']}"
    for other in facts.get("other_state_dicts", ()):
        yield f"other state dict: {other}; choose it with --state-key"
    if facts.get("not_tensors"):
        yield f"not tensors, left out: {', '.join(facts['not_tensors'][:8])} ({len(facts['not_tensors'])} in all)"
    if facts.get("step") is not None:
        source = f" ({facts['step_source']})" if facts.get("step_source") not in (None, "metadata") else ""
        yield f"step: {facts['step']:,}{source}"
    for name in ("epoch", "parameters", "classifier"):
        if facts.get(name) is not None and not (name == "classifier" and "head" in facts):
            yield f"{name}: {facts[name]:,}" if isinstance(facts[name], int) else f"{name}: {facts[name]}"
    if "head" in facts:
        from ckpt_probe.models import format_head

        yield f"model: {facts['head']['model']}, shown {facts['head']['shown']}"
        yield from format_head(facts["head"])
    if facts.get("class_names"):
        names = [name if name.isprintable() else repr(name) for name in facts["class_names"]]
        yield f"classes: {listed(names)}"
    for head in facts.get("likely_heads", ()) if facts.get("classifier") is None else ():
        shape = f"{head['classes']:,} classes × {head['features']:,} features"
        yield f"likely head: {head['module'] or head['weight']}, {shape}: {', '.join(head['reasons'])}"
    if facts.get("quantised"):
        name, how = next(iter(facts["quantised"].items()))
        yield f"quantised: {len(facts['quantised'])} tensors, first {name} ({how}); extract needs them converted first"
    for name, value in facts["metadata"].items():
        yield f"  {name}: {value}"
    yield from _trainer_lines(facts.get("trainer", {}))


def _trainer_lines(trainer: dict[str, Any]) -> Iterator[str]:
    for number, (name, value) in enumerate(trainer.items()):
        if number == MOST_TRAINER_LINES:
            yield f"  … and {len(trainer) - number} more, all of them with --json"
            return
        text = str(value)
        yield f"  {name}: {text if len(text) <= 300 else f'{text[:300]}…'}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table."""
    from rich.cells import cell_len  # characters as wide as a terminal shows them

    cells = [columns, *[list(map(printable, row)) for row in rows]]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = []
        for name, cell, width in zip(columns, row, widths, strict=True):
            space = " " * (width - cell_len(cell))
            padded.append(cell + space if name in LEFT else space + cell)
        lines.append("  ".join(padded).rstrip())
    return [click.style(lines[0], bold=True), *lines[1:]]


LEFT = frozenset({"tensor", "dtype", "shape", "checkpoint", "from", "format", "also"})


def _verification(result: dict[str, Any]) -> list[str]:
    """Return a line for each damaged tensor and a summary."""
    count, checked, damaged = result["tensors"], result["checked"], result["damaged"]
    if not checked:
        summary = f"all {count:,} tensors were read; there are no hashes to check them against"
    elif checked < count:
        summary = f"{checked:,} of {count:,} tensors; the other {count - checked:,} carry no hash"
    else:
        summary = f"{checked - len(damaged):,} of {count:,} tensors are as written"
    return [*(f"damaged: {line}" for line in damaged), f"verified: {summary}"]
