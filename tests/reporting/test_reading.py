"""Tests of the sentences about paths."""

import pytest

from ckpt_probe.reporting.reading import read_path


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
