"""Tests of differences between groups of runs: the statistics of `compare`, and the page drawn by group."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import ckpt_probe as cp
from ckpt_probe.reporting.comparison import difference_sentences, difference_table, differences
from ckpt_probe.reporting.page import page_of
from ckpt_probe.reporting.plots.description import LinePlot, RowTable
from ckpt_probe.reporting.plots.runs import Run
from ckpt_probe.reporting.sections import gather
from ckpt_probe.reporting.sources import open_sources

STEPS = (1, 10, 100)
DRAWS = np.random.default_rng(0)
VALUES: dict[tuple[str, str], Any] = {
    ("plain", "accuracy"): DRAWS.normal(0.8, 0.01, 4),
    ("decay", "accuracy"): DRAWS.normal(0.9, 0.01, 4),
    ("plain", "nc1.pinv"): DRAWS.normal(2, 0.5, 4),
    ("decay", "nc1.pinv"): DRAWS.normal(2, 0.5, 4),
    ("plain", "loss"): DRAWS.normal(1, 0.1, 4),
    ("decay", "loss"): DRAWS.normal(0.8, 0.1, 4),
}


def records(group: str, seed: int) -> list[dict[str, Any]]:
    """Return records of three steps; seed 3 has one more step, which no other run has."""
    names = ("accuracy", "nc1.pinv", "loss")
    last = {name: float(VALUES[group, name][seed]) for name in names}
    steps = [*STEPS, 200] if seed == 3 else STEPS
    return [
        {"step": step, "split": "test", **{name: value * (1 if step == 100 else 0.5) for name, value in last.items()}}
        for step in steps
    ]


def runs(seeds: int = 4) -> list[Run]:
    return [
        Run(f"{group}/seed-{seed}", records(group, seed), [], group=group, seed=f"seed-{seed}")
        for group in ("plain", "decay")
        for seed in range(seeds)
    ]


def test_metrics_are_ordered_by_p_of_the_paired_test_at_the_last_common_step() -> None:
    compared = differences(runs())
    expected = {
        name: stats.ttest_rel(VALUES["decay", name], VALUES["plain", name]) for name in ("accuracy", "nc1.pinv", "loss")
    }
    order = sorted(expected, key=lambda name: expected[name].pvalue)
    assert [(each.metric, each.group) for each in compared] == [(n, g) for n in order for g in ("plain", "decay")]
    # Holm's adjustment: the smallest p times 3, the next times 2, and no value smaller than the one before.
    adjusted = np.maximum.accumulate([min(1, expected[name].pvalue * (3 - i)) for i, name in enumerate(order)])
    for each, p in zip(compared[1::2], adjusted, strict=True):
        assert each.step == 100
        assert each.p_value == pytest.approx(p, rel=1e-9)
        assert each.mean == pytest.approx(VALUES["decay", each.metric].mean())
        assert (each.verdict == "different") == (p <= 0.05)


def test_groups_without_a_common_step_are_compared_at_their_last_steps_and_the_table_states_it() -> None:
    steps = {"a": (1, 381), "b": (2, 382)}
    apart = [
        Run(f"{g}/{s}", [{"step": n, "split": "test", "loss": n + s} for n in steps[g]], [], (), (), g, str(s))
        for g in "ab"
        for s in range(3)
    ]
    table = difference_table(differences(apart))
    assert "at each run's own last step" in table.meaning
    assert differences(apart)[1].difference == 1
    again = [replace(run, group="c") for run in apart[3:]]
    assert "at step 382" in difference_table(differences([*apart[3:], *again])).meaning


def test_equal_values_do_not_differ_and_single_runs_have_no_p_value() -> None:
    equal = [
        Run(f"{g}/{s}", [{"step": 1, "split": "test", "loss": 1.0}], [], (), (), g, s) for g in "ab" for s in "012"
    ]
    _, result = differences(equal)
    assert (result.difference, result.p_value, result.verdict) == (0, 1, "undecided")
    single = differences(runs(1))
    assert {each.p_value for each in single} == {None}
    [sentence] = difference_sentences(single)
    assert sentence.startswith("With one run in a group (plain: 1, decay: 1) there is no statement about the recipes")
    assert {row[-1] for row in difference_table(single).tables[0].cells} == {"one run"}
    [sentence] = difference_sentences(differences(runs(2)))
    assert "an interval needs at least 3 pairs of runs, found 2" in sentence
    assert differences(runs()[:4]) == []


def test_each_of_three_groups_is_compared_with_the_baseline() -> None:
    draws = {group: DRAWS.normal(mean, 0.1, 3) for group, mean in (("a", 0), ("b", 0.1), ("c", 3))}
    some = [
        Run(f"{group}/{seed}", [{"step": 1, "split": "test", "loss": float(value)}], [], (), (), group, str(seed))
        for group, values in draws.items()
        for seed, value in enumerate(values)
    ]
    compared = differences(some)
    assert [(each.group, each.baseline) for each in compared] == [("a", "a"), ("b", "a"), ("c", "a")]
    p = {group: stats.ttest_rel(draws[group], draws["a"]).pvalue for group in "bc"}
    assert compared[2].p_value == pytest.approx(2 * p["c"], rel=1e-9)
    assert compared[1].p_value == pytest.approx(max(p["b"], 2 * p["c"]), rel=1e-9)
    table = difference_table(compared)
    assert table.columns == ("metric", "split", "a", "other group", "other group − a", "p", "verdict")
    assert [str(row[3]).partition(":")[0] for row in table.tables[0].cells] == ["b", "c"]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for group in ("plain", "decay"):
        for seed in range(4):
            directory = tmp_path / "runs" / group / f"seed-{seed}"
            directory.mkdir(parents=True)
            lines = [json.dumps(record) for record in records(group, seed)]
            (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_page_of_a_tree_is_drawn_by_group(tree: Path) -> None:
    sources = open_sources(["runs"])
    assert [(each.name, each.group, each.seed) for each in sources][:2] == [
        ("decay/seed-0", "decay", "seed-0"),
        ("decay/seed-1", "decay", "seed-1"),
    ]
    contents = gather(sources)
    assert [section.key for section in contents.sections] == ["differences"]
    table, *plots = contents.sections[0].plots
    assert isinstance(table, RowTable)
    assert table.columns == ("metric", "split", "decay", "plain", "plain − decay", "p", "verdict")
    [accuracy] = [plot for plot in plots if plot.key == "metric-accuracy"]
    assert isinstance(accuracy, LinePlot)
    assert [(line.condition, line.seeds) for line in accuracy.lines] == [("decay", 4), ("plain", 4)]
    assert accuracy.lines[0].y[2] == pytest.approx(VALUES["decay", "accuracy"].mean())
    assert accuracy.lines[0].high[2] == pytest.approx(VALUES["decay", "accuracy"].max())
    [(about, sentences)] = contents.reading
    assert about == "groups"
    assert sentences[0].startswith("acc on test is lower in plain than in decay: ")
    page = page_of(contents)
    assert '"kind":"RowTable"' in page
    # A file of records with groups gives the same page as the runs.
    rows = [
        {"group": group, "seed": f"seed-{seed}", **record}
        for group in ("decay", "plain")
        for seed in range(4)
        for record in records(group, seed)
    ]
    (tree / "all.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert repr(gather(open_sources(["all.jsonl"])).sections) == repr(contents.sections)


def test_the_page_and_compare_have_the_same_numbers(tree: Path) -> None:
    by_command = cp.compare(["runs/plain", "runs/decay"], metrics=["accuracy", "nc1.pinv", "loss"], step=100)
    of_page = {(each.metric, each.group): each for each in differences(runs())}
    for each in by_command:
        on_page = of_page[each.metric, each.group]
        assert (on_page.verdict, on_page.direction, on_page.collapse) == (each.verdict, each.direction, each.collapse)
        for name in ("difference", "p_value", "margin", "equivalence_p"):
            expected = getattr(each, name)
            assert getattr(on_page, name) == (None if expected is None else pytest.approx(expected, rel=1e-9))


def test_metrics_beyond_the_clearest_are_folded_and_shared_notes_appear_once(tree: Path) -> None:
    for file in (tree / "runs").rglob("metrics.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        more = [{**line, **{f"other.{i}": line["loss"] + i for i in range(8)}} for line in lines]
        file.write_text("\n".join(map(json.dumps, more)) + "\n")
    contents = gather(open_sources(["runs"]))
    first, metrics = contents.sections
    assert len(first.plots) == 1 + 6
    assert len(metrics.plots) == 3 + 8 - 6
    assert all(group.folded for group in metrics.groups)
    alone = gather(open_sources(["runs/plain/seed-0"]))
    assert not any(group.folded for section in alone.sections for group in section.groups)


def test_plots_and_exports_accept_directory_trees(tree: Path) -> None:
    # Seed 1 has a step that the others do not have.
    notes = cp.plot("runs", "a.svg", metrics="accuracy")
    assert notes == [f"{group}: accuracy: 3 values are missing; the line breaks there" for group in ("decay", "plain")]
    figure = Path("a.svg").read_text()
    assert "plain" in figure
    assert "decay" in figure
