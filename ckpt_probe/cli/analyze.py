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


@click.command("analyze", epilog="Example: ckpt-probe analyze dumps/digits --split test --json > records.jsonl")
@click.argument("dumps", type=click.Path(path_type=Path))
@click.option("--split", "splits", multiple=True, show_default="all", help="Split to analyze; repeatable.")
@click.option("--json", is_flag=True, help="Print JSON Lines, one record per line; a missing value is null.")
@click.option("--csv", is_flag=True, help="Print comma-separated values with a header.")
@click.option(
    "--parquet",
    is_flag=True,
    help="Write --out as Parquet whatever its suffix; a name that ends in .parquet implies it.",
)
@click.option("--wide", is_flag=True, help="Show every column, however wide the terminal is.")
@click.option("--centred", is_flag=True, help="Also compute MIR and HDR of the centred features (one more pass).")
@click.option("--alpha", "orders", metavar="A,…", help="Also compute Rényi entropies of these orders, such as 0.5,2.")
@click.option("--per-class", is_flag=True, help="One row per class: samples, mean, variance, entropy, confusion.")
@click.option(
    "--spectra", type=click.Path(path_type=Path), metavar="NPZ", help="Write the eigenvalues of every Gram matrix here."
)
@click.option(
    "--memory", default="2GiB", show_default=True, help="Memory limit for the moments and matrices of one dump."
)
@click.option(
    "--tolerance",
    type=float,
    default=1e-3,
    show_default=True,
    help="Relative standard error of MIR at which sampling stops, where an exact result does not fit in memory.",
)
@click.option("--budget", type=float, metavar="SECONDS", help="Stop sampling after this time, even above --tolerance.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the sampling.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Number of dumps to analyze at a time."
)
@click.option("--no-cache", is_flag=True, help="Neither read nor write the cache beside the dumps.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Also write the records to this file: CSV or Parquet by its suffix, else JSON Lines.",
)
@click.option("--overwrite", is_flag=True, help="Replace the files if they exist.")
def command(
    dumps: Path,
    splits: tuple[str, ...],
    json: bool,
    csv: bool,
    parquet: bool,
    wide: bool,
    orders: str | None,
    spectra: Path | None,
    memory: str,
    workers: int,
    no_cache: bool,
    out: Path | None,
    overwrite: bool,
    **options: float | bool,
) -> None:
    """Compute matrix entropy, MIR, HDR, neural collapse, accuracy and loss from dumps.

    DUMPS is one .h5 file that extract wrote, or a directory of them; files of other programs with the documented names
    work too. Prints one row per checkpoint and split, in the order of the training steps, and the values at neural
    collapse. Results are cached in a hidden folder beside the dumps, and recomputed only for dumps that have changed.
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

    settings = Settings(orders=chosen, memory=size, spectra=spectra is not None, **options)  # pyright: ignore[reportArgumentType]
    _ = settings.sampling
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
