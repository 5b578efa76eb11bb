"""`ckpt-probe extract`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.cli.flags import PATH, POSITIVE, WHOLE, explicit_options, require_used
from ckpt_probe.cli.options import (
    DTYPES,
    FORWARD_SETTINGS,
    flag,
    option,
    option_group,
    out_option,
    setting_group,
    subject_options,
    verb,
)
from ckpt_probe.cli.output import bars, say
from ckpt_probe.errors import CkptProbeError, UsageError

if TYPE_CHECKING:
    from ckpt_probe.progress import Progress

STORES = ("features", "moments", "both")


@verb("extract", "Example: ckpt-probe extract runs/digits -o dumps/digits")
@click.argument("checkpoints", type=PATH)
@subject_options
@option_group(
    "Output",
    option("--layers", "WHICH", "penultimate (default), all, every=K or names of layers.", str, "penultimate"),
    option("--store", "WHAT", "features (default), moments (smaller; no NC4) or both.", STORES, "features"),
    out_option("Directory for the dumps.", "DIR"),
    flag("--overwrite", "Replace existing dumps; otherwise complete ones are skipped."),
    "follow",
)
@setting_group(
    "--sampling",
    "Random choice of rows",
    option("max_rows", "N", "Store only N random rows of each split; moments use all.", POSITIVE),
    option("rows_seed", "N", "Seed for the rows of max_rows.", WHOLE, 0),
    option("subset_rows", "N", "Rows of each layer for errors, similarity.", click.IntRange(min=4), 2048),
    option("subset_seed", "N", "Seed for the rows of subset_rows.", WHOLE, 0),
)
@setting_group(
    "--set",
    "Less common settings",
    option("limit", "N", "Use only the first N samples of each split.", POSITIVE),
    option("dtype", "NAME", "Precision of the forward pass.", DTYPES, "float32"),
    FORWARD_SETTINGS,
    option("unlabelled", "BOOL", "Ignore labels of the data.", bool),
    option(
        "pooling",
        "HOW",
        "Rows of tokens: mean, cls, last, tokens, flatten.",
        ("mean", "cls", "last", "tokens", "flatten"),
    ),
    option("layer_store", "WHAT", "--store of further layers.", STORES, "moments"),
    option(
        "feature_dtype",
        "NAME",
        "Precision of stored features.",
        ("float32", "float64", "float16"),
        "float32",
    ),
    option("with_logits", "BOOL", "Store logits (or predictions).", bool, True),
    "memory rows_per_task every",
    option("until", "STEP", "With --follow: last training step to extract.", WHOLE),
)
def command(checkpoints: Path, out: Path, follow: bool, until: int | None, every: float, **options: Any) -> None:
    """Run every checkpoint on the data once, and store penultimate features and classifier weights.

    CHECKPOINTS is a run, a tree of runs, which is mirrored, or a file; each gives a dump, NAME.h5.
    """
    require_used(follow, "--follow", "until", "every")
    if follow:
        excluded = {"workers", "scheduler", "rows_per_task"} & explicit_options().keys()
        if excluded:
            spelling = min(explicit_options()[name] for name in excluded)
            raise UsageError(f"--follow extracts one checkpoint at a time: leave out {spelling}")
        options |= {"follow": True, "until": until, "every": every}
    from ckpt_probe.extraction import extract_series

    with bars() as progress:
        if not (follow or checkpoints.is_file()):
            _warn_of_faults(checkpoints, options["state_key"], options["base"], progress)
        summary = extract_series(checkpoints, out, progress=progress, **options)
    say(_summary(out, len(summary.written), len(summary.skipped)) + ("; stopped" if summary.stopped else ""))


def _warn_of_faults(checkpoints: Path, state_key: str | None, base: Path | None, progress: "Progress") -> None:
    """Show the verdict of the audit of a series if something is wrong; extraction itself reports bad files."""
    from ckpt_probe.remote import resolve

    try:
        checkpoints, base = resolve(checkpoints), resolve(base)
        if not checkpoints.is_dir():
            return
        from ckpt_probe.checkpoints import open_series
        from ckpt_probe.trajectories import audit_series

        members = open_series(checkpoints, state_key=state_key, base=base)
        audit = audit_series(members, state_key=state_key, base=base, progress=progress) if len(members) > 1 else None
    except CkptProbeError:
        return
    if audit is not None and audit.alarms:
        progress.message(audit.verdict)


def _summary(out: Path, written: int, skipped: int) -> str:
    return f"{out}: {written} {'dump' if written == 1 else 'dumps'} written, {skipped} already complete"
