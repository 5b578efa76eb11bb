"""Tests of events in a report: the section, its figure, the sentences by run and group, and following a run."""

import json
from pathlib import Path

import numpy as np
import pytest

import ckpt_probe as cp
from ckpt_probe.findings.findings import EventWatch
from ckpt_probe.reporting.findings import findings_footnotes
from ckpt_probe.reporting.plots.description import IntervalPlot
from ckpt_probe.reporting.sections import Contents, gather
from ckpt_probe.reporting.sources import open_sources

STEPS = [int(step) for step in np.unique(np.geomspace(1, 6000, 40).round())]


def write(path: Path, seed: int = 0, count: int = len(STEPS)) -> Path:
    """Write records of a run whose accuracy jumps at the 21st checkpoint and whose NC1 is noise."""
    noise = 0.02 * np.random.default_rng(seed).normal(size=(len(STEPS), 2))
    rows = [
        {"step": s, "split": "test", "accuracy": (i > 20) + noise[i, 0], "nc1.pinv": 1 + noise[i, 1]}
        for i, s in enumerate(STEPS[:count])
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents_of(*paths: Path) -> Contents:
    return gather(open_sources([str(path) for path in paths]))


def test_findings_have_a_section_after_the_metrics_and_sentences_at_the_top(tmp_path: Path) -> None:
    contents = contents_of(write(tmp_path / "run.jsonl"))
    assert [section.key for section in contents.sections][:2] == ["metrics", "findings"]
    [plot] = contents.sections[1].plots
    assert isinstance(plot, IntervalPlot)
    assert plot.rows == ("test accuracy",)
    assert {bar.kind for bar in plot.bars} == {"change", "onset", "end"}
    assert all(bar.start < STEPS[21] <= bar.stop for bar in plot.bars)
    [(name, sentences)] = contents.reading
    assert name == "run"
    assert sentences[0].startswith("test accuracy ")
    assert "between steps" in sentences[0]
    assert sentences[1].startswith("No event (smallest change that would be reported): test nc1.pinv")


def test_runs_of_a_group_share_their_sentences(tmp_path: Path) -> None:
    for seed in range(3):
        write(tmp_path / "plain" / f"seed-{seed}" / "records.jsonl", seed)
    contents = contents_of(tmp_path / "plain")
    reading = dict(contents.reading)
    [onset, end] = reading["plain"]
    assert onset.startswith("In each of the 3 runs, test accuracy left its initial level between steps")
    assert end.startswith("In each of the 3 runs, test accuracy reached its final level between steps")


def test_a_short_run_has_a_reason_instead_of_events(tmp_path: Path) -> None:
    contents = contents_of(write(tmp_path / "run.jsonl", count=8))
    [(_, [sentence])] = contents.reading
    assert sentence.endswith("8 checkpoints with a value; events need at least 12.")
    assert [section.key for section in contents.sections] == ["metrics"]


def test_the_page_and_the_figures_draw_the_intervals(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    summary = cp.report(write(tmp_path / "run.jsonl"), tmp_path / "page.html", figures=tmp_path / "figures")
    page = (tmp_path / "page.html").read_text()
    assert '"kind":"IntervalPlot"' in page
    assert "test accuracy" in (tmp_path / "figures" / "events-run.svg").read_text()
    run, bar = summary.events[0]
    assert (run, bar.row) == ("run", "test accuracy")
    watch = EventWatch()
    events = [((bar.row, bar.kind, bar.start, bar.stop), bar.label) for _, bar in summary.events]
    assert len(watch.unreported(events)) == len(events)
    assert watch.unreported(events) == []


def test_a_metric_without_onset_in_some_seed_is_named_below_the_table(tmp_path: Path) -> None:
    for seed in range(6):
        write(tmp_path / "plain" / f"seed-{seed}" / "records.jsonl", seed)
    notes = findings_footnotes(cp.events(tmp_path / "plain"))
    [note] = [note for note in notes if "not in the order" in note]
    assert "fewer than all 6 seeds" in note
    assert note.endswith("seeds with one: test nc1.pinv (0)")
