"""Tests of comparing groups of seeds: means, differences, intervals, kinds of entries, and refused input."""

import json
import math
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import stats

from ckpt_probe.analysis import analyze, compare
from ckpt_probe.analysis.comparison.compare import Interval, expanded
from ckpt_probe.analysis.comparison.differences import compare_at_loss
from ckpt_probe.analysis.comparison.paired import Curves, band, difference_p, equivalence_p, grain_of
from ckpt_probe.analysis.series import read_series
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.moments.errors.design import difference

PLAIN = {"seed-0": 0.90, "seed-1": 0.94, "seed-2": 0.92}
OTHER = {"seed-0": 0.93, "seed-1": 0.95, "seed-2": 0.97}


class Messages:
    """Progress that collects its messages."""

    def __init__(self) -> None:
        from ckpt_probe.progress import NullProgress

        self.messages: list[str] = []
        self.task = NullProgress().task

    def message(self, text: str) -> None:
        self.messages.append(text)


def lines(file: Path, *records: dict) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def group(directory: Path, values: dict[str, float], metric: str = "accuracy", step: int = 880) -> Path:
    for name, value in values.items():
        early = {"step": 0, "split": "test", metric: 0.1}
        train = {"step": step, "split": "train", metric: 1.0}
        logged = {"step": step, "epoch": 40.0, "batch_loss": 0.1}
        lines(directory / name / "metrics.jsonl", early, logged, train, {"step": step, "split": "test", metric: value})
    return directory


@pytest.mark.parametrize("size", [1.0, 2.0**1020, 2.0**-900])
@pytest.mark.parametrize("method", ["bootstrap", "t"])
def test_values_whose_sums_overflow_have_accurate_differences(tmp_path: Path, size: float, method: str) -> None:
    values = {"plain": [3.0, 5.5, 4.0, 7.0], "other": [9.0, 8.5, 11.0, 9.5]}
    for name, by_seed in values.items():
        group(tmp_path / name, {f"seed-{seed}": value * size for seed, value in enumerate(by_seed)})
    plain, other = compare([tmp_path / "plain", tmp_path / "other"], method=method)
    differences = np.subtract(values["other"], values["plain"])
    assert (plain.mean / size, other.mean / size) == (4.875, 9.5)
    assert other.deviation / size == pytest.approx(np.std(values["other"], ddof=1), rel=1e-14)
    assert other.difference / size == differences.mean()
    low, high = Interval(method=method).bounds(differences)
    assert (other.low / size, other.high / size) == (low, high)
    assert (other.verdict, other.direction) == ("different", "higher")


def test_values_too_far_apart_for_a_difference_are_refused(tmp_path: Path) -> None:
    low, high = ({f"seed-{seed}": size * (1.5e308 - seed) for seed in range(3)} for size in (-1, 1))
    with pytest.raises(DataError, match="other against plain: accuracy: the values lie too far apart"):
        compare([group(tmp_path / "plain", low), group(tmp_path / "other", high)])


def test_means_deviations_and_paired_differences_equal_those_computed_by_hand(tmp_path: Path) -> None:
    plain, other = compare([group(tmp_path / "plain", PLAIN), group(tmp_path / "other", OTHER)])
    assert (plain.group, plain.verdict, plain.seeds, plain.step, plain.difference) == (
        "plain",
        "baseline",
        3,
        880,
        None,
    )
    assert plain.mean == pytest.approx(0.92)
    assert plain.deviation == pytest.approx(0.02)
    assert other.mean == pytest.approx(0.95)
    assert other.difference == pytest.approx((0.03 + 0.01 + 0.05) / 3)
    assert (other.pairs, other.unpaired, other.verdict, other.baseline) == (3, 0, "undecided", "plain")
    assert (other.low, other.high) == (pytest.approx(0.01), pytest.approx(0.05))
    assert other.coverage_at_most == 0.75


def brute_force(differences: np.ndarray, level: float, resamples: int = 200_000) -> np.ndarray:
    rows = np.random.default_rng(7).integers(0, len(differences), (resamples, len(differences)))
    return np.quantile(differences[rows].mean(axis=1), [0.5 - level / 2, 0.5 + level / 2])


@pytest.mark.parametrize("pairs", [4, 6, 10])
def test_the_interval_agrees_with_a_brute_force_bootstrap(pairs: int) -> None:
    differences = np.random.default_rng(pairs).normal(0.02, 0.01, pairs)
    bounds = Interval(confidence=0.9, resamples=50_000, seed=3).bounds(list(differences))
    expected = brute_force(differences, expanded(0.9, pairs))
    assert bounds == pytest.approx(expected, abs=0.04 * np.ptp(expected))
    assert Interval(confidence=0.9, resamples=50_000, seed=3).bounds(list(differences)) == bounds


def test_the_expanded_level_gives_intervals_of_normal_means_the_width_of_students() -> None:
    # From tables: the normal tail beyond √(n/(n−1)) · t, t = 2.7764, 2.2622, 2.0930 with n − 1 degrees of freedom.
    for pairs, tail in ((5, 0.0010), (10, 0.0086), (20, 0.0159)):
        assert (1 - expanded(0.95, pairs)) / 2 == pytest.approx(tail, abs=6e-5)


@pytest.mark.parametrize(("method", "pairs", "least"), [("bootstrap", 8, 0.90), ("bootstrap", 5, 0.86), ("t", 3, 0.92)])
def test_intervals_of_simulated_seeds_cover_the_true_difference(method: str, pairs: int, least: float) -> None:
    generator = np.random.default_rng(1)
    interval = Interval(method=method, resamples=999)
    rounds, covered = 400, 0
    for _ in range(rounds):
        low, high = interval.bounds(list(generator.normal(0.5, 1.0, pairs))) or (np.nan, np.nan)
        covered += low <= 0.5 <= high
    assert least <= covered / rounds <= 0.985


def test_students_interval_agrees_with_its_formula() -> None:
    # t with 2 degrees of freedom: 4.302653 at 0.975.
    low, high = Interval(method="t").bounds([1.0, 2.0, 6.0]) or (0.0, 0.0)
    half = 4.302653 * np.std([1, 2, 6], ddof=1) / np.sqrt(3)
    assert (low, high) == (pytest.approx(3 - half, rel=1e-6), pytest.approx(3 + half, rel=1e-6))


def test_few_pairs_have_no_interval_and_that_of_equal_differences_is_a_point(tmp_path: Path) -> None:
    few = [group(tmp_path / "a", {"s0": 0.5, "s1": 0.6}), group(tmp_path / "b", {"s0": 0.7, "s1": 0.9})]
    two = compare(few)[1]
    assert (two.low, two.high, two.verdict) == (None, None, "undecided")
    assert two.note == "an interval needs at least 3 pairs of runs, found 2"
    assert Interval().bounds([0.25] * 4) == (0.25, 0.25)
    assert Interval().bounds([0.0] * 3) == (0.0, 0.0)
    same = compare([group(tmp_path / "c", PLAIN), group(tmp_path / "d", PLAIN)])[1]
    assert (same.difference, same.low, same.high, same.verdict) == (0, 0, 0, "equivalent")
    assert Interval().coverage_at_most(6) is None
    assert Interval(method="t").coverage_at_most(3) is None


def test_verdicts_agree_with_students_test_and_two_one_sided_tests(tmp_path: Path) -> None:
    mixed = {"seed-0": 0.95, "seed-1": 0.90, "seed-2": 0.99}
    lower = {name: value - 0.1 + 0.001 * seed for seed, (name, value) in enumerate(PLAIN.items())}
    close = {name: value + 0.001 * (seed - 1) for seed, (name, value) in enumerate(PLAIN.items())}
    names = {"plain": PLAIN, "mixed": mixed, "lower": lower, "close": close}
    compared = compare([group(tmp_path / name, values) for name, values in names.items()])
    assert [entry.verdict for entry in compared] == ["baseline", "undecided", "different", "equivalent"]
    assert [entry.direction for entry in compared] == [None, None, "lower", None]
    assert {entry.tests for entry in compared[1:]} == {3}
    # Over training the accuracy ranges from 0.1 at step 0 to 0.99.
    assert compared[1].margin == pytest.approx(0.05 * 0.89)
    p_values = [stats.ttest_rel(list(entry.values()), list(PLAIN.values())).pvalue for entry in (mixed, lower, close)]
    order = np.argsort(p_values)
    by_hand = np.maximum.accumulate([min(1, (3 - rank) * p_values[index]) for rank, index in enumerate(order)])
    assert [compared[1 + index].p_value for index in order] == pytest.approx(by_hand)
    tight = compare([tmp_path / "plain", tmp_path / "close"], margin=1e-4)[1]
    assert (tight.verdict, tight.margin) == ("undecided", 1e-4)


def course(directory: Path, shift: float, noise: float = 0.004, seeds: int = 6, seed: int = 0) -> Path:
    """Write runs whose accuracy differs by `shift` from step 30 on, and whose loss falls to 0.1."""
    generator = np.random.default_rng(seed)
    for number in range(seeds):
        rows = [
            {
                "step": step,
                "split": "test",
                "loss": 2 * math.exp(-step / 20) + 0.1,
                "accuracy": 1 - 0.9 * math.exp(-step / 20) + shift * (step >= 30) + noise * generator.normal(),
            }
            for step in range(0, 100, 10)
        ]
        lines(directory / f"seed-{number}.jsonl", *rows)
    return directory


def test_every_step_is_compared_and_the_first_lasting_difference_is_named(tmp_path: Path) -> None:
    pair = [course(tmp_path / "a", 0), course(tmp_path / "b", 0.1, seed=1)]
    compared = compare(pair, step="all")
    other = [entry for entry in compared if entry.group == "b"]
    assert [entry.step for entry in other] == list(range(0, 100, 10))
    assert {entry.differs_from for entry in other} == {30}
    assert {entry.tests for entry in other} == {10}
    assert [entry.verdict for entry in other][3:] == ["different"] * 7
    same = compare([pair[0], course(tmp_path / "c", 0, seed=2)], step="all")
    assert not any(entry.verdict == "different" for entry in same)
    assert {entry.differs_from for entry in same} == {None}


def test_groups_at_equal_loss_have_one_band_for_all_losses(tmp_path: Path) -> None:
    pair = [course(tmp_path / "a", 0), course(tmp_path / "b", 0.1, seed=1)]
    _, other = compare(pair, at="loss")
    assert (other.verdict, other.direction, other.pairs) == ("different", "higher", 6)
    assert other.loss is not None
    assert other.loss < 2 * math.exp(-1) + 0.1
    assert other.low is not None
    assert other.high is not None
    assert other.low < 0.1 < other.high
    assert (other.loss_low, other.loss_high) == pytest.approx((2 * math.exp(-90 / 20) + 0.1, 2.1))
    _, same = compare([pair[0], course(tmp_path / "c", 0, seed=2)], at="loss")
    assert same.verdict == "equivalent"
    with pytest.raises(UsageError, match="leave out `step=30`"):
        compare(pair, at="loss", step=30)
    with pytest.raises(DataError, match="steps with loss and accuracy"):
        compare([group(tmp_path / "d", PLAIN), group(tmp_path / "e", OTHER)], at="loss")


def test_the_band_at_equal_loss_has_its_confidence_with_three_pairs() -> None:
    draw = np.random.default_rng(0)
    runs = {group: {f"s{seed}": draw.normal(size=25) for seed in range(3)} for group in "ab"}
    compared = compare_at_loss("accuracy", "b", "test", Curves(np.linspace(2, 1, 25), runs), Interval(resamples=500))
    assert compared.comparison.low is not None
    assert compared.comparison.coverage_at_most is None


@pytest.mark.parametrize("pairs", [3, 6])
def test_groups_drawn_from_the_same_runs_rarely_differ(pairs: int) -> None:
    """Draw A/A groups, at one level and along a correlated curve: at most 5 %, with three standard errors."""
    differences = np.random.default_rng(0).normal(size=(120, pairs, 8)).cumsum(axis=2)
    single = np.mean([difference_p(sample[:, 0].tolist()) <= 0.05 for sample in differences])
    bands = np.mean([band(sample, 0.95, 200, 1).p_value <= 0.05 for sample in differences])
    assert max(single, bands) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 120)


def test_the_grain_of_shares_is_that_of_one_sample() -> None:
    draw = np.random.default_rng(0)
    assert grain_of(draw.integers(250, 301, 40) / 300) == pytest.approx(1 / 300)
    assert grain_of([0.3, 0.7, 0.3]) == grain_of([]) == 0
    # Twenty real numbers have no step in common.
    assert grain_of(draw.normal(size=20)) < 1e-3
    assert grain_of([-1e308, 0.0, 1e308]) == 0
    assert grain_of([0.1, 3e-200, 5e-200, 4e-200]) == 0


def test_saturated_accuracies_rarely_differ_after_correction() -> None:
    """Draw pairs of runs with three errors each: a few equal differences in samples have no error of zero."""
    draw = np.random.default_rng(0)
    differences = np.subtract(*draw.poisson(1, (2, 4000, 3)))
    level = 0.05 / 20
    assert np.mean([difference_p(each) <= level for each in differences]) > 0.015
    assert np.mean([difference_p(each, 1) <= level for each in differences]) <= level
    assert difference_p([1, 1, 1], 1) == pytest.approx(2 * stats.t.sf(2 * math.sqrt(3), 2))
    assert equivalence_p([1, 1, 1], 3, 1) == pytest.approx(stats.t.sf(4 * math.sqrt(3), 2))


def test_one_sample_in_every_seed_is_no_difference_between_recipes(tmp_path: Path) -> None:
    steps = [1, 10, 100, 200]
    for name, errors in (("a", [200, 40, 1, 0]), ("b", [180, 41, 2, 1])):
        for seed in range(3):
            counts = [error + seed for error in errors]
            records = [
                {"step": step, "split": "test", "accuracy": 1 - count / 300, "loss": 2.0 / step}
                for step, count in zip(steps, counts, strict=True)
            ]
            lines(tmp_path / name / f"seed-{seed}" / "metrics.jsonl", *records)
    pair = [tmp_path / "a", tmp_path / "b"]
    assert [each.verdict for each in compare(pair)] == ["baseline", "equivalent"]
    assert [each.verdict for each in compare(pair, margin=1e-6)] == ["baseline", "undecided"]
    half = stats.t.isf(0.025, 2) / 2 / math.sqrt(3) / 300
    for method in ("bootstrap", "t"):
        other = compare(pair, method=method)[1]
        assert (other.low, other.high) == (pytest.approx(-1 / 300 - half), pytest.approx(-1 / 300 + half))
    every = [each for each in compare(pair, step="all") if each.group == "b"]
    assert [each.verdict == "different" for each in every] == [True, False, False, False]


def test_equal_groups_are_equivalent(tmp_path: Path) -> None:
    for name in "ab":
        for seed in range(3):
            records = [
                {"step": step, "split": "test", "loss": 2.0 / step, "x": math.exp(seed / step)} for step in (1, 2, 4)
            ]
            lines(tmp_path / name / f"seed-{seed}" / "metrics.jsonl", *records)
    pair = [tmp_path / "a", tmp_path / "b"]
    for how in ({}, {"step": "all"}, {"at": "loss"}):
        compared = [each for each in compare(pair, metrics="x", **how) if each.group == "b"]
        assert {(each.verdict, each.low, each.high) for each in compared} == {("equivalent", 0, 0)}


def test_with_one_run_per_group_nothing_is_claimed_about_the_recipes(tmp_path: Path) -> None:
    pair = [group(tmp_path / "a", {"seed-0": 0.9}), group(tmp_path / "b", {"seed-0": 0.99})]
    _, other = compare(pair)
    assert (other.verdict, other.p_value) == ("undecided", None)
    assert other.note == "one run per group: no claim about the recipes, whose runs with other seeds may differ as much"


def test_one_dump_per_group_has_the_interval_of_the_two_networks(tmp_path: Path, user_cache: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        dump(tmp_path / name / "only" / "step-10.h5", seed)
    _, other = compare([tmp_path / "a", tmp_path / "b"], metrics=["accuracy"])
    assert other.verdict == "undecided"
    assert other.note is not None
    assert other.note.startswith("one run per group: no claim about the recipes")
    assert other.note.endswith("the interval is that of these two networks")
    records = [
        next(iter(read_series(tmp_path / name / "only", Settings(layers=False, errors=True), splits=["test"])))
        for name in "ab"
    ]
    expected = difference(records[1], records[0], "accuracy")
    assert other.difference == pytest.approx(expected["accuracy_corrected"])
    assert other.high is not None
    assert other.high - other.difference == pytest.approx(1.959964 * expected["accuracy_stderr"], rel=1e-5)


def test_two_networks_have_no_interval_of_a_number_whose_bias_is_not_reliable(tmp_path: Path, user_cache: Path) -> None:
    for name, apart in (("a", 1e-3), ("b", 1.0)):
        dump(tmp_path / name / "only" / "step-10.h5", 1, apart)
    separate, accuracy = (compare([tmp_path / "a", tmp_path / "b"], metrics=[m])[1] for m in ("NC1", "accuracy"))
    assert (separate.low, separate.high) == (None, None)
    assert separate.note is not None
    assert separate.note.endswith("the sample may be too small to correct the bias of this number")
    assert accuracy.low is not None


def test_different_groups_are_nearer_to_collapse_or_further_from_it(tmp_path: Path) -> None:
    values = {"a": 0.5, "b": 0.2, "c": 0.9}
    for name, value in values.items():
        group(tmp_path / name, {f"seed-{n}": value + 0.01 * n * (n + len(name)) for n in range(6)}, "nc1.pinv")
    _, near, far = compare([tmp_path / name for name in values], metrics=["nc1.pinv"])
    assert (near.collapse, far.collapse) == ("nearer", "further")


def test_entries_are_paired_by_name_and_others_are_reported(tmp_path: Path) -> None:
    progress = Messages()
    plain = group(tmp_path / "plain", PLAIN)
    # In this order, pairs by index in place of name would have other differences.
    other = group(tmp_path / "other", {"seed-2": 0.93, "seed-1": 0.95, "seed-9": 0.5})
    (tmp_path / "other" / "notes.txt").write_text("mine")
    (tmp_path / "other" / ".hidden").mkdir()
    comparison = compare([plain, other], progress=progress)[1]
    assert (comparison.seeds, comparison.pairs, comparison.unpaired) == (3, 2, 2)
    assert comparison.difference == pytest.approx(0.01)
    assert comparison.mean == pytest.approx((0.93 + 0.95 + 0.5) / 3)
    assert progress.messages == [
        "other: 1 of 4 names are not a run, dumps or records and were ignored: notes.txt",
        "other: 2 entries have no entry of the same name to pair with; they count in the means but not in the "
        "difference from plain: seed-0, seed-9",
    ]


def dump(path: Path, seed: int, apart: float = 1.0) -> Path:
    generator = np.random.default_rng(seed)
    labels = np.arange(60) % 3
    weights = apart * generator.normal(size=(3, 5))
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["test/features"] = weights[labels] + generator.normal(size=(60, 5))
        file["test/labels"] = labels
        file["classifier/weights"] = weights
    return path


def test_dumps_and_files_of_records_give_the_same_comparison_at_a_step(tmp_path: Path, user_cache: Path) -> None:
    for seed in range(2):
        run = tmp_path / "dumps" / f"seed-{seed}"
        paths = [dump(run / f"step-{step}.h5", 10 * seed + step) for step in (5, 10)]
        lines(tmp_path / "records" / f"seed-{seed}.jsonl", *(analyze(path)[0] for path in paths))
    metrics = ["class.mir", "nc1.pinv", "accuracy"]
    compared = compare([tmp_path / "dumps", tmp_path / "records"], metrics=metrics)
    assert [(entry.metric, entry.group) for entry in compared] == [
        (m, g) for m in metrics for g in ("dumps", "records")
    ]
    assert all(entry.difference == pytest.approx(0, abs=1e-12) for entry in compared if entry.group == "records")
    last = [analyze(tmp_path / "dumps" / f"seed-{seed}" / "step-10.h5")[0]["class.mir"] for seed in range(2)]
    assert compared[0].mean == pytest.approx(np.mean(last))
    assert (compared[0].step, compared[1].step) == (10, 10)
    early = compare([tmp_path / "dumps", tmp_path / "records"], metrics=["class.mir"], step=5)
    assert early[0].step == early[1].step == 5
    assert early[0].mean == pytest.approx(early[1].mean, rel=1e-12)
    assert early[0].mean != compared[0].mean
    assert list((user_cache / "records").iterdir())


def test_barriers_of_a_directory_of_paths_can_be_compared(tmp_path: Path) -> None:
    for name, height in (("a", 0.1), ("b", 0.3)):
        for seed in range(3):
            path = tmp_path / name / f"seed-{seed}"
            lines(path / "barriers.jsonl", {"step": 4, "split": "test", "barrier.loss": height + seed})
    compared = compare([tmp_path / "a", tmp_path / "b"], metrics=["barrier.loss"])
    assert compared[1].difference == pytest.approx(0.2)


def test_different_last_steps_are_reported(tmp_path: Path) -> None:
    progress = Messages()
    pair = [group(tmp_path / "a", PLAIN), group(tmp_path / "b", OTHER, step=1200)]
    assert [entry.step for entry in compare(pair, progress=progress)] == [880, 1200]
    assert progress.messages == ["the entries' last steps differ: 880, 1200"]


def test_a_missing_metric_split_or_step_is_reported_with_the_entry_and_the_existing_ones(tmp_path: Path) -> None:
    first, second = group(tmp_path / "first", PLAIN), group(tmp_path / "second", PLAIN)
    run = f"{first}/seed-0/metrics.jsonl"
    for options, message in (
        ({"metrics": ["class.mir"]}, f"{run}: test: no metric 'class.mir'; there are: accuracy"),
        ({"split": "validation"}, f"{run}: no record of split 'validation'; there are: test, train"),
        ({"step": 7}, f"{run}: test: nothing at step 7; there are: 0, 880"),
    ):
        with pytest.raises(DataError) as error:
            compare([first, second], **options)
        assert str(error.value) == message


def test_invalid_lines_are_reported_with_file_and_line(tmp_path: Path) -> None:
    good = group(tmp_path / "good", PLAIN)
    bad = tmp_path / "bad" / "seed-0.jsonl"
    bad.parent.mkdir()
    for text, message in (
        ('{"step": 1, "split": "test", "accuracy": 1}\n{"step": 2, "spl', "line 2 is not JSON"),
        ("[1, 2]\n", "line 1 is not a record"),
        ('{"step": 1, "split": "test", "accuracy": NaN}\n', "accuracy is undefined at step 1"),
        ('{"step": 1.5, "split": "test", "accuracy": 1}\n', "step is 1.5, expected a whole number"),
        ('{"step": 1, "split": "test", "accuracy": "high"}\n', "accuracy is 'high', expected a number"),
        ('{"step": "x", "split": "test", "accuracy": 1}\n', "step is 'x', expected a number"),
        ('{"step": 1, "split": "test", "accuracy": null, "missing": "why"}\n', "accuracy is undefined at step 1 (why)"),
        ('{"split": "test", "accuracy": 1}\n{"split": "test", "accuracy": 2}\n', "2 records without a step"),
        ("", "no record of split 'test'; nor of any other"),
    ):
        bad.write_text(text)
        with pytest.raises(DataError) as error:
            compare([good, bad.parent])
        assert str(bad) in str(error.value)
        assert message in str(error.value)
    bad.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a text file"):
        compare([good, bad.parent])


def test_a_group_is_a_directory_of_entries(tmp_path: Path) -> None:
    good = group(tmp_path / "good", PLAIN)
    dump(tmp_path / "dumps" / "step-1.h5", 0)
    (tmp_path / "empty").mkdir()
    twice = group(tmp_path / "twice", PLAIN)
    lines(twice / "seed-0.jsonl", {"split": "test", "accuracy": 1})
    for path, message in (
        (good / "seed-0", "is itself a run; pass the directory above it"),
        (tmp_path / "dumps", "is itself a directory of dumps; pass the directory above it"),
        (tmp_path / "empty", "nothing to compare; expected one entry per seed"),
        (tmp_path / "nowhere", "no such directory"),
        (good / "seed-0" / "metrics.jsonl", "a file; a group is a directory"),
        (twice, "two entries are called seed-0"),
    ):
        with pytest.raises(DataError) as error:
            compare([good, path])
        assert str(error.value).startswith(f"{path}: ")
        assert message in str(error.value)


def test_invalid_arguments_are_refused(tmp_path: Path) -> None:
    good = group(tmp_path / "good", PLAIN)
    for groups, options, message in (
        ([good], {}, "at least two groups"),
        ([good, good], {}, "the same group is given twice"),
        ([good, good], {"metrics": []}, "at least one metric"),
        ([good, good], {"confidence": 95.0}, "between 0 and 1"),
        ([good, good], {"method": "bca"}, "bootstrap or t"),
        ([good, good], {"resamples": 3}, "at least 100"),
    ):
        with pytest.raises(UsageError, match=message):
            compare(groups, **options)


def test_a_broken_link_is_an_error_and_other_files_are_ignored(tmp_path: Path) -> None:
    plain, other = group(tmp_path / "plain", PLAIN), group(tmp_path / "other", OTHER)
    os.mkfifo(other / "pipe")
    assert compare([plain, other])[1].pairs == 3
    (other / "seed-9").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"other/seed-9: a broken symbolic link"):
        compare([plain, other])


@pytest.mark.parametrize("method", ["t", "bootstrap"])
def test_the_largest_confidence_below_one_has_finite_bounds(tmp_path: Path, method: str) -> None:
    groups = [group(tmp_path / "plain", PLAIN), group(tmp_path / "other", OTHER)]
    confidence = math.nextafter(1, 0)
    _, other = compare(groups, method=method, confidence=confidence)
    assert other.low is not None
    assert other.high is not None
    assert math.isfinite(other.low)
    if method == "t":
        # With 2 degrees of freedom the tail beyond t is about 1 / (2 t²).
        half = math.sqrt(1 / (1 - confidence)) * np.std([0.03, 0.01, 0.05], ddof=1) / math.sqrt(3)
        assert (other.high - other.low) / 2 == pytest.approx(half, rel=1e-6)


@pytest.mark.parametrize("metrics", ["accuracy", "ACC", "acc*", ["Accuracy", "acc"]])
def test_metrics_are_compared_by_name_label_and_pattern(tmp_path: Path, metrics: str | list[str]) -> None:
    compared = compare([group(tmp_path / "a", PLAIN), group(tmp_path / "b", OTHER)], metrics=metrics)
    assert [(entry.metric, entry.group) for entry in compared] == [("accuracy", "a"), ("accuracy", "b")]


def test_directories_of_a_tree_and_patterns_are_groups(tmp_path: Path) -> None:
    for group, value in (("plain", 0.5), ("decay", 0.7)):
        for seed in range(3):
            folder = tmp_path / "runs" / group / f"seed-{seed}"
            folder.mkdir(parents=True)
            lines(folder / "metrics.jsonl", {"step": 4, "split": "test", "accuracy": value + seed / 100})
    expected = compare([tmp_path / "runs" / "decay", tmp_path / "runs" / "plain"])
    assert compare([tmp_path / "runs"]) == expected
    compared = compare([f"a={tmp_path}/runs/decay/*", f"b={tmp_path}/runs/plain/seed-[012]"])
    assert [(entry.group, entry.seeds, entry.pairs) for entry in compared] == [("a", 3, None), ("b", 3, 3)]
    assert [entry.difference for entry in compared] == [entry.difference for entry in expected]
    renamed = compare([f"x={tmp_path}/runs/decay", tmp_path / "runs" / "plain"])
    assert [entry.group for entry in renamed] == ["x", "plain"]


def runs_with(directory: Path, metric: str, values: dict[str, object]) -> Path:
    for number, (seed, value) in enumerate(values.items()):
        rows = [
            {"step": s, "split": "test", "accuracy": 0.5 + s / 100 + number / 50, "loss": 2 - s / 10, metric: value}
            for s in (0, 5)
        ]
        lines(directory / seed / "metrics.jsonl", *rows)
    return directory


@pytest.mark.parametrize("settings", [{}, {"step": "all"}, {"at": "loss"}, {"step": 5}])
@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_metric_that_is_undefined_in_one_run_is_left_out_alone(
    tmp_path: Path, settings: dict[str, object], value: object
) -> None:
    first = runs_with(tmp_path / "a", "class.mir", {"s0": 0.5, "s1": 0.6, "s2": 0.7})
    second = runs_with(tmp_path / "b", "class.mir", {"s0": 0.5, "s1": value, "s2": 0.7})
    progress = Messages()
    compared = compare([first, second], metrics=["accuracy", "class.mir"], progress=progress, **settings)
    assert {each.metric for each in compared} == {"accuracy"}
    assert compared == compare([first, second], metrics="accuracy", **settings)
    assert any("class.mir is left out" in message for message in progress.messages)
    with pytest.raises(DataError, match=r"class\.mir"):
        compare([first, second], metrics="class.mir", **settings)


def test_a_step_is_a_whole_number_of_any_type(tmp_path: Path) -> None:
    groups = [runs_with(tmp_path / name, "x", {"s0": 1.0, "s1": 2.0, "s2": 3.0}) for name in "ab"]
    expected = compare(groups, step=0)
    assert expected[0].step == 0
    assert compare(groups, step=np.int64(0)) == expected
    for step in (0.0, 0.5, "first"):
        with pytest.raises(UsageError, match=r"`step=.*`: expected a (whole number|step or 'all')"):
            compare(groups, step=step)
