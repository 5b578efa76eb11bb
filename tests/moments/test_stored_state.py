"""Tests that stored moments give the same record after loading, and that invalid states are refused by name."""

import re

import pytest
import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.moments import Moments
from ckpt_probe.moments.entropies.levels import Options
from ckpt_probe.moments.record import compute_record

torch.manual_seed(0)
LABELS = torch.arange(120) % 4
FEATURES = torch.randn(120, 5) + 2 * torch.randn(4, 5)[LABELS]
WEIGHTS = torch.randn(4, 5)
KINDS = {"rows": (15, 2**31), "second": (120, 2**31), "total": (120, 600)}
"""The form in which unit rows are stored, by the number of rows and the memory."""


def moments_of_kind(kind: str) -> Moments:
    rows, memory = KINDS[kind]
    accumulated = Moments(4, memory=memory)
    for part in torch.arange(rows).split(7):
        accumulated.update(FEATURES[part], LABELS[part])
    return accumulated


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_moments_give_the_same_record_and_accept_updates(kind: str) -> None:
    saved, loaded = moments_of_kind(kind), Moments(4, memory=KINDS[kind][1])
    state = saved.state_dict()
    assert kind in state
    loaded.load_state_dict(state)
    assert loaded.compute(WEIGHTS) == saved.compute(WEIGHTS)
    for accumulator in (saved, loaded):
        accumulator.update(FEATURES[:9], LABELS[:9])
    first, second = saved.compute(WEIGHTS), loaded.compute(WEIGHTS)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert second[name] == (pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value), name


@pytest.mark.parametrize("kind", KINDS)
def test_merged_parts_equal_one_pass(kind: str) -> None:
    rows, memory = KINDS[kind]
    parts = [Moments(4, memory=memory) for _ in range(2)]
    for part, chosen in zip(parts, (slice(0, rows // 3), slice(rows // 3, rows)), strict=True):
        part.update(FEATURES[chosen], LABELS[chosen])
    parts[0].merge(parts[1])
    merged, complete = parts[0].compute(WEIGHTS), moments_of_kind(kind).compute(WEIGHTS)
    for name, value in complete.items():
        assert merged[name] == (pytest.approx(value, rel=1e-8, abs=1e-10) if isinstance(value, float) else value), name


def test_a_part_with_second_moments_of_each_class_is_added_to_one_with_their_total() -> None:
    coarse, fine = Moments(4, memory=KINDS["total"][1]), Moments(4)
    coarse.update(FEATURES[:50], LABELS[:50])
    fine.update(FEATURES[50:], LABELS[50:])
    assert "total" in coarse.state_dict()
    assert "second" in fine.state_dict()
    coarse.merge(fine)
    merged, complete = coarse.compute(WEIGHTS), moments_of_kind("total").compute(WEIGHTS)
    for name, value in complete.items():
        assert merged[name] == (pytest.approx(value, rel=1e-8, abs=1e-10) if isinstance(value, float) else value), name


def state_with(state: dict[str, Tensor], name: str, value: Tensor | None) -> dict[str, Tensor]:
    copied = dict(state)
    if value is None:
        del copied[name]
    else:
        copied[name] = value
    return copied


@pytest.mark.parametrize("name", ["counts", "means", "squares", "within", "unit_counts", "left_out"])
def test_a_missing_part_is_an_error(name: str) -> None:
    with pytest.raises(DataError, match=rf"missing {name}"):
        Moments(4).load_state_dict(state_with(moments_of_kind("second").state_dict(), name, None))


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        ("second", "second", None, "missing one of rows, second, total"),
        ("rows", "row_labels", None, "missing one of rows, second, total"),
        ("second", "counts", torch.ones(4), "counts is torch.float32, expected torch.int64"),
        ("second", "means", torch.ones(4, 5), "means is torch.float32, expected torch.float64"),
        ("second", "counts", torch.ones(3, dtype=torch.int64), "counts has shape (3,), expected (4,)"),
        ("second", "within", torch.zeros(4, 4).double(), "within has shape (4, 4), expected (5, 5)"),
        ("second", "squares", torch.zeros(4, 1).double(), "squares has shape (4, 1), expected (4,)"),
        ("second", "left_out", torch.zeros(1, dtype=torch.int64), "left_out has shape (1,), expected ()"),
        ("second", "second", torch.zeros(4, 5, 4).double(), "second has shape (4, 5, 4), expected (None, 5, 5)"),
        ("second", "second", torch.zeros(3, 5, 5).double(), "second covers 3 classes, unit_counts 4"),
        ("total", "total", torch.zeros(2, 5, 5).double(), "total has shape (2, 5, 5), expected (1, 5, 5)"),
        ("rows", "rows", torch.zeros(15, 4).double(), "rows has shape (15, 4), expected (None, 5)"),
        ("rows", "row_labels", torch.zeros(15, dtype=torch.int64), "row_labels does not agree with unit_counts"),
        ("second", "squares", torch.full((4,), torch.nan).double(), "squares contains NaN or infinity"),
        ("second", "counts", torch.full((4,), -1), "counts contains negative numbers"),
        ("second", "unit_counts", torch.full((4,), 31), "unit_counts does not agree with counts"),
        ("second", "unit_counts", torch.full((3,), 30), "unit_counts does not agree with counts"),
    ],
)
def test_an_invalid_part_is_named(kind: str, name: str, value: Tensor | None, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        Moments(4).load_state_dict(state_with(moments_of_kind(kind).state_dict(), name, value))


def test_fewer_classes_than_were_stored_are_refused() -> None:
    with pytest.raises(DataError, match="stored moments cover 4 classes, but there are only 3"):
        Moments(3).load_state_dict(moments_of_kind("second").state_dict())


def test_a_state_with_the_parts_of_the_requested_families_is_enough() -> None:
    state = moments_of_kind("second").state_dict()
    few = Moments(4, only=["nc3"])
    few.load_state_dict({name: state[name] for name in ("counts", "means", "squares")})
    assert few.compute(WEIGHTS)["nc3.duality"] == pytest.approx(
        moments_of_kind("second").compute(WEIGHTS)["nc3.duality"]
    )


def test_missing_numbers_of_classes_have_a_reason() -> None:
    """Cover a single class, and samples that do not differ within their classes."""
    alone = Moments(4)
    alone.update(FEATURES[LABELS == 1], LABELS[LABELS == 1])
    record = alone.compute(WEIGHTS)
    assert {"nc1.pinv", "nc2.etf", "class.mir", "reference.mir", "reference.uniformity"} <= record.keys()
    assert record["reference.uniformity"] is None
    assert "only one class has samples" in str(record["missing"])
    still = Moments(4)
    still.update(FEATURES[:4].repeat(3, 1), LABELS[:4].repeat(3))
    record = still.compute(WEIGHTS)
    assert record["nc1.pinv"] == pytest.approx(0, abs=1e-12)
    assert record["separation"] is None
    assert "separation: samples do not differ within their classes" in str(record["missing"])


def test_rows_per_class_contain_the_entropy_of_their_class() -> None:
    reading = compute_record(moments_of_kind("second").inputs(WEIGHTS, options=Options(details=True)))
    expected = {}
    for label in range(4):
        unit = torch.nn.functional.normalize(FEATURES[label == LABELS].double(), dim=1)
        values = torch.linalg.eigvalsh(unit.T @ unit / len(unit)).clamp_min(1e-300)
        expected[label] = float(-(values * values.log()).sum())
    entropies_by_class = {row["class"]: row["within.entropy"] for row in reading.per_class}
    assert entropies_by_class == pytest.approx(expected, rel=1e-9)
