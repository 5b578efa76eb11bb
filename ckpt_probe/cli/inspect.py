"""`ckpt-probe inspect`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.cli.command import Command, explicit_options, flag, option_group, setting_group
from ckpt_probe.cli.flags import flags_for_keywords
from ckpt_probe.cli.options import MODEL_SETTINGS, PATH, model_options
from ckpt_probe.errors import in_json, listed, printable

if TYPE_CHECKING:
    from ckpt_probe.checkpoints import Checkpoint, Member
    from ckpt_probe.extraction import Setup

DUMP_SUFFIXES = frozenset({".h5", ".hdf5"})
MOST_TRAINER_LINES = 40
"""Number of values of the trainer's metadata that are printed; --json has all of them."""


@click.command(
    "inspect", cls=Command, epilog="Example: ckpt-probe inspect runs/digits/checkpoints/step-000000.safetensors"
)
@click.argument("path", type=PATH)
@option_group(
    "Contents",
    flag("--statistics", "Compute norm, mean, spread, and shares of zeros, NaN and infinities of tensors."),
    flag("--verify", "Read every byte and check it against the file's hashes or checksums."),
)
@option_group("Output", flag("--json", "Print all information as one JSON object."))
@model_options
@setting_group("--set", "Less common settings", *MODEL_SETTINGS)
def command(
    path: Path, state_key: str | None, base: Path | None, statistics: bool, verify: bool, json: bool, **options: Any
) -> None:
    """Describe PATH: a checkpoint of any format, a directory of checkpoints, or a dump.

    For a checkpoint: its tensors, step, metadata of its trainer, likely heads and quantised tensors; only --statistics
    and --verify read the values. For a directory of several: one line per checkpoint, in order, and a warning if two
    have the same step or identical weights. With --model or --data, the model is built and run on one sample to show
    its head, how it was identified, and the layers that extract --layers all stores.
    """
    from json import dumps

    from ckpt_probe.remote import resolve

    path, base = resolve(path), resolve(base)
    setup = _setup(state_key, base, options)
    facts = _inspected(path, state_key, base, statistics, setup)
    if verify:
        from ckpt_probe.cli.verification import require_undamaged, verified

        facts["verified"] = verified(facts, state_key, base)
    if json:
        click.echo(in_json(dumps(facts, ensure_ascii=False, allow_nan=False)))
    elif facts["kind"] == "series":
        _print_series(facts)
    else:
        _print(facts, statistics)
    if verify:
        require_undamaged(path, facts["verified"])


def _setup(state_key: str | None, base: Path | None, options: dict[str, Any]) -> "Setup | None":
    """Return the model and data to run, None if no option names them."""
    if not explicit_options().keys() & options.keys():
        return None
    from ckpt_probe.extraction import Setup

    return Setup(device="cpu", state_key=state_key, base=base, **options)


def _inspected(
    path: Path, state_key: str | None, base: Path | None, statistics: bool, setup: "Setup | None"
) -> dict[str, Any]:
    from ckpt_probe.errors import UsageError

    if path.suffix in DUMP_SUFFIXES:
        if explicit_options().keys() - {"json", "verify"}:
            raise UsageError(f"{path}: a dump; only --json and --verify apply to it")
        return inspect_dump(path)
    if not path.is_dir():
        return inspect_checkpoint(path, state_key, base, statistics, setup)
    from ckpt_probe.checkpoints import open_series

    members = open_series(path, state_key=state_key, base=base)
    if len(members) == 1:
        return inspect_checkpoint(members[0].path, state_key, base, statistics, setup)
    if statistics or setup is not None:
        option = "--statistics" if statistics else "running a model"
        raise UsageError(f"{path}: {len(members)} checkpoints; {option} takes one, such as {members[-1].path}")
    return inspect_series(path, members, state_key, base)


def inspect_checkpoint(
    file: Path,
    state_key: str | None = None,
    base: Path | None = None,
    statistics: bool = False,
    setup: "Setup | None" = None,
) -> dict[str, Any]:
    """Return a description of a checkpoint, as `inspect --json` prints it.

    Args:
        file: Path of the checkpoint.
        state_key: Key of the weights in a pickled checkpoint.
        base: Checkpoint that a PEFT adapter was trained on.
        statistics: Whether to compute statistics of every tensor.
        setup: Model and data to run; None uses those that the checkpoint names.

    Raises:
        DataError: If the checkpoint is damaged.
    """
    from dataclasses import asdict

    from ckpt_probe.checkpoints import likely_heads, open_checkpoint, quantised

    with open_checkpoint(file, state_key=state_key, base=base) as checkpoint:
        metadata = {**asdict(checkpoint.metadata), "step": None, "epoch": None}
        foreign = {k: v for k, v in checkpoint.raw_metadata.items() if not k.startswith("ckpt_probe.")}
        return {
            "file": str(file),
            "kind": "checkpoint",
            "whole": True,
            "format": checkpoint.format,
            "files": [part.name for part in checkpoint.files],
            "bytes": checkpoint.size,
            **_of_a_run(checkpoint),
            "parameters": checkpoint.parameters(),
            "state_key": checkpoint.state_key,
            "other_state_dicts": list(checkpoint.others),
            "not_tensors": list(checkpoint.dropped),
            "config_directory": str(checkpoint.config_directory) if checkpoint.config_directory else None,
            "metadata": {**{k: v for k, v in metadata.items() if v not in (None, {}, [])}, **foreign},
            "trainer": checkpoint.facts,
            **_head(checkpoint, setup),
            "likely_heads": [asdict(head) for head in likely_heads(checkpoint.layout)],
            "quantised": quantised(checkpoint.layout),
            "tensors": list(_tensors(checkpoint, statistics)),
        }


def inspect_series(
    path: Path, members: "Sequence[Member]", state_key: str | None = None, base: Path | None = None
) -> dict[str, Any]:
    """Return a short description of each checkpoint of a directory, in order, and warnings about the series."""
    from ckpt_probe.checkpoints import RepeatedWeights, fingerprint, open_checkpoint
    from ckpt_probe.series import step_warnings

    repeated = RepeatedWeights(state_key, base)
    descriptions, repeats = [], []
    for member in members:
        with open_checkpoint(member.path, state_key=state_key, base=base) as checkpoint:
            descriptions.append(
                {
                    "checkpoint": member.name,
                    **_of_a_run(checkpoint),
                    "step": member.step,
                    "step_source": member.step_source,
                    "format": checkpoint.format,
                    "bytes": checkpoint.size,
                    "tensors": len(checkpoint),
                    "parameters": checkpoint.parameters(),
                    "same_weights": list(member.also),
                    "file": str(member.path),
                }
            )
            repeats += repeated.warnings(member, fingerprint(checkpoint))
    warnings = [*step_warnings(members), *repeats]
    return {"file": str(path), "kind": "series", "checkpoints": descriptions, "warnings": warnings}


def inspect_dump(file: Path) -> dict[str, Any]:
    """Return a description of a dump, as `inspect --json` prints it; raise DataError if it is damaged."""
    from dataclasses import asdict

    from ckpt_probe.dumps import open_dump

    with open_dump(file) as dump:
        tensors = []
        if dump.weights is not None:
            tensors.append({"name": "classifier/weights", "dtype": "float64", "shape": list(dump.weights.shape)})
        if dump.bias is not None:
            tensors.append({"name": "classifier/bias", "dtype": "float64", "shape": list(dump.bias.shape)})
        for split in dump.splits:
            for name, array in dump[split].arrays().items():
                tensors.append({"name": f"{split}/{name}", "dtype": str(array.dtype), "shape": list(array.shape)})
        return {
            "file": str(file),
            "kind": "dump" if dump.provenance else "dump without provenance",
            "whole": True,
            "bytes": dump.path.stat().st_size,
            "step": dump.step,
            "metadata": asdict(dump.provenance) if dump.provenance else {},
            "classifier": dump.provenance.classifier if dump.provenance else None,
            "class_names": None if dump.class_names is None else list(dump.class_names),
            "tensors": tensors,
        }


def _of_a_run(checkpoint: "Checkpoint") -> dict[str, Any]:
    from ckpt_probe.checkpoints import step_of

    step, source = step_of(checkpoint)
    return {"step": step, "step_source": source, "epoch": checkpoint.metadata.epoch}


def _tensors(checkpoint: "Checkpoint", statistics: bool) -> Iterator[dict[str, Any]]:
    if not statistics:
        for name in checkpoint.names:
            yield {"name": name, "dtype": checkpoint.dtype(name), "shape": list(checkpoint.shape(name))}
        return
    from dataclasses import asdict

    from ckpt_probe.checkpoints.statistics import statistics_of
    from ckpt_probe.cli.console import bars

    with bars() as progress, progress.task("statistics", len(checkpoint), "tensors") as bar:
        for name, values in statistics_of(checkpoint):
            bar.advance()
            description = {"name": name, "dtype": checkpoint.dtype(name), "shape": list(checkpoint.shape(name))}
            yield {**description, **(asdict(values) if values else {})}


def _head(checkpoint: "Checkpoint", setup: "Setup | None") -> dict[str, Any]:
    """Return the head of the model, identified by running it; an unknown head if no model is named."""
    if setup is None and checkpoint.metadata.model is None:
        return {"classifier": None}
    from ckpt_probe.errors import CkptProbeError
    from ckpt_probe.extraction import Setup, inspect_model

    try:
        head = inspect_model(checkpoint, setup or Setup(device="cpu"))
    except CkptProbeError as error:
        if setup is not None:
            raise
        return {"classifier": f"unknown: {str(error).removeprefix(f'{checkpoint.path}: ')}"}
    return {"classifier": head["layer"], "head": head}


def _print(facts: dict[str, Any], statistics: bool) -> None:
    click.echo(printable(f"{facts['file']}: a whole {facts['kind']}, {facts['bytes']:,} bytes"))
    for line in _lines(facts):
        click.echo(printable(flags_for_keywords(line)))
    columns = ["tensor", "dtype", "shape", *(STATISTICS if statistics else ())]
    rows = [
        [
            tensor["name"],
            tensor["dtype"],
            " × ".join(map(str, tensor["shape"])) or "scalar",
            *(_cell(tensor.get(name)) for name in (STATISTICS if statistics else ())),
        ]
        for tensor in facts["tensors"]
    ]
    _print_table(columns, rows)
    _print_verified(facts)


def _print_verified(facts: dict[str, Any]) -> None:
    if "verified" in facts:
        from ckpt_probe.cli.verification import verification_lines

        for line in verification_lines(facts["verified"]):
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

    cells = [columns, *([printable(cell) for cell in row] for row in rows)]
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
