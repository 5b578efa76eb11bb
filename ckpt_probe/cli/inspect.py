"""`ckpt-probe inspect`."""

from pathlib import Path
from typing import Any

import click

DUMP_SUFFIXES = frozenset({".h5", ".hdf5"})


@click.command("inspect", epilog="Example: ckpt-probe inspect runs/digits/checkpoints/step-000000.safetensors")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", is_flag=True, help="Everything as one JSON object.")
def command(file: Path, json: bool) -> None:
    """Say what FILE, a checkpoint or a dump, holds: tensors, metadata, the classifier, and whether it is whole."""
    from json import dumps

    facts = inspect_dump(file) if file.suffix in DUMP_SUFFIXES else inspect_checkpoint(file)
    if json:
        click.echo(dumps(facts, ensure_ascii=False, allow_nan=False))
        return
    _print(facts)


def inspect_checkpoint(file: Path) -> dict[str, Any]:
    """Facts about a safetensors file, whole or an error."""
    from dataclasses import asdict

    from ckpt_probe.checkpoints import open_checkpoint

    with open_checkpoint(file) as checkpoint:
        tensors = [
            {"name": name, "dtype": checkpoint.dtype(name), "shape": list(checkpoint.shape(name))}
            for name in checkpoint.names
        ]
        foreign = {k: v for k, v in checkpoint.raw_metadata.items() if not k.startswith("ckpt_probe.")}
        return {
            "file": str(file),
            "kind": "checkpoint",
            "whole": True,
            "bytes": checkpoint.size,
            "parameters": checkpoint.parameters(),
            "metadata": {
                **{k: v for k, v in asdict(checkpoint.metadata).items() if v not in (None, {}, [])},
                **foreign,
            },
            "classifier": _classifier(file),
            "tensors": tensors,
        }


def inspect_dump(file: Path) -> dict[str, Any]:
    """Facts about a dump, whole or an error."""
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
            "bytes": file.stat().st_size,
            "step": dump.step,
            "metadata": asdict(dump.provenance) if dump.provenance else {},
            "classifier": dump.provenance.classifier if dump.provenance else None,
            "tensors": tensors,
        }


def _classifier(file: Path) -> str:
    from ckpt_probe.errors import CkptProbeError
    from ckpt_probe.extraction import Setup, open_subject

    try:
        return open_subject(file, Setup(device="cpu")).classifier
    except CkptProbeError as error:
        return f"unknown: {str(error).removeprefix(f'{file}: ')}"


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table

    from ckpt_probe.cli.console import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("tensor", "dtype", "shape"):
        table.add_column(column, no_wrap=True)
    for tensor in facts["tensors"]:
        table.add_row(tensor["name"], tensor["dtype"], " × ".join(map(str, tensor["shape"])) or "scalar")
    click.echo(f"{facts['file']}: a whole {facts['kind']}, {facts['bytes']:,} bytes")
    for name in ("step", "parameters", "classifier"):
        if facts.get(name) is not None:
            value = facts[name]
            click.echo(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}")
    for name, value in facts["metadata"].items():
        click.echo(f"  {name}: {value}")
    console(width=max(120, max((len(t["name"]) for t in facts["tensors"]), default=0) + 60)).print(table)
