"""`ckpt-probe demo`: train, extract, analyze and interpolate on packaged data, in under two minutes on a CPU."""

import shlex
import time
from pathlib import Path

import click

from ckpt_probe.cli.flags import DIRECTORY
from ckpt_probe.cli.options import flag, option, option_group, verb
from ckpt_probe.cli.output import bars, console, say

BRANCH_STEP = 20
DEVICE = "cpu"
PAGE = "report.html"
TITLE = "Two small networks on handwritten digits"


@verb("demo", "Example: ckpt-probe demo")
@option_group(
    "Output",
    option(
        "-o --out",
        "DIR",
        "Directory for the files of the demo.",
        DIRECTORY,
        Path("ckpt-probe-demo"),
    ),
    flag("--overwrite", "Replace the files of an earlier demo."),
)
def command(out: Path, overwrite: bool) -> None:
    """Train, extract, analyze and interpolate on packaged data, and explain the results in words.

    Trains two small networks on handwritten digits that share their first steps and then separate. All files stay in
    the output directory; the last lines name a page that shows them, and commands to continue with.
    """
    from ckpt_probe.files import refuse_existing

    refuse_existing(out, overwrite=overwrite, directory=True)
    started = time.perf_counter()
    _write_configs(out)
    _train(out)
    records = _extract_and_analyze(out)
    barriers = _interpolate(out)
    _explain(records, barriers)
    _report(out)
    _next_commands(out, time.perf_counter() - started)


def _write_configs(out: Path) -> None:
    from ckpt_probe.files import write_text

    trunk = out / "runs" / "a" / "checkpoints" / f"step-{BRANCH_STEP:06d}.safetensors"
    for run in ("a", "b"):
        text = Path(__file__).with_name(f"demo_{run}.toml").read_text(encoding="utf-8")
        write_text(out / f"{run}.toml", text.replace("{trunk}", trunk.as_posix()), overwrite=True)


def _train(out: Path) -> None:
    from ckpt_probe.config import load_config
    from ckpt_probe.training import train

    for run in ("a", "b"):
        say(f"Training run {run.upper()}: {out / f'{run}.toml'} → {out / 'runs' / run}")
        with bars() as progress:
            config = load_config(out / f"{run}.toml")
            train(config, out / "runs" / run, overwrite=True, device=DEVICE, progress=progress)


def _extract_and_analyze(out: Path) -> list[dict]:
    from ckpt_probe.analysis import read_series
    from ckpt_probe.extraction import extract_series
    from ckpt_probe.reporting.material import Material
    from ckpt_probe.reporting.table import records_table

    say(f"Extracting features and classifier weights of run A → {out / 'dumps' / 'a'}")
    with bars() as progress:
        extract_series(out / "runs" / "a", out / "dumps" / "a", overwrite=True, device=DEVICE, progress=progress)
    say("Analyzing: matrix entropy, MIR, HDR, neural collapse")
    # The settings of the page, so that it finds every result in the cache; without progress, which would report that.
    records = [dict(each.record) for each in read_series(out / "dumps" / "a", Material().settings, cache=True)]
    screen = console()
    screen.print(records_table(records, width=screen.width))
    return records


def _interpolate(out: Path) -> list[dict]:
    from ckpt_probe.paths import evaluate_path

    ends = [sorted((out / "runs" / run / "checkpoints").glob("*.safetensors"))[-1] for run in ("a", "b")]
    say(f"Evaluating the straight line between the final checkpoints of A and B → {out / 'paths' / 'ab'}")
    with bars() as progress:
        result = evaluate_path(
            ends[0], ends[1], out / "paths" / "ab", points=11, overwrite=True, device=DEVICE, progress=progress
        )
    return result.summary


def _explain(records: list[dict], barriers: list[dict]) -> None:
    from ckpt_probe.findings.findings import main_findings, read_findings
    from ckpt_probe.reporting.wording import read_path, read_supported

    sentences = [*read_path(barriers), *read_supported(records), *read_findings(main_findings("a", {"a": records}))]
    click.echo("\nWhat the numbers say")
    for sentence in [f"Runs A and B separated at step {BRANCH_STEP}.", *sentences]:
        click.echo(f"  - {sentence}")


def _report(out: Path) -> None:
    from ckpt_probe.reporting.page import report

    sources = [str(out / "dumps" / "a"), str(out / "paths" / "ab")]
    command = shlex.join(["ckpt-probe", "report", *sources, "-o", str(out / PAGE), "--title", TITLE])
    say(f"Drawing the page → {out / PAGE}")
    report(sources, out / PAGE, title=TITLE, command=command, overwrite=True)


def _next_commands(out: Path, seconds: float) -> None:
    last = out / "runs" / "a" / "checkpoints" / "step-002200.safetensors"
    other = out / "runs" / "b" / "checkpoints" / "step-002200.safetensors"
    click.echo(f"\nDone in {seconds:.0f} s; all files are in {out}/. To see it, open this page in a browser:")
    click.echo(f"  {out / PAGE}")
    click.echo("To continue:")
    for words in (
        ("analyze", out / "dumps" / "a", "--wide"),
        ("analyze", out / "dumps" / "a", "--split", "test", "--json"),
        ("inspect", last),
        ("interpolate", last, other, "--alpha", "0.5", "--out", out / "middle.safetensors"),
    ):
        click.echo(f"  {shlex.join(['ckpt-probe', *map(str, words)])}")
