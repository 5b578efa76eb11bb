"""`ckpt-probe analyze`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.cli.options import byte_count, entropy_orders
from ckpt_probe.cli.output import file_format, require_writable

if TYPE_CHECKING:
    from ckpt_probe.analysis import Settings
    from ckpt_probe.moments.record import Reading


def _list_metrics(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from ckpt_probe.report.metrics_list import metrics_list

        click.echo(metrics_list())
        context.exit()


@click.command("analyze", epilog="Example: ckpt-probe analyze dumps/digits --split test --json > records.jsonl")
@click.argument("dumps", type=click.Path(path_type=Path))
@click.option("--split", "splits", multiple=True, help="A split to analyze, all where none is named; may be repeated.")
@click.option("--json", is_flag=True, help="One record a line (JSON Lines); a missing value is null.")
@click.option("--csv", is_flag=True, help="Comma-separated values with a header.")
@click.option("--parquet", is_flag=True, help="The file of --out is Parquet, as one that is called .parquet is anyway.")
@click.option("--wide", is_flag=True, help="Every column, however wide the terminal is.")
@click.option("--only", metavar="FAMILY,…", help="Compute only these families of metrics, such as nc,class.")
@click.option(
    "--list-metrics",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_metrics,
    help="List the families and their metrics, with what each family costs, and exit.",
)
@click.option("--centred", is_flag=True, help="Also MIR and HDR of features less their mean (one more pass).")
@click.option("--alpha", "orders", metavar="A,…", help="Also Rényi entropies of these orders, such as 0.5,2.")
@click.option("--per-class", is_flag=True, help="One row a class: its samples, mean, variance, entropy, confusion.")
@click.option("--spectra", type=click.Path(path_type=Path), metavar="NPZ", help="Write every Gram's eigenvalues here.")
@click.option(
    "--min-samples",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="A class of fewer samples is left out of what is read from class means.",
)
@click.option(
    "--precision",
    type=click.Choice(["float64", "float32"]),
    default="float64",
    show_default=True,
    help="float32 multiplies rows in single precision: about half the time, for about six correct digits.",
)
@click.option("--memory", default="2GiB", show_default=True, help="What moments and matrices of one dump may take.")
@click.option(
    "--tolerance",
    type=float,
    default=1e-3,
    show_default=True,
    help="Relative standard error of MIR at which sampling stops, where no exact route fits.",
)
@click.option("--budget", type=float, metavar="SECONDS", help="Stop sampling after this time even above the tolerance.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the sampling.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Dumps at a time.")
@click.option("--no-cache", is_flag=True, help="Compute every dump anew, and keep nothing beside them.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Write the records to this file too: CSV or Parquet by its suffix, else JSON Lines.",
)
@click.option("--overwrite", is_flag=True, help="Replace the files where they exist.")
def command(
    dumps: Path,
    splits: tuple[str, ...],
    json: bool,
    csv: bool,
    parquet: bool,
    wide: bool,
    only: str | None,
    orders: str | None,
    spectra: Path | None,
    memory: str,
    workers: int,
    no_cache: bool,
    out: Path | None,
    overwrite: bool,
    **options: float | bool | str,
) -> None:
    """Read matrix entropy, MIR, HDR, neural collapse, accuracy and loss from dumps.

    DUMPS is one .h5 file or a directory of them; one row for each checkpoint and split, in the order of the steps,
    measured beside the value at neural collapse. Dumps that others wrote with the documented names do as well. What
    was computed once is kept in a hidden folder beside the dumps, and computed anew only where a dump has changed.
    """
    from ckpt_probe.errors import UsageError
    from ckpt_probe.files import refuse_existing

    if json + csv + parquet > 1:
        raise UsageError("--json, --csv and --parquet exclude each other")
    if parquet and out is None:
        raise UsageError("--parquet: Parquet is not for the terminal; name its file with --out")
    form = file_format(out, csv=csv, parquet=parquet)
    if out is not None:
        require_writable(out, form, overwrite=overwrite)
    if spectra is not None:
        refuse_existing(spectra, overwrite=overwrite)
    chosen, size = entropy_orders(orders), byte_count(memory)

    from ckpt_probe.analysis import Settings, read_series
    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.cli.output import print_records, write_records, write_spectra

    families = None if only is None else tuple(name.strip() for name in only.split(","))
    settings = Settings(
        orders=chosen,
        memory=size,
        spectra=spectra is not None,
        only=families,
        **options,  # pyright: ignore[reportArgumentType]
    )
    settings.check()
    readings: list[Reading] = []
    with bars() as progress:
        found = read_series(
            dumps, settings, splits=splits or None, workers=workers, cache=not no_cache, progress=progress
        )
        shown = print_records(_rows(found, readings, settings), json=json, csv=csv, wide=wide)
    if out is not None:
        write_records(shown, out, form, overwrite=overwrite)
        say(f"{out}: {len(shown)} records")
    if spectra is not None:
        say(f"{spectra}: {write_spectra(readings, spectra, overwrite=overwrite)} arrays of eigenvalues")


def _rows(found: "Iterable[Reading]", kept: "list[Reading]", settings: "Settings") -> "Iterator[dict[str, Any]]":
    for reading in found:
        if settings.spectra:
            kept.append(reading)
        yield from reading.per_class if settings.per_class else [reading.record]
