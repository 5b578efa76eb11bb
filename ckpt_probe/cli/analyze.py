"""`ckpt-probe analyze`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.cli.options import (
    byte_count,
    entropy_orders,
    given_options,
    range_option,
    source_options,
    worker_options,
)
from ckpt_probe.cli.output import file_format, require_writable
from ckpt_probe.errors import UsageError

OF_DUMPS = frozenset(
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
OF_CHECKPOINTS = frozenset({"classifier", "state_key", "base"})

if TYPE_CHECKING:
    from ckpt_probe.analysis import Settings
    from ckpt_probe.moments.record import DetailedRecord


def _list_metrics(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from ckpt_probe.report.metrics_list import metrics_list

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
    help="One row per layer, where dumps have several; --no-layers keeps the penultimate one only.",
)
@click.option(
    "--layer-metric", metavar="METRIC", help="Print a table of this metric instead: layers in rows, steps in columns."
)
@click.option("--per-class", is_flag=True, help="One row per class: samples, mean, variance, entropy, confusion.")
@click.option(
    "--weights-only",
    is_flag=True,
    help="DUMPS are checkpoints: compute what the classifier weights alone tell, without model or data.",
)
@click.option("--classifier", metavar="NAME", help="With --weights-only: the layer, or the tensor, of the weights.")
@source_options
@click.option(
    "--spectra", type=click.Path(path_type=Path), metavar="NPZ", help="Write the eigenvalues of every Gram matrix here."
)
@click.option(
    "--min-samples",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Leave classes of fewer samples out of what is computed from class means.",
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
    help="Relative standard error of MIR at which sampling stops, where an exact result does not fit in memory.",
)
@click.option(
    "--exact-limit",
    type=click.IntRange(min=1),
    show_default="12000, or what --memory allows",
    help="Largest side of a joint matrix that is solved exactly; a larger one is sampled.",
)
@click.option("--budget", type=float, metavar="SECONDS", help="Stop sampling after this time, even above --tolerance.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the sampling.")
@worker_options
@range_option("Let several workers share a split of more rows than this, each with ranges of N rows.")
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
    what the classifier weights alone tell. Neither model nor data is needed.
    """
    if json + csv + parquet > 1:
        raise UsageError("--json, --csv and --parquet exclude each other")
    form = _written_form(out, spectra, csv=csv, parquet=parquet, overwrite=overwrite)
    chosen, size = entropy_orders(orders), byte_count(memory)
    _require_used(weights_only)
    _require_grid(layer_metric, json=json, **options)

    from ckpt_probe.analysis import Heads, Settings, read_series, read_weights
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
        how = {"cache": not no_cache, "progress": progress}
        if weights_only:
            found = read_weights(dumps, Heads(classifier, state_key, base), settings, **how)
        else:
            who = {"workers": Workers(workers, scheduler), "rows_per_task": rows_per_task}
            found = read_series(dumps, settings, splits=splits or None, **who, **how)
        rows = _rows(found, readings, settings)
        if layer_metric is None:
            shown = print_records(rows, json=json, csv=csv, wide=wide)
        else:
            shown = print_grids(rows, layer_metric, csv=csv, wide=wide)
    if out is not None:
        write_records(shown, out, form, overwrite=overwrite)
        say(f"{out}: {len(shown)} records")
    if spectra is not None:
        say(f"{spectra}: {write_spectra(readings, spectra, overwrite=overwrite)} arrays of eigenvalues")


def _written_form(out: Path | None, spectra: Path | None, *, csv: bool, parquet: bool, overwrite: bool) -> str:
    """The format of the file of records. Raises UsageError where it, or that of spectra, cannot be written so."""
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
    """Raise UsageError for options that would do nothing beside --weights-only, or without it."""
    given = given_options()
    idle = [told for name, told in given.items() if name in (OF_DUMPS if weights_only else OF_CHECKPOINTS)]
    if idle:
        told = "reads checkpoints, not dumps; it takes no" if weights_only else "goes with it alone:"
        raise UsageError(f"--weights-only {told} {', '.join(idle)}")


def _require_grid(metric: str | None, *, json: bool, layers: object, per_class: object, **_others: object) -> None:
    """Raise UsageError for options that contradict --layer-metric."""
    wrong = {"--json": json, "--no-layers": not layers, "--per-class": per_class}
    found = [option for option, given in wrong.items() if metric is not None and given]
    if found:
        raise UsageError(f"--layer-metric {metric}: a table of layers and steps; it takes no {', '.join(found)}")


def _rows(
    found: "Iterable[DetailedRecord]", kept: "list[DetailedRecord]", settings: "Settings"
) -> "Iterator[dict[str, Any]]":
    for reading in found:
        if settings.spectra:
            kept.append(reading)
        yield from reading.per_class if settings.per_class else [reading.record]
