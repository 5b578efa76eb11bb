"""`ckpt-probe inspect`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ckpt_probe.cli.options import MODEL_SETTINGS, flag, model_options, option_group, setting_group, verb
from ckpt_probe.cli.output import bars, show
from ckpt_probe.cli.values import PATH
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
    elif facts["kind"] == "series":
        _print_series(facts)
    else:
        _print(facts, statistics)
    if verify:
        _require_undamaged(path, facts["verified"])
    if unreadable := list(facts.get("unreadable", {}).values()):
        count = len(unreadable) + len(facts["checkpoints"])
        raise DataError(f"{path}: {len(unreadable)} of {count} checkpoints cannot be opened: {listed(unreadable, 3)}")


def _print(facts: dict[str, Any], statistics: bool) -> None:
    click.echo(printable(f"{facts['file']}: a whole {facts['kind']}, {facts['bytes']:,} bytes"))
    for line in _lines(facts):
        show(line)
    more = STATISTICS if statistics else ()
    rows = []
    for tensor in facts["tensors"]:
        shape = " × ".join(map(str, tensor["shape"])) or "scalar"
        rows.append([tensor["name"], tensor["dtype"], shape, *(_cell(tensor.get(name)) for name in more)])
    _print_table(["tensor", "dtype", "shape", *more], rows)
    _print_verified(facts)


def _print_verified(facts: dict[str, Any]) -> None:
    for line in _verification_lines(facts["verified"]) if "verified" in facts else ():
        click.echo(printable(line))


STATISTICS = ("norm", "mean", "spread", "zeros", "nan", "inf")


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
        from ckpt_probe.models import format_head, format_layers

        yield f"model: {facts['head']['model']}, shown {facts['head']['shown']}"
        yield from format_head(facts["head"])
        yield from format_layers(facts["head"])
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


def _print_series(facts: dict[str, Any]) -> None:
    click.echo(printable(f"{facts['file']}: {len(facts['checkpoints'])} checkpoints, in order"))
    columns = ["checkpoint", "step", "from", "epoch", "format", "bytes", "tensors", "parameters", "also"]
    names = ["checkpoint", "step", "step_source", "epoch", "format", "bytes", "tensors", "parameters", "same_weights"]
    _print_table(columns, [[_cell(row[name]) for name in names] for row in facts["checkpoints"]])
    for warning in facts["warnings"]:
        click.echo(printable(warning))
    _print_verified(facts)
    click.echo(printable(facts["audit"]["verdict"]))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
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
    lines[0] = click.style(lines[0], bold=True)
    click.echo("\n".join(lines))


LEFT = frozenset({"tensor", "dtype", "shape", "checkpoint", "from", "format", "also"})


def _verification_lines(result: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each damaged tensor and a summary."""
    for line in result["damaged"]:
        yield f"damaged: {line}"
    without = result["tensors"] - result["checked"]
    if not result["checked"]:
        yield f"verified: all {result['tensors']:,} tensors were read; there are no hashes to check them against"
    elif without:
        yield f"verified: {result['checked']:,} of {result['tensors']:,} tensors; the other {without:,} carry no hash"
    else:
        intact = result["checked"] - len(result["damaged"])
        yield f"verified: {intact:,} of {result['tensors']:,} tensors are as written"


def _require_undamaged(path: Path, result: dict[str, Any]) -> None:
    """Raise DataError if a tensor is damaged."""
    if result["damaged"]:
        count = len(result["damaged"])
        raise DataError(f"{path}: {count} of {result['tensors']} tensors {'is' if count == 1 else 'are'} damaged")
