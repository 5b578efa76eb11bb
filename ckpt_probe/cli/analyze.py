"""`ckpt-probe analyze`."""

from pathlib import Path

import click


@click.command("analyze", epilog="Example: ckpt-probe analyze dumps/digits --split test --json > records.jsonl")
@click.argument("dumps", type=click.Path(path_type=Path))
@click.option("--split", "splits", multiple=True, help="A split to analyze, all where none is named; may be repeated.")
@click.option("--json", is_flag=True, help="One record a line (JSON Lines); a missing value is null.")
@click.option("--csv", is_flag=True, help="Comma-separated values with a header.")
@click.option("--wide", is_flag=True, help="Every column, however wide the terminal is.")
@click.option("--centred", is_flag=True, help="Also MIR and HDR of features less their mean (one more pass).")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the records to this file, beside the table.")
@click.option("--overwrite", is_flag=True, help="Replace the file where it exists.")
def command(
    dumps: Path,
    splits: tuple[str, ...],
    json: bool,
    csv: bool,
    wide: bool,
    centred: bool,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Read matrix entropy, MIR, HDR, neural collapse, accuracy and loss from dumps.

    DUMPS is one .h5 file or a directory of them; one row for each checkpoint and split, in the order of the steps,
    measured beside the value at neural collapse. Dumps that others wrote with the documented names do as well.
    """
    from ckpt_probe.errors import UsageError
    from ckpt_probe.files import refuse_existing

    if json and csv:
        raise UsageError("--json and --csv exclude each other")
    if out is not None:
        refuse_existing(out, overwrite=overwrite)

    from ckpt_probe.analysis import analyze_series
    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.cli.output import print_records, write_records

    with bars() as progress:
        records = analyze_series(dumps, splits=splits or None, centred=centred, progress=progress)
        shown = print_records(records, json=json, csv=csv, wide=wide)
    if out is not None:
        write_records(shown, out, csv=csv or out.suffix == ".csv", overwrite=overwrite)
        say(f"{out}: {len(shown)} records")
