"""`ckpt-probe analyze`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.cli.options import (
    byte_count,
    entropy_orders,
    explicit_options,
    range_option,
    source_options,
    worker_options,
)
from ckpt_probe.cli.output import file_format, require_writable
from ckpt_probe.errors import UsageError

DUMP_OPTIONS = frozenset(
    {
        *(
            "splits",
            "centred",
            "outside",
            "per_class",
            "spectra",
            "memory",
            "exact_limit",
            "tolerance",
            "budget",
            "seed",
        ),
        *("workers", "scheduler", "rows_per_task", "layers", "layer_metric"),
    }
)
CHECKPOINT_OPTIONS = frozenset({"classifier", "state_key", "base"})

if TYPE_CHECKING:
    from ckpt_probe.analysis import Settings
    from ckpt_probe.moments.record import DetailedRecord


def _list_metrics(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from ckpt_probe.reporting.metrics_list import metrics_list

        click.echo(metrics_list())
        context.exit()


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
@click.option("--only", metavar="FAMILY,…", help="Compute only these families of metrics, such as nc,class.")
@click.option(
    "--list-metrics",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_metrics,
    help="List the families and their metrics, with what each family costs, and exit.",
)
@click.option(
    "--centred",
    is_flag=True,
    help="Also compute MIR, HDR and effective rank of the centred features, and its change since the first checkpoint.",
)
@click.option(
    "--outside",
    type=click.Path(path_type=Path),
    metavar="DUMPS",
    help="Also compute NC5 against these dumps of the same checkpoints on data of other classes.",
)
@click.option("--alpha", "orders", metavar="A,…", help="Also compute Rényi entropies of these orders, such as 0.5,2.")
@click.option(
    "--layers/--no-layers",
    default=True,
    show_default=True,
    help="Print one row per layer if dumps have several; --no-layers keeps only the penultimate layer.",
)
@click.option(
    "--layer-metric", metavar="METRIC", help="Print a table of this metric instead: layers in rows, steps in columns."
)
@click.option("--per-class", is_flag=True, help="Print one row per class: samples, mean, variance, entropy, confusion.")
@click.option(
    "--weights-only",
    is_flag=True,
    help="Read DUMPS as checkpoints: compute metrics of the classifier weights, without model or data.",
)
@click.option("--classifier", metavar="NAME", help="With --weights-only: name of the layer or tensor of the weights.")
@source_options
@click.option(
    "--spectra",
    type=click.Path(path_type=Path),
    metavar="NPZ",
    help="Write the eigenvalues of all Gram matrices here.",
)
@click.option(
    "--min-samples",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Leave classes with fewer samples out of metrics that use class means.",
)
@click.option(
    "--precision",
    type=click.Choice(["float64", "float32"]),
    default="float64",
    show_default=True,
    help="float32 multiplies rows in single precision: about half the time, for about six correct digits.",
)
@click.option(
    "--memory", default="2GiB", show_default=True, help="Memory limit for the moments and matrices of one dump."
)
@click.option(
    "--tolerance",
    type=float,
    default=1e-3,
    show_default=True,
    help="Relative standard error of MIR at which sampling stops, if an exact result does not fit in memory.",
)
@click.option(
    "--exact-limit",
    type=click.IntRange(min=1),
    show_default="12000, or what --memory allows",
    help="Side of the largest joint matrix that is solved exactly; larger ones are sampled.",
)
@click.option("--budget", type=float, metavar="SECONDS", help="Stop sampling after this time, even above --tolerance.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the sampling.")
@worker_options
@range_option("Let several workers share a split of more rows than this, each with ranges of N rows.")
@click.option("--no-cache", is_flag=True, help="Do not read or write the cache beside the dumps.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Also write the records to this file: CSV or Parquet by its suffix, else JSON Lines.",
)
@click.option("--overwrite", is_flag=True, help="Replace output files that exist.")
def command(
    dumps: Path,
    splits: tuple[str, ...],
    json: bool,
    csv: bool,
    parquet: bool,
    wide: bool,
    only: str | None,
    orders: str | None,
    layer_metric: str | None,
    spectra: Path | None,
    memory: str,
    workers: int,
    scheduler: str | None,
    rows_per_task: int | None,
    no_cache: bool,
    out: Path | None,
    overwrite: bool,
    weights_only: bool,
    classifier: str | None,
    state_key: str | None,
    base: Path | None,
    **options: float | bool | str,
) -> None:
    """Compute matrix entropy, MIR, HDR, neural collapse, accuracy and loss from dumps.

    DUMPS is one .h5 file that extract wrote, or a directory of them; files of other programs with the documented names
    work too. Prints one row per checkpoint and split, in the order of the training steps, and the values at neural
    collapse. Results are cached in a hidden folder beside the dumps, and recomputed only for dumps that have changed.

    With --weights-only DUMPS are checkpoints instead, in any format that inspect opens: one row per checkpoint, with
    the metrics of the classifier weights. Neither model nor data is needed.
    """
    if json + csv + parquet > 1:
        raise UsageError("--json, --csv and --parquet exclude each other")
    form = _record_format(out, spectra, csv=csv, parquet=parquet, overwrite=overwrite)
    chosen, size = entropy_orders(orders), byte_count(memory)
    _require_used(weights_only)
    _require_grid(layer_metric, json=json, **options)

    from ckpt_probe.analysis import Settings, read_series
    from ckpt_probe.analysis.weights import weights
    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.cli.output import print_grids, print_records, write_records, write_spectra
    from ckpt_probe.scheduling import Workers

    families = None if only is None else tuple(name.strip() for name in only.split(","))
    settings = Settings(
        orders=chosen,
        memory=size,
        spectra=spectra is not None,
        only=families,
        **options,  # pyright: ignore[reportArgumentType]
    )
    settings.check()
    readings: list[DetailedRecord] = []
    with bars() as progress:
        common = {"cache": not no_cache, "progress": progress}
        if weights_only:
            rows = weights(dumps, classifier=classifier, orders=chosen, state_key=state_key, base=base, **common)
        else:
            results = read_series(
                dumps,
                settings,
                splits=splits or None,
                workers=Workers(workers, scheduler),
                rows_per_task=rows_per_task,
                **common,
            )
            rows = _rows(results, readings, settings)
        if layer_metric is None:
            records = print_records(rows, json=json, csv=csv, wide=wide)
        else:
            records = print_grids(rows, layer_metric, csv=csv, wide=wide)
    if out is not None:
        write_records(records, out, form, overwrite=overwrite)
        say(f"{out}: {len(records)} records")
    if spectra is not None:
        say(f"{spectra}: {write_spectra(readings, spectra, overwrite=overwrite)} arrays of eigenvalues")


def _record_format(out: Path | None, spectra: Path | None, *, csv: bool, parquet: bool, overwrite: bool) -> str:
    """Return the format of the file of records: "json", "csv" or "parquet".

    Raises:
        UsageError: If an output file exists, or the records cannot be written in that format.
    """
    from ckpt_probe.files import refuse_existing

    if parquet and out is None:
        raise UsageError("--parquet: Parquet is not for the terminal; name its file with --out")
    form = file_format(out, csv=csv, parquet=parquet)
    if out is not None:
        require_writable(out, form, overwrite=overwrite)
    if spectra is not None:
        refuse_existing(spectra, overwrite=overwrite)
    return form


def _require_used(weights_only: bool) -> None:
    """Raise UsageError if an option has no effect with --weights-only, or without it."""
    unused = DUMP_OPTIONS if weights_only else CHECKPOINT_OPTIONS
    spellings = [spelling for name, spelling in explicit_options().items() if name in unused]
    if spellings and weights_only:
        raise UsageError(f"--weights-only reads checkpoints, not dumps; it does not take {', '.join(spellings)}")
    if spellings:
        raise UsageError(f"{', '.join(spellings)}: only for checkpoints; add --weights-only")


def _require_grid(metric: str | None, *, json: bool, layers: object, per_class: object, **_others: object) -> None:
    """Raise UsageError if an option contradicts --layer-metric."""
    values = {"--json": json, "--no-layers": not layers, "--per-class": per_class}
    contradicting = [option for option, is_set in values.items() if is_set]
    if metric is not None and contradicting:
        raise UsageError(
            f"--layer-metric {metric} prints a table of layers and steps; it does not take {', '.join(contradicting)}"
        )


def _rows(
    results: "Iterable[DetailedRecord]", collected: "list[DetailedRecord]", settings: "Settings"
) -> "Iterator[dict[str, Any]]":
    """Yield the records to print, and append readings with spectra to `collected`."""
    for reading in results:
        if settings.spectra:
            collected.append(reading)
        yield from reading.per_class if settings.per_class else [reading.record]
