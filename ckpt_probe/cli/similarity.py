"""`ckpt-probe similarity`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.cli.flags import PATH
from ckpt_probe.cli.options import flag, option, option_group, setting_group, verb
from ckpt_probe.cli.output import Output, Record, bars, takes_output
from ckpt_probe.errors import DataError, UsageError

if TYPE_CHECKING:
    from ckpt_probe.analysis import Similarity
    from ckpt_probe.progress import Progress


@verb("similarity", "Example: ckpt-probe similarity dumps/layers/step-000880.h5 --split test")
@click.argument("dumps", type=PATH, nargs=-1, required=True, metavar="DUMP [OTHER] | --function DUMPS...")
@option_group(
    "Comparison",
    "splits",
    flag("--function", "Add disagreement and divergence of predictions, between steps or between runs."),
)
@option_group(
    "Output",
    flag("--json", "Print JSON Lines, one matrix per line; an undefined value is null."),
    flag("--csv", "Print comma-separated values with a header, one value per line."),
    "wide out overwrite",
)
@setting_group(
    "--set",
    "Less common settings",
    option("--layer layers", "NAME", "Layer to compare; repeatable.", str, None, "all", multiple=True),
    option(
        "--measure measures",
        "cka|mir",
        "Measure of similarity to compute; repeatable.",
        ("cka", "mir"),
        None,
        "both; cka for a directory of several dumps",
        multiple=True,
    ),
)
@takes_output
def command(dumps: tuple[Path, ...], output: Output, function: bool, **chosen: tuple[str, ...]) -> None:
    """Compare layers by linear CKA and MIR on the rows that extract --layers stores of each.

    DUMP is one .h5 file: its layers are compared with each other. If it is a directory of several, each layer is
    compared between the checkpoints. With OTHER, a second dump of the same data (of any model), the layers of DUMP are
    compared with those of OTHER.

    With --function, the predictions of the same rows are compared too: those of the checkpoints of one directory of
    dumps, or those of several runs at their last checkpoints.
    """
    if len(dumps) > 2 and not function:
        raise UsageError("similarity compares the layers of one or two dumps; --function compares more runs")

    from ckpt_probe.reporting.matrix_tables import similarity_table, similarity_title, similarity_values

    def print_tables(matrices: Sequence[Record]) -> None:
        for matrix in matrices:
            click.echo(similarity_title(matrix))
            output.screen.print(similarity_table(matrix, output.table_width))

    with bars() as progress:
        options = {name: values or None for name, values in chosen.items()}
        matrices = (matrix.to_record() for matrix in _matrices(dumps, function, options, progress))
        printed = output.print(matrices, print_tables, similarity_values)
    output.write(printed, "matrices", similarity_values)


def _matrices(
    dumps: Sequence[Path], function: bool, options: Mapping[str, Any], progress: "Progress"
) -> "Iterator[Similarity]":
    from ckpt_probe.analysis import similarity

    if not function:
        yield from similarity(*dumps, progress=progress, **options)
        return
    from ckpt_probe.predictions import function_similarity

    if len(dumps) == 1:
        try:
            yield from similarity(*dumps, progress=progress, **options)
        except DataError as error:
            progress.message(f"no similarity of layers: {error}")
    yield from function_similarity(dumps, splits=options["splits"], progress=progress)
