"""Differences between groups of runs: Welch's test and Holm's correction, and the page that is drawn by group."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import ckpt_probe as cp
from ckpt_probe.reporting.contents import gather
from ckpt_probe.reporting.differences import difference_sentences, difference_table, differences
from ckpt_probe.reporting.page.document import page_of
from ckpt_probe.reporting.plots.description import LinePlot, RowTable
from ckpt_probe.reporting.runs import Run
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
    """Records of three steps; those of seed 3 go on for one more step, which no other run has."""
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


def test_metrics_are_ordered_by_p_of_welch_at_the_last_common_step() -> None:
    found = differences(runs())
    expected = {
        name: stats.ttest_ind(VALUES["decay", name], VALUES["plain", name], equal_var=False)
        for name in ("accuracy", "nc1.pinv", "loss")
    }
    assert [each.metric for each in found] == sorted(expected, key=lambda name: expected[name].pvalue)
    for each in found:
        assert each.step == 100
        assert each.p == pytest.approx(expected[each.metric].pvalue, rel=1e-9)
        assert each.t == pytest.approx(expected[each.metric].statistic, rel=1e-9)
        assert list(each.values["plain"]) == pytest.approx(list(VALUES["plain", each.metric]))
    # Holm: the smallest p times 3, the next times 2, and nothing after the first that fails.
    ordered = sorted(result.pvalue for result in expected.values())
    holds = [p * (3 - index) <= 0.05 for index, p in enumerate(ordered)]
    assert [each.different for each in found] == [all(holds[: index + 1]) for index in range(3)]


def test_equal_values_do_not_differ_and_one_run_says_nothing() -> None:
    equal = [Run(f"{g}/{s}", [{"step": 1, "split": "test", "loss": 1.0}], [], (), (), g, s) for g in "ab" for s in "01"]
    [found] = differences(equal)
    assert (found.t, found.p, found.different) == (0, 1, False)
    single = differences(runs(1))
    assert {each.p for each in single} == {None}
    [sentence] = difference_sentences(single)
    assert sentence.startswith("With one run in a group (plain: 1, decay: 1) there is no statement about the recipes")
    assert {row[-1] for row in difference_table(single).tables[0].cells} == {"one run"}
    assert differences(runs()[:4]) == []


def test_three_groups_have_their_clearest_pair_and_a_correction_for_pairs() -> None:
    draws = {group: DRAWS.normal(mean, 0.1, 3) for group, mean in (("a", 0), ("b", 0.1), ("c", 3))}
    some = [
        Run(f"{group}/{seed}", [{"step": 1, "split": "test", "loss": float(value)}], [], (), (), group, str(seed))
        for group, values in draws.items()
        for seed, value in enumerate(values)
    ]
    [found] = differences(some)
    pairs = {(x, y): stats.ttest_ind(draws[x], draws[y], equal_var=False).pvalue for x, y in ("ab", "ac", "bc")}
    assert found.pair == min(pairs, key=lambda pair: pairs[pair])
    assert found.p == pytest.approx(3 * min(pairs.values()), rel=1e-9)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for group in ("plain", "decay"):
        for seed in range(4):
            place = tmp_path / "runs" / group / f"seed-{seed}"
            place.mkdir(parents=True)
            lines = [json.dumps(record) for record in records(group, seed)]
            (place / "metrics.jsonl").write_text("\n".join(lines) + "\n")
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
    # A file of records with groups in them gives the same page as the runs.
    rows = [
        {"group": group, "seed": f"seed-{seed}", **record}
        for group in ("decay", "plain")
        for seed in range(4)
        for record in records(group, seed)
    ]
    (tree / "all.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert repr(gather(open_sources(["all.jsonl"])).sections) == repr(contents.sections)


def test_metrics_beyond_the_clearest_are_folded_and_shared_facts_are_stated_once(tree: Path) -> None:
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


def test_plots_and_exports_take_trees(tree: Path) -> None:
    # One seed has a step that the others do not have.
    notes = cp.plot("runs", "a.svg", metrics="accuracy")
    assert notes == [f"{group}: accuracy: 3 values are missing; the line breaks there" for group in ("decay", "plain")]
    figure = Path("a.svg").read_text()
    assert "plain" in figure
    assert "decay" in figure
