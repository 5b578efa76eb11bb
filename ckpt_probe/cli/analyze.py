"""`ckpt-probe analyze`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.cli.flags import PATH, POSITIVE, WHOLE, flags_for_keywords, require_used
from ckpt_probe.cli.options import flag, option, option_group, setting_group, verb
from ckpt_probe.cli.output import Output, bars, say, takes_output
from ckpt_probe.keywords import from_arguments

if TYPE_CHECKING:
    from ckpt_probe.analysis import Settings
    from ckpt_probe.moments.record import DetailedRecord


def _list_metrics(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from ckpt_probe.reporting.table import metrics_list

        click.echo(flags_for_keywords(metrics_list(), context.command))
        context.exit()


@verb("analyze", "Example: ckpt-probe analyze dumps/digits --split test --json > r.jsonl")
@click.argument("dumps", nargs=-1, required=True, metavar="DUMPS...")
@option_group(
    "Metrics",
    "splits",
    option("--only", "FAMILY,…", "Only these families of metrics, such as nc,class."),
    click.Option(
        ["--list-metrics"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_list_metrics,
        help="List families, their cost and metrics, and exit.",
    ),
    flag("--errors", "Also compute standard errors, and bias from few rows."),
    flag("--per-class", "One row per class: size, mean, variance, confusion."),
    "workers",
)
@option_group(
    "Output",
    "json csv wide out",
    flag("--overwrite", "Replace output files that exist."),
)
@setting_group(
    "--sampling",
    "Sampling where no exact result fits in memory",
    option("tolerance", "E", "Relative standard error to stop at.", float, 1e-3),
    option("budget", "SECONDS", "Stop after this time, even above the tolerance.", float),
    option("seed", "N", "Seed of the sampling.", WHOLE, 0),
    option(
        "exact_limit",
        "N",
        "Side of the largest matrix solved exactly.",
        POSITIVE,
        None,
        "automatic",
    ),
)
@setting_group(
    "--set",
    "Less common settings",
    option("corrected", "BOOL", "Print values less the bias of errors=true.", bool),
    option("centred", "BOOL", "Also compute MIR, HDR and rank of centred features.", bool),
    "orders",
    option("reference", "DUMP", "Dump of random weights, for the rank of documents.", PATH),
    option("spectra", "NPZ", "Also write the eigenvalues of all Gram matrices here.", PATH),
    option("outside", "DUMPS", "Dumps of the same checkpoints on other classes (NC5).", PATH),
    option("layers", "BOOL", "One row per layer, or the penultimate only.", bool, True),
    option("layer_metric", "NAME", "Print this metric as a table, layers by steps."),
    option("min_samples", "N", "Leave smaller classes out of class means.", POSITIVE, 1),
    option(
        "precision",
        "NAME",
        "float64 (default), or float32: faster, six digits.",
        ("float64", "float32"),
        "float64",
    ),
    "memory rows_per_task cache",
)
@takes_output
def command(
    dumps: tuple[str, ...], output: Output, layer_metric: str | None, spectra: Path | None, **options: Any
) -> None:
    """Compute matrix entropy, MIR, HDR, neural collapse, accuracy and loss from dumps.

    DUMPS is a .h5 file that extract wrote, or a directory of them: a run; a directory with one run per seed, or one
    of such groups; several of these, or NAME='GLOB', whose matches are the runs of a group. Prints one row per
    checkpoint and split, in the order of the training steps, and the values at neural collapse.
    """
    from ckpt_probe.analysis import Settings
    from ckpt_probe.analysis.series import read_runs
    from ckpt_probe.files import refuse_existing
    from ckpt_probe.scheduling import Workers

    if spectra is not None:
        refuse_existing(spectra, overwrite=output.overwrite)
    without_layers = () if options["layers"] else ("layers",)
    needed = "records: --layer-metric prints a table of layers and steps"
    require_used(layer_metric is None, needed, "json", "per_class", *without_layers)
    corrected = options["corrected"]
    options |= {"orders": options["orders"] or (), "errors": options["errors"] or corrected}
    settings = from_arguments(Settings, options | {"spectra": spectra is not None})
    readings: list[DetailedRecord] = []
    with bars() as progress:
        results = read_runs(
            dumps,
            settings,
            splits=options["splits"] or None,
            workers=Workers(options["workers"], options["scheduler"]),
            rows_per_task=options["rows_per_task"],
            cache=options["cache"],
            progress=progress,
        )
        rows = _rows(results, readings, settings)
        if layer_metric is None:
            records = output.print(rows, lambda rows: output.print_table(_less_bias(rows, corrected)))
        else:
            records = list(rows)
            _print_grids(_less_bias(records, corrected), layer_metric, output)
    output.write(records)
    if spectra is not None:
        say(f"{spectra}: {write_spectra(readings, spectra, overwrite=output.overwrite)} arrays of eigenvalues")


def _less_bias(records: list[Any], corrects: bool) -> list[Any]:
    """Return records with values less their bias if `corrects` is set; JSON and CSV have the bias as a column."""
    from ckpt_probe.analysis.entries import corrected

    return [corrected(record) for record in records] if corrects else records


def _print_grids(records: list[Any], metric: str, output: Output) -> None:
    """Print one metric by layer and step, as tables or CSV."""
    from ckpt_probe.reporting.formats import to_csv
    from ckpt_probe.reporting.matrix_tables import grid_records, grid_table, grids_of

    grids = grids_of(records, metric)
    if output.csv:
        click.echo(to_csv(grid_records(grids)), nl=False)
        return
    for grid in grids:
        click.echo(f"{grid.split}: {grid.metric}")
        output.screen.print(grid_table(grid, output.table_width))


def _rows(
    results: "Iterable[DetailedRecord]", collected: "list[DetailedRecord]", settings: "Settings"
) -> "Iterator[dict[str, Any]]":
    """Yield the records to print, and append readings with spectra to `collected`."""
    for reading in results:
        if settings.spectra:
            collected.append(reading)
        yield from reading.per_class if settings.per_class else [reading.record]


def write_spectra(readings: "Iterable[DetailedRecord]", path: Path, *, overwrite: bool) -> int:
    """Write the eigenvalues of every Gram matrix into an .npz file.

    Arrays are named CHECKPOINT/SPLIT/LEVEL.NAME, those of layers other than the penultimate
    CHECKPOINT/SPLIT/LAYER/LEVEL.NAME; with group and seed before them if the readings have these.

    Returns:
        The number of arrays.
    """
    import numpy as np

    from ckpt_probe.errors import in_utf8
    from ckpt_probe.files import replacing

    arrays = {
        in_utf8(f"{_array_prefix(reading.record)}/{name}"): values
        for reading in readings
        for name, values in reading.spectra.items()
    }
    with replacing(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    return len(arrays)


def _array_prefix(record: dict[str, Any]) -> str:
    from ckpt_probe.analysis.entries import GROUP_AND_SEED
    from ckpt_probe.dumps import PENULTIMATE

    layer = record.get("layer", PENULTIMATE)
    labels = [str(record[name]) for name in GROUP_AND_SEED if name in record]
    of_layer = [] if layer == PENULTIMATE else [str(layer)]
    return "/".join([*labels, str(record["checkpoint"]), str(record["split"]), *of_layer])
