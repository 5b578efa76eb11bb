"""Tests of figures of curves: values computed by hand, positions of lines in the SVG, identical files, and errors."""

import re
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.reporting.line_figure import plot
from ckpt_probe.reporting.plots.curves import axis_of, curves, line_plots
from ckpt_probe.reporting.plots.description import COLOURS, Mark

STEPS = (0, 2, 10, 100)


def records(values: list, metric: str = "accuracy", split: str = "test", **more) -> list[dict]:
    return [{"step": s, "split": split, metric: v, **more} for s, v in zip(STEPS, values, strict=True)]


def lines(svg: Path, colour: str) -> list[str]:
    """Return the path commands of the curves in a colour, without legend keys (not clipped) and bands (filled)."""
    paths = [e.attrib for e in ET.parse(svg).iter("{http://www.w3.org/2000/svg}path") if "clip-path" in e.attrib]
    return [a["d"] for a in paths if "fill: none" in a["style"] and f"stroke: {colour.lower()}" in a["style"]]


def corners(path: str) -> list[np.ndarray]:
    """Return the corners of each unbroken part of a path."""
    return [np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", part), float) for part in path.split("M")[1:]]


def words(svg: Path) -> str:
    return " ".join("".join(e.itertext()) for e in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text"))


def test_lines_are_drawn_at_the_positions_of_the_numbers(tmp_path: Path) -> None:
    values = [0.1, 0.4, 0.2, 0.9]
    assert plot({"run": [records(values)]}, tmp_path / "a.svg", metrics=[["accuracy"]]) == []
    [path] = lines(tmp_path / "a.svg", COLOURS[0])
    [points] = corners(path)
    for column, expected in ((0, np.array(STEPS)), (1, np.array(values))):
        position = points[:, column]
        drawn = (position - position[0]) / (position[-1] - position[0])
        assert drawn == pytest.approx((expected - expected[0]) / (expected[-1] - expected[0]), abs=2e-3)


def test_the_mean_over_seeds_has_a_band_from_lowest_to_highest() -> None:
    seeds = [records([0.1, 0.2, 0.3, 0.4]), records([0.3, 0.2, 0.9, 0.6]), records([0.2, 0.5, 0.3, 0.8])]
    [curve], notes = curves({"plain": seeds}, ["accuracy"], "step")
    assert (curve.seeds, curve.x, notes) == (3, [0, 2, 10, 100], [])
    assert curve.y == pytest.approx([0.2, 0.3, 0.5, 0.6])
    assert (curve.low, curve.high) == ([0.1, 0.2, 0.3, 0.4], [0.3, 0.5, 0.9, 0.8])


def test_values_that_no_axis_can_show_break_the_line(tmp_path: Path) -> None:
    notes = plot({"run": [records([1e308, 0.4, -1e308, None])]}, tmp_path / "a.svg", metrics=[["accuracy"]])
    reasons = ("1 values are missing", "2 values are beyond ±1e+300")
    assert notes == [f"run: accuracy: {reason}; the line breaks there" for reason in reasons]
    seeds = [records([1e308, 0.2, 0.3, 0.4]), records([1e308, 0.2, 0.9, 0.6])]
    [curve], _ = curves({"plain": seeds}, ["accuracy"], "step")
    assert [np.isnan(value) for value in curve.y] == [True, False, False, False]


def test_a_missing_value_breaks_the_line_and_is_counted(tmp_path: Path) -> None:
    notes = plot({"run": [records([0.1, 0.4, None, 0.9])]}, tmp_path / "a.svg", metrics=[["accuracy"]])
    assert notes == ["run: accuracy: 1 values are missing; the line breaks there"]
    [path] = lines(tmp_path / "a.svg", COLOURS[0])
    assert [len(part) for part in corners(path)] == [2, 1]
    # One of two seeds has no value at this step; the mean of the other seed alone is not drawn.
    [curve], notes = curves({"a": [records([1, 2, None, 4]), records([1, 2, 3, 4])]}, ["accuracy"], "step")
    assert np.isnan(curve.y[2])
    assert curve.y[3] == 4
    assert len(notes) == 1


def test_lines_of_train_are_solid_of_test_dashed_and_values_at_collapse_dotted(tmp_path: Path) -> None:
    records_of_both_splits = [*records([1, 0.9, 0.8, 0.7], "class.mir", "train", **{"reference.mir": 0.95})]
    records_of_both_splits += records([1, 0.8, 0.7, 0.6], "class.mir", "test", **{"reference.mir": 0.95})
    plot({"run": [records_of_both_splits]}, tmp_path / "a.svg", metrics=[["class.mir"]])
    text = (tmp_path / "a.svg").read_text()
    drawn = re.findall(rf'clip-path="[^"]*" style="fill: none; ([^"]*stroke: {COLOURS[0].lower()}[^"]*)"', text)
    assert ["dasharray" in style for style in drawn] == [False, True]
    assert text.count("at collapse") == 1
    assert words(tmp_path / "a.svg").split()[-4:] == ["train", "test", "at", "collapse"]
    collapsed = [*records([1, 1, 1, 1], "nc1.pinv"), *records([1, 1, 1, 1], "barrier.loss", "path")]
    plots, _ = line_plots(
        {"run": [records_of_both_splits + collapsed]}, [["class.mir"], ["nc1.pinv"], ["barrier.loss"]]
    )
    assert [[level.value for level in each.levels] for each in plots] == [[0.95], [0.0], []]
    assert plots[2].title == "barrier.loss"


def test_figures_of_the_same_records_are_identical(tmp_path: Path) -> None:
    import matplotlib

    series = {"a": [records([1, 2, 3, 4]), records([2, 3, 4, 5])], "b": [records([4, 3, 2, 1])]}
    for kind in ("svg", "png", "pdf"):
        for name in ("one", "two"):
            # A user's matplotlib settings do not change the figure either.
            with matplotlib.rc_context({"font.size": 20, "axes.grid": False} if name == "two" else {}):
                plot(series, tmp_path / f"{name}.{kind}", metrics=[["accuracy"]], title="T", marks=[Mark(5, "here")])
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes(), kind


def test_a_page_of_panels_is_small_and_has_labels_and_units(tmp_path: Path) -> None:
    names = ["class.mir", "class.hdr", "class.entropy_means", "nc1.pinv", "accuracy", "loss"]
    rows = [
        {"step": s, "split": t, "reference.mir": 0.9, **dict.fromkeys(names, s / 100)}
        for s in STEPS
        for t in ("train", "test")
    ]
    panels = [names[:2], *([name] for name in names[2:])]
    plot({"a": [rows, rows], "b": [rows]}, tmp_path / "a.svg", metrics=panels, marks=[Mark(10, "prune")])
    assert (tmp_path / "a.svg").stat().st_size < 100_000
    text = words(tmp_path / "a.svg")
    for label in ("MIR, HDR", "H means (nats)", "NC1", "acc", "loss (nats)", "training step", "prune", "a (2 seeds)",
                  "lowest to highest seed"):  # fmt: skip
        assert label in text, label


def test_a_figure_of_thousands_of_points_stays_small(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random(20_000)
    many = [{"step": i, "batch_loss": float(value)} for i, value in enumerate(noise)]
    plot({"run": [many]}, tmp_path / "a.svg", metrics=[["batch_loss"]])
    assert (tmp_path / "a.svg").stat().st_size < 100_000


def test_step_0_is_shown_on_a_logarithmic_axis(tmp_path: Path) -> None:
    plot({"run": [records([0.1, 0.2, 0.3, 0.4])]}, tmp_path / "a.svg", metrics=[["accuracy"]], log_x=True)
    [path] = lines(tmp_path / "a.svg", COLOURS[0])
    [points] = corners(path)
    assert len(points) == 4
    assert all(before < after for before, after in pairwise(points[:, 0]))
    # Beyond 2, equal ratios have equal lengths on the axis.
    log = np.log(np.array(STEPS[1:]))
    places = points[1:, 0]
    ratio = (places[1] - places[0]) / (places[2] - places[0])
    assert ratio == pytest.approx((log[1] - log[0]) / (log[2] - log[0]), abs=5e-3)
    assert "training step (log; linear from 0 to 2)" in words(tmp_path / "a.svg")


def test_a_narrow_logarithmic_axis_names_values_between_the_powers_of_ten(tmp_path: Path) -> None:
    plot({"run": [records([0.9, 0.5, 0.4, 0.3], "loss")]}, tmp_path / "a.svg", metrics=[["loss"]], log_y=True)
    assert {"0.4", "0.6", "0.8"} <= set(words(tmp_path / "a.svg").split())
    plot({"run": [records([9.0, 0.5, 0.4, 0.3], "loss")]}, tmp_path / "b.svg", metrics=[["loss"]], log_y=True)
    assert {"0.5", "1.0", "2.0", "5.0"} <= set(words(tmp_path / "b.svg").split())


def test_values_that_a_logarithmic_axis_cannot_show_have_a_note(tmp_path: Path) -> None:
    rows = records([0.5, 0.0, 0.1, 0.2], "nc1.pinv")
    notes = plot({"run": [rows]}, tmp_path / "a.svg", metrics=[["nc1.pinv"]], log_y=True)
    assert notes == [
        "1 values of 0 or less have no place on a logarithmic axis; the line breaks there",
        "at collapse NC1 is 0, which has no place on a logarithmic axis",
    ]
    assert "at collapse" not in words(tmp_path / "a.svg")
    beyond = [{"alpha": a, "split": "test", "loss": 1.0} for a in (-0.5, 0.0, 1.0)]
    with pytest.raises(UsageError, match=r"^alpha goes from -0\.5 to 1; a logarithmic x axis needs values above 0$"):
        plot({"run": [beyond]}, tmp_path / "b.svg", metrics=[["loss"]], log_x=True)
    assert not (tmp_path / "b.svg").exists()


def test_the_axis_is_alpha_on_a_path_and_sparsity_comes_from_the_name() -> None:
    path = [{"alpha": a, "split": "test", "loss": a * (1 - a)} for a in (0, 0.5, 1)]
    assert (axis_of(path), axis_of(records([1, 2, 3, 4]))) == ("alpha", "step")
    pruned = [
        {"checkpoint": "sparsity-0.900", "split": "test", "accuracy": 0.7},
        {"checkpoint": "x", "sparsity": 0.5, "split": "test", "accuracy": 0.9},
        {"checkpoint": "dense", "split": "test", "accuracy": 1.0},
    ]
    [curve], notes = curves({"run": [pruned]}, ["accuracy"], "sparsity")
    assert (curve.x, curve.y) == ([0.5, 0.9], [0.9, 0.7])
    assert notes == ["run: 1 of 3 records have no sparsity, and were left out"]


def test_rows_of_a_trainers_log_that_share_a_step_are_one_position() -> None:
    rows = [
        {"step": step, "loss": loss, "val_loss": val_loss}
        for step, loss, val_loss in ((1, 0.9, None), (2, 0.8, None), (2, None, 0.7), (3, 0.6, None), (3, None, 0.5))
    ]
    [loss], _ = curves({"run": [rows]}, ["loss"], "step")
    assert (loss.x, loss.y) == ([1, 2, 3], [0.9, 0.8, 0.6])
    [val_loss], notes = curves({"run": [rows]}, ["val_loss"], "step")
    assert (val_loss.x, val_loss.y[1:]) == ([1, 2, 3], [0.7, 0.5])
    assert notes == ["run: val_loss: 1 values are missing; the line breaks there"]


def test_records_that_cannot_be_drawn_are_errors(tmp_path: Path) -> None:
    good = {"run": [records([1, 2, 3, 4])]}
    twice = {"run": [[*good["run"][0], *good["run"][0]]]}
    for series, options, kind, message in (
        (good, {"metrics": [["class.mir"]]}, DataError, "no record has the metric 'class.mir'; there are: accuracy"),
        (good, {"splits": ["train"]}, UsageError, "no record of split 'train'; there are: test"),
        (good, {"x": "alpha"}, DataError, "run: no record has accuracy at a known alpha; axes: step; "),
        (twice, {}, DataError, "run: accuracy of test has several values at step 0; choose another axis with `x=`"),
        ({**good, "b": [records([1, 2, 3, 4], "loss")]}, {}, DataError, "b: no record has accuracy at a known step"),
        ({"run": [records([1, 2, "x", 4])]}, {}, DataError, "run: accuracy is 'x', expected a number"),
        (good, {"metrics": []}, UsageError, "expected names of metrics"),
    ):
        with pytest.raises(kind) as error:
            plot(series, tmp_path / "a.svg", **({"metrics": [["accuracy"]]} | options))
        assert message in str(error.value)
        assert not (tmp_path / "a.svg").exists()
    with pytest.raises(UsageError, match=r"a\.jpg: expected a name that ends in \.svg, \.png, \.pdf"):
        plot(good, tmp_path / "a.jpg", metrics=[["accuracy"]])
    plot(good, tmp_path / "a.svg", metrics=[["accuracy"]])
    with pytest.raises(UsageError, match="exists already"):
        plot(good, tmp_path / "a.svg", metrics=[["accuracy"]])
    plot(good, tmp_path / "a.svg", metrics=[["accuracy"]], overwrite=True)


def test_names_with_special_characters_and_many_conditions_are_drawn(tmp_path: Path) -> None:
    series = {f"_{i} at $5 and $6": [records([i, 1, 2, 3])] for i in range(9)}
    plot(series, tmp_path / "a.svg", metrics=[["accuracy"]], title="$x")
    text = words(tmp_path / "a.svg")
    assert all(f"_{i} at $5 and $6" in text for i in range(9))
    assert "$x" in text


def test_a_missing_matplotlib_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r'pip install "ckpt-probe\[figures\]"'):
        plot({"run": [records([1, 2, 3, 4])]}, tmp_path / "a.svg", metrics=[["accuracy"]])


def test_keys_of_many_conditions_stay_within_the_figure(tmp_path: Path) -> None:
    rows = records([0.1, 0.2, 0.3, 0.4], loss=1.0)
    seeds = {f"λ {weight}": [rows] * 6 for weight in ("0", "0.1", "1", "10", "100")}
    plot(seeds, tmp_path / "a.svg", metrics=[["accuracy"], ["loss"]])
    root = ET.parse(tmp_path / "a.svg").getroot()
    width = float(root.attrib["viewBox"].split()[2])
    [legend] = [e for e in root.iter("{http://www.w3.org/2000/svg}g") if e.get("id", "").startswith("legend")]
    starts = [float(x) for e in legend.iter() for x in re.findall(r"M (-?[\d.]+)", e.get("d", ""))]
    ends = [
        float(e.get("x") or 0) + 4 * len("".join(e.itertext())) for e in legend.iter("{http://www.w3.org/2000/svg}text")
    ]
    assert len(ends) == 7
    assert min(starts) >= 0
    assert max(ends) <= width
