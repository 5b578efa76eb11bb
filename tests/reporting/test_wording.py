"""Tests of numbers as text with their errors, in tables, curves and sentences, and of sentences about paths."""

import io
import math
from typing import Any

import pytest
from rich.console import Console

from ckpt_probe.analysis.entries import corrected, corrected_value, in_order
from ckpt_probe.analysis.records import metric_names
from ckpt_probe.reporting.plots.curves import line_plots
from ckpt_probe.reporting.table import records_table
from ckpt_probe.reporting.wording import number_with_error, read_path, read_supported


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.59912, 0.0024, "0.5991(24)"),
        (0.59912, 0.00996, "0.599(10)"),
        (123.456, 2.4, "123.5(24)"),
        (123.456, 24, "123(24)"),
        (12345.6, 240, "12350(240)"),
        (0.001, 0.5, "0.00(50)"),
        (-0.5, 0.012, "-0.500(12)"),
        (0.0, 0.012, "0.000(12)"),
        (2.5e-5, 1.2e-6, "2.50(12)e-05"),
        (1.2345e7, 3.4e5, "1.234(34)e+07"),
        (0.59912, None, "0.5991"),
        (0.59912, 0.0, "0.5991"),
    ],
)
def test_a_number_has_as_many_decimals_as_its_error(value: float, stderr: float | None, text: str) -> None:
    assert number_with_error(value, stderr) == text


def record(split: str, mir: float, stderr: float | None = 0.004, step: int = 9, **more: Any) -> dict[str, Any]:
    errors = {} if stderr is None else {"class.mir_stderr": stderr, "class.mir_bias": 0.02}
    return {"checkpoint": f"c{step}", "step": step, "split": split, "class.mir": mir, **errors, "missing": None, **more}


def test_tables_print_errors_with_their_values() -> None:
    text = io.StringIO()
    Console(file=text, width=100).print(records_table([record("test", 0.59912)]))
    assert "0.5991(40)" in text.getvalue()
    assert "stderr" not in text.getvalue()
    assert list(in_order({"missing": None, "class.mir_bias": 1, "class.mir_stderr": 2, "class.mir": 3})) == [
        "class.mir",
        "class.mir_stderr",
        "class.mir_bias",
        "missing",
    ]
    assert metric_names([record("test", 0.6)]) == ["class.mir"]
    assert metric_names([record("test", 0.6)], errors=True) == ["class.mir", "class.mir_stderr", "class.mir_bias"]


def test_the_error_of_an_exponent_has_no_column() -> None:
    numbers = {"step": 9, "spectrum.alpha": 2.81, "spectrum.alpha_stderr": 0.22, "missing": None}
    text = io.StringIO()
    Console(file=text, width=100).print(records_table([numbers]))
    assert "2.81(22)" in text.getvalue()
    assert "± α" not in text.getvalue()


def test_a_bias_is_subtracted_if_it_is_reliable() -> None:
    plain = record("test", 0.6)
    assert corrected(plain)["class.mir"] == pytest.approx(0.58)
    assert corrected(plain)["class.mir_stderr"] == 0.004
    assert corrected_value(plain, "class.mir") == (pytest.approx(0.58), 0.004)
    small = record("test", 0.6, missing="class.mir_bias: the sample is too small for this number")
    assert corrected(small)["class.mir"] == 0.6
    assert corrected_value(small, "class.mir") is None
    assert corrected_value({**plain, "missing": "sample.class.mir_bias: other"}, "class.mir") is not None


def test_curves_of_one_run_have_intervals() -> None:
    records = [record("test", 0.5 + step / 10, step=step) for step in range(3)]
    [plot], _ = line_plots({"run": [records]}, [["class.mir"]])
    [line] = plot.lines
    assert list(line.errors) == [0.004] * 3
    low, high = line.interval
    assert low == pytest.approx([y - 1.96 * 0.004 for y in line.y])
    assert high == pytest.approx([y + 1.96 * 0.004 for y in line.y])
    [plot], _ = line_plots({"run": [[record("test", 0.5, None, step=step) for step in range(3)]]}, [["class.mir"]])
    assert plot.lines[0].interval == ([], [])
    some = [*records[:2], record("test", 0.9, None, step=2)]
    [plot], _ = line_plots({"run": [some]}, [["class.mir"]])
    assert math.isnan(plot.lines[0].errors[2])


def test_splits_are_compared_within_their_errors() -> None:
    [mir] = read_supported([record("train", 0.604), record("test", 0.600)])
    assert mir == "Training and test MIR differ by 0.004 ± 0.011: within their error."
    [mir] = read_supported([record("train", 0.66), record("test", 0.600)])
    assert mir == "Training and test MIR differ by 0.060 ± 0.011: more than their error."
    for unsupported in (record("train", 0.604, None), record("dev", 0.604), record("train", None)):
        assert read_supported([unsupported, record("test", 0.600)]) == []
    nc1 = [
        {"split": split, "nc1.pinv": value, "nc1.pinv_stderr": 0.1, "nc1.pinv_bias": 0.0}
        for split, value in (("train", 1.0), ("test", 1.1))
    ]
    assert read_supported(nc1) == ["At the end training and test NC1 differ by 0.10 ± 0.28: within their error."]
    assert read_supported([nc1[0], {**nc1[1], "nc1.pinv": 2.0}]) == []


@pytest.mark.parametrize(
    ("shape", "opening", "verdict"),
    [
        ("linear", "On the straight line", "linearly connected"),
        ("bezier", "On the Bézier curve", "connected by this path"),
        ("polychain", "On the bent line", "connected by this path"),
        ("slerp", "On the arc", "connected by this path"),
        (None, "On the path", "connected by this path"),
    ],
)
def test_a_path_is_described_by_its_shape(shape: str | None, opening: str, verdict: str) -> None:
    [sentence] = read_path([{"split": "test", "barrier.error": 0.001}], shape)
    assert sentence.startswith(f"{opening} between the two ends (test)")
    assert verdict in sentence
    assert ("linearly" in sentence) == (shape == "linear")


def test_a_path_without_a_barrier_has_no_sentence() -> None:
    assert read_path([{"split": "test", "barrier.error": None, "barrier.loss": None}]) == []


def test_an_error_barrier_within_two_per_cent_does_not_separate_networks() -> None:
    low = {"split": "test", "barrier.error": 0.001, "barrier.loss": 0.01}
    high = {"split": "test", "barrier.error": 0.3, "barrier.loss": 1.0}
    assert "within the 2%" in read_path([low])[0]
    assert "a barrier parts them" in read_path([high])[0]
