"""The plain-language reading says what the numbers say, in either direction."""

import pytest

from ckpt_probe.reporting.reading import read_path, read_run


def record(step: int, split: str, **values: float | None) -> dict:
    names = {name.replace("__", "."): value for name, value in values.items()}
    return {"step": step, "split": split, **names}


def test_collapse_is_told_with_its_own_numbers() -> None:
    told = " ".join(
        read_run(
            [
                record(
                    10, "train", accuracy=1.0, nc1__pinv=0.05, within__entropy_mean=0.5, class__mir=0.9, class__hdr=0.1
                ),
                record(
                    0, "train", accuracy=0.1, nc1__pinv=5.0, within__entropy_mean=1.5, class__mir=0.5, class__hdr=0.3
                ),
                record(10, "test", accuracy=0.97, nc1__pinv=0.2),
            ]
        )
    )
    assert "from 0.100 at step 0 to 1.000 at step 10" in told
    assert "first seen at step 10" in told
    assert "test accuracy ended at 0.970" in told
    assert "fell 5 → 0.05" in told
    assert "fell 1.5 → 0.5 nats (both are 0 at full collapse)" in told
    assert "4 times that on training data" in told


def test_the_opposite_run_is_told_the_other_way_round() -> None:
    first = record(0, "train", nc1__pinv=1.0, class__mir=0.9, reference__mir=0.95)
    last = record(9, "train", nc1__pinv=2.0, class__mir=0.5, reference__mir=0.95)
    told = " ".join(read_run([first, last, record(9, "test", nc1__pinv=1.0)]))
    assert "(NC1) rose 1 → 2 (it is 0 at full collapse)" in told
    assert "MIR 0.900 → 0.500, no nearer to its value at collapse, 0.950" in told
    assert "only 0.5 times" in told


def course(*values: float, reference: float | None = 0.95, **more: float) -> str:
    """Return the sentence about MIR of a run that has these values."""
    records = [record(s, "train", class__mir=v, reference__mir=reference, **more) for s, v in enumerate(values)]
    [sentence] = read_run(records)
    return sentence


def test_the_course_of_a_number_is_read_against_its_value_at_collapse() -> None:
    assert "passed its value at collapse, 0.950, and ended beyond it" in course(0.5, 1.2)
    assert "passed its value at collapse, 0.950, and moved away from it" in course(0.5, 1.0, 1.2)
    assert "passed its value at collapse, 0.950, and moved away from it" in course(1.2, 0.94, 0.5)
    assert ", nearer to its value at collapse" in course(0.5, 0.951)
    assert "0.500 → 0.700, nearest to its value at collapse, 0.950, at step 1 (0.940)" in course(0.5, 0.94, 0.7)
    assert "no nearer to its value at collapse" in course(0.9, 0.5)
    assert course(0.9) == "Class means and classifier rows: MIR 0.900; its value at collapse is 0.950."
    assert "0.500 → 0.700, without a value at collapse" in course(0.5, 0.7, reference=None)


def test_classes_of_one_sample_are_named_beside_nc1() -> None:
    records = [record(s, "train", nc1__pinv=0.256, classes_of_one_sample=40, classes_present=90) for s in (0, 9)]
    assert "40 of 90 classes have one sample, and so no spread" in read_run(records)[0]


def test_one_checkpoint_is_not_read_as_a_course() -> None:
    told = " ".join(read_run([{"checkpoint": "last", "split": "train", "accuracy": 0.5, "nc1.pinv": 2.0}]))
    assert "Training accuracy is 0.500 at last." in told
    assert "(NC1) is 2 (" in told
    assert "None" not in told


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


def test_missing_numbers_leave_their_sentences_out() -> None:
    assert read_run([record(0, "train", nc1__pinv=None, accuracy=None)]) == []
    assert read_run([]) == []
    assert read_path([{"split": "test", "barrier.error": None, "barrier.loss": None}]) == []


def test_a_barrier_is_judged_by_the_published_rule() -> None:
    low = {"split": "test", "barrier.error": 0.001, "barrier.loss": 0.01}
    high = {"split": "test", "barrier.error": 0.3, "barrier.loss": 1.0}
    assert "within the 2%" in read_path([low])[0]
    assert "a barrier parts them" in read_path([high])[0]
