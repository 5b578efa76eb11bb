"""The plain-language reading says what the numbers say, in either direction."""

from ckpt_probe.report.reading import read_path, read_run


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


def test_missing_numbers_leave_their_sentences_out() -> None:
    assert read_run([record(0, "train", nc1__pinv=None, accuracy=None)]) == []
    assert read_run([]) == []
    assert read_path([{"split": "test", "barrier.error": None, "barrier.loss": None}]) == []


def test_a_barrier_is_judged_by_the_published_rule() -> None:
    low = {"split": "test", "barrier.error": 0.001, "barrier.loss": 0.01}
    high = {"split": "test", "barrier.error": 0.3, "barrier.loss": 1.0}
    assert "within the 2%" in read_path([low])[0]
    assert "a barrier parts them" in read_path([high])[0]
