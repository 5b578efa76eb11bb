"""Tests of the sentences about a run: each states its interval; a growing run has each event reported once."""

import numpy as np
import pytest

from ckpt_probe.findings import Findings
from ckpt_probe.findings.findings import EventWatch, main_findings, order_sentence, read_findings, read_group

STEPS = [int(step) for step in np.unique(np.geomspace(1, 6000, 40).round())]


def records(count: int = len(STEPS)) -> list[dict]:
    generator = np.random.default_rng(0)
    noise = 0.02 * generator.normal(size=(len(STEPS), 2))
    return [
        {"step": step, "split": "test", "accuracy": (index > 20) + noise[index, 0], "nc1.pinv": noise[index, 1]}
        for index, step in enumerate(STEPS[:count])
    ]


def test_every_sentence_has_its_interval_or_the_smallest_detectable_change() -> None:
    accuracy, quiet = read_findings(main_findings("run", {"run": records()}))
    assert accuracy.startswith("test accuracy ")
    assert "changed abruptly between steps" in accuracy
    assert "left its initial level between steps" in accuracy
    assert quiet.startswith("No event (smallest change that would be reported): test nc1.pinv (0.")


def test_sentences_are_about_the_main_metrics_of_a_run_that_has_some() -> None:
    more = [{**record, "sample.mir": record["accuracy"]} for record in records()]
    assert main_findings("run", {"run": more}).limits == main_findings("run", {"run": records()}).limits


def test_short_runs_have_a_sentence_with_the_reason_and_runs_without_steps_have_none() -> None:
    [reason] = read_findings(main_findings("run", {"run": records(8)}))
    assert reason == (
        "No events are reported of test accuracy, test nc1.pinv: 8 checkpoints with a value; events need at least 12."
    )
    assert read_findings(main_findings("run", {"run": [{"split": "test", "accuracy": 1.0}]})) == []
    twice = [{"step": 1, "sparsity": s, "accuracy": s} for s in (0.1, 0.2)]
    assert read_findings(main_findings("run", {"run": twice})) == []


OF_SEEDS = {"group": "plain", "before": "loss", "after": "accuracy", "seeds": 6, "lag_factor": 2.5, "p_value": 0.031}


@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        (
            {"group": "a", "seed": "a", "before": "loss", "after": "accuracy", "first_by": 20, "second_from": 50},
            "loss left its initial level by step 20, before accuracy did (after step 50).",
        ),
        (
            {**OF_SEEDS, "relation": "one process"},
            "loss and accuracy follow one curve: no order, since they may be two scales of one process.",
        ),
        ({**OF_SEEDS, "relation": "undecided"}, "the 6 seeds support no order of loss and accuracy (p = 0.031)."),
        (
            {**OF_SEEDS, "relation": "before", "noise_lag_factor": 1.25},
            "loss moves before accuracy: its onset is earlier by a factor of 2.5 in steps over 6 seeds (p = 0.031; "
            "noise alone produces 1.25).",
        ),
    ],
    ids=["in a run", "one process", "undecided", "before"],
)
def test_an_order_of_onsets_is_one_sentence_and_an_undecided_one_is_left_out(order: dict, sentence: str) -> None:
    of_run = "relation" not in order
    assert order_sentence(order) == ("In this run, " if of_run else "") + sentence
    assert order_sentence(order, of_runs=True) == ("a: " if of_run else "plain: ") + sentence
    sentences = read_findings(Findings([], [], [order], []))
    assert sentences == ([] if order.get("relation") == "undecided" else [order_sentence(order)])


def test_a_group_has_sentences_about_what_happens_in_each_of_its_runs() -> None:
    def of_run(seed: str, metric: str, **entries: object) -> dict:
        return {"group": "plain", "seed": seed, "split": "test", "metric": metric, **entries}

    limits = [of_run(seed, metric) for seed in "ab" for metric in ("accuracy", "loss")]
    events = [
        of_run("a", "accuracy", kind="onset", from_step=20, to_step=60),
        of_run("b", "accuracy", kind="onset", from_step=10, to_step=40),
        of_run("a", "accuracy", kind="end", from_step=200, to_step=300),
        of_run("a", "loss", kind="end", from_step=500, to_step=600),
        of_run("b", "loss", kind="end", from_step=400, to_step=700),
    ]
    orders = [{**OF_SEEDS, "relation": relation} for relation in ("one process", "undecided")]
    assert read_group(Findings(events, limits, orders, [])) == [
        "In each of the 2 runs, test accuracy left its initial level between steps 10 and 60.",
        "In each of the 2 runs, test loss reached its final level between steps 400 and 700.",
        "loss and accuracy follow one curve: no order, since they may be two scales of one process.",
    ]
    alone = Findings(events[2:3], limits[:2], [], [])
    assert read_group(alone) == ["In its only run, test accuracy reached its final level between steps 200 and 300."]


def test_a_growing_run_has_each_event_reported_once_and_soon() -> None:
    watch, reported = EventWatch(), []
    for count in (4, *range(12, len(STEPS) + 1, 3)):
        new = watch.look("test", records(count))
        reported += [(count, sentence) for sentence in new]
    onsets = [count for count, sentence in reported if "left its initial level" in sentence]
    assert len(onsets) == 1
    assert 22 <= onsets[0] <= 27
    assert sum("changed" in sentence for _, sentence in reported) == 1
