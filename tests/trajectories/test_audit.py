"""Tests of the audit on series with planted faults and without faults."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.checkpoints import Member, open_series
from ckpt_probe.progress import NullProgress
from ckpt_probe.trajectories import audit_series
from ckpt_probe.trajectories.audit import _jumps
from ckpt_probe.trajectories.layout import Finding, WeightOptions
from ckpt_probe.trajectories.measure import Measured
from ckpt_probe.trajectories.series import _turn_ratio, measured_series
from ckpt_probe.trajectories.stream import _tasks
from ckpt_probe.trajectories.turns import Turns, turn_ratios
from tests.trajectories.conftest import STEPS, distances_between

Series = Callable[..., Path]


def audit(path: Path, **options):
    report = audit_series(open_series(path), **options)
    assert report is not None
    return report


def test_a_clean_run_has_no_alarm(states, series: Series, vectors: np.ndarray) -> None:
    report = audit(series(states))
    assert report.alarms == ()
    assert report.verdict.startswith("audit: 10 checkpoints, nothing wrong; largest turn ratio 1.")
    for t in range(1, 9):
        before, after = (np.linalg.norm(vectors[t] - vectors[s]) for s in (t - 1, t + 1))
        expected = (before + after) / np.linalg.norm(vectors[t + 1] - vectors[t - 1])
        assert report.turns.ratios[t] == pytest.approx(expected, rel=1e-10)


def test_every_copy_and_every_inner_exchange_is_detected(vectors: np.ndarray) -> None:
    for i in range(10):
        for j in range(10):
            order = np.arange(10)
            order[i] = j
            distances = distances_between(vectors[order])
            if abs(i - j) > 1:
                assert Turns(distances, [tuple(sorted((i, j)))]).copies == ((i,),), (i, j)
            if 0 < i < j < 9:
                order = np.arange(10)
                order[[i, j]] = j, i
                distances = distances_between(vectors[order])
                assert Turns(distances).exchanged == ((i, j),)


def test_a_file_with_the_weights_of_another_step_is_named(states, series: Series) -> None:
    faulty = list(states)
    faulty[4] = {name: tensor.clone() for name, tensor in states[9].items()}
    report = audit(series(faulty))
    assert "step 60 holds the weights of step 200 (turn ratio " in report.verdict
    assert report.alarms[0].checkpoints == ("step-60",)


def test_many_copies_of_the_last_weights_are_one_finding(states, series: Series) -> None:
    report = audit(series([*states[:4], *[states[9]] * 6]))
    [finding] = report.alarms
    assert finding.text.startswith("6 of 10 checkpoints hold the same weights: step 60, step 80")


def test_copies_between_other_checkpoints_are_distinguished_from_the_original(states, series: Series) -> None:
    faulty = list(states)
    faulty[2] = faulty[5] = states[9]
    report = audit(series(faulty))
    assert "2 of 10 checkpoints hold the weights of step 200: step 20, step 80" in report.verdict


def test_exchanged_files_are_named_with_both_ratios(states, series: Series) -> None:
    faulty = list(states)
    faulty[3], faulty[6] = states[6], states[3]
    report = audit(series(faulty))
    clean, ratios = np.nanmax(audit(series(states)).turns.ratios), report.turns.ratios
    assert report.verdict == (
        "audit: step 40 and step 100 are exchanged: in the other order the largest turn ratio falls from "
        f"{max(ratios[3], ratios[6]):.3g} to {clean:.3g}"
    )


@pytest.mark.parametrize("pair", [(0, 1), (8, 9), (0, 5), (3, 9), (0, 2), (7, 9)])
def test_an_exchange_with_an_end_of_the_run_is_found(vectors: np.ndarray, pair: tuple[int, int]) -> None:
    order = np.arange(10)
    order[list(pair)] = pair[::-1]
    distances = distances_between(vectors[order])
    assert Turns(distances).exchanged == (pair,)


@pytest.mark.parametrize(
    ("pair", "steps"),
    [
        ((1, 3), (0.5, 1.4, 0.2, 2.3)),
        ((1, 4), (0.3, 0.3, 0.3, 0.6, 5.8, 0.2)),
        ((2, 6), (3.1, 2.6, 1.1, 2.3, 0.6, 0.2, 7.6, 1.9)),
    ],
)
def test_one_exchange_of_inner_checkpoints_is_preferred_to_several_and_to_the_reversed_order(pair, steps) -> None:
    lengths = 1 + 0.4 * np.random.default_rng(0).normal(size=(len(steps), 400))
    points = np.concatenate([np.zeros((1, 400)), np.cumsum(np.array(steps)[:, None] * lengths, axis=0)])
    points[list(pair)] = points[list(pair[::-1])]
    assert Turns(distances_between(points)).exchanged == (pair,)


def test_random_walks_with_unequal_steps_have_no_exchange() -> None:
    for seed in range(200):
        random = np.random.default_rng(seed)
        steps = np.exp(0.5 * random.normal(size=(6 + seed % 6, 1))) * random.normal(size=(6 + seed % 6, 100))
        assert Turns(distances_between(np.cumsum(steps, axis=0))).exchanged == (), seed


@pytest.mark.parametrize(("pair", "text"), [((0, 1), "its start"), ((8, 9), "its end")])
def test_exchanged_files_at_the_ends_are_named(states, series: Series, pair: tuple[int, int], text: str) -> None:
    faulty, clean = list(states), audit(series(states)).turns.ratios
    faulty[pair[0]], faulty[pair[1]] = states[pair[1]], states[pair[0]]
    [finding] = [finding for finding in audit(series(faulty)).alarms if finding.kind == "exchanged"]
    assert f"are exchanged: the run turns back at {text} (turn ratio " in finding.text
    assert finding.text.endswith(f", and {clean[1 if pair[0] == 0 else 8]:.3g} in the other order)")
    assert finding.checkpoints == (f"step-{STEPS[pair[0]]}", f"step-{STEPS[pair[1]]}")


def test_a_fall_out_of_noise_at_the_end_is_no_exchange() -> None:
    random = np.random.default_rng(0)
    points = np.cumsum(np.full((12, 400), 0.1), axis=0) + random.normal(size=(12, 400))
    points[-1] = np.full(400, 1.2)
    distances = distances_between(points)
    assert distances[-3, -1] < distances[-3, -2]
    assert Turns(distances).exchanged == ()


def test_a_first_update_with_learning_rate_zero_is_no_alarm(states, series: Series) -> None:
    report = audit(series([states[0], *states], (0, 1, *STEPS[1:])))
    assert report.alarms == ()
    assert "nothing wrong" in report.verdict
    assert report.verdict.endswith("step 0 and step 1 hold the same weights, as after an update with learning rate 0")


def test_oscillation_is_described_without_an_alarm() -> None:
    points = np.random.default_rng(0).normal(size=(12, 400))
    points[:, 0] += np.linspace(0, 1, 12)
    distances = distances_between(points)
    report = Turns(distances)
    assert (report.exchanged, report.strays, report.copies) == ((), (), ())
    assert report.oscillation >= 8


def test_a_checkpoint_of_another_run_is_far_from_thedistances_between(vectors: np.ndarray) -> None:
    points = vectors.copy()
    points[5] += 20 * np.random.default_rng(0).normal(size=points.shape[1])
    distances = distances_between(points)
    assert Turns(distances).strays == (5,)


def test_the_turn_ratio_of_a_group_follows_from_its_steps_or_has_a_reason() -> None:
    unbroken = np.zeros(3, dtype=bool)

    def ratio(before: float, after: float, between: float, broken: np.ndarray = unbroken, t: int = 1) -> Any:
        return _turn_ratio(np.array([before, after]), np.array([between]), broken, t)

    # Steps of lengths 2 and 3 at a right angle, and along one line.
    assert ratio(4.0, 9.0, 0.0) == (pytest.approx(5 / math.sqrt(13)), None)
    assert ratio(4.0, 9.0, 6.0) == (pytest.approx(1), None)
    for arguments, reason in (
        ((0.0, 0.0, 0.0), "no motion"),
        ((4.0, 4.0, -4.0), "infinite: the checkpoints on both sides are equal"),
        ((4.0, 9.0, 0.0, np.array([False, False, True])), "NaN or infinite weights"),
        ((4.0, 9.0, 0.0, unbroken, 2), "needs a checkpoint before and one after"),
    ):
        assert ratio(*arguments) == (None, f"audit.turn_ratio: {reason}")


def test_turn_ratios_of_known_routes_equal_their_closed_forms() -> None:
    def ratios(points: np.ndarray) -> np.ndarray:
        return turn_ratios(distances_between(points))[1:-1]

    np.testing.assert_allclose(ratios(np.arange(5.0)[:, None]), 1)
    corner = np.array([[0.0, 0], [1, 0], [1, 1]])
    np.testing.assert_allclose(ratios(corner), np.sqrt(2))
    assert ratios(np.array([[0.0], [1], [0]])) == [np.inf]


def states_with(states, step: int, name: str, change: Callable[[torch.Tensor], torch.Tensor]):
    states = [dict(state) for state in states]
    states[step][name] = change(states[step][name].clone())
    return states


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("3.weight", lambda t: t.masked_fill(t == t.max(), torch.nan), "step 80: NaN in 3.weight"),
        ("3.weight", lambda t: t.masked_fill(t == t.max(), torch.inf), "step 80: infinite values in 3.weight"),
        ("3.bias", torch.zeros_like, "step 80: 3.bias is constant"),
        ("3.weight", lambda t: 1000 * t, "step 80: the norm of 3.weight jumps from"),
        ("1.running_var", lambda t: -t, "step 80: running variances that are not positive in 1.running_var"),
        ("1.weight", lambda t: t[:-1], "1.weight changes its shape at step 80: (32,) to (31,)"),
    ],
)
def test_unhealthy_tensors_are_alarms(states, series: Series, name: str, change, text: str) -> None:
    report = audit(series(states_with(states, 5, name, change)))
    assert text in " ".join(finding.text for finding in report.alarms)


def test_the_record_of_a_checkpoint_names_its_findings_about_parameters_and_buffers(states, series: Series) -> None:
    bad = states_with(states_with(states, 5, "1.running_var", torch.neg), 5, "3.bias", torch.zeros_like)
    findings = {record["step"]: record["audit.findings"] for record in cp.weights(series(bad), only="audit")}
    assert findings.pop(80) == (
        "step 80: 3.bias is constant; step 80: running variances that are not positive in 1.running_var"
    )
    assert set(findings.values()) == {None}


def test_nan_at_several_steps_is_one_finding(states, series: Series) -> None:
    bad = states_with(states, 5, "3.weight", lambda t: t.masked_fill(t == t.max(), torch.nan))
    found = audit(series(states_with(bad, 7, "3.weight", lambda t: t.masked_fill(t == t.max(), torch.nan))))
    assert [finding.text for finding in found.alarms] == ["step 80, step 130: NaN in 3.weight"]


@pytest.mark.parametrize("step", range(3, 7))
def test_a_damaged_checkpoint_far_from_a_short_route_is_not_exchanged(step: int) -> None:
    random = np.random.default_rng(0)
    points = np.cumsum(0.5 + random.normal(size=(9, 20)), axis=0)
    points[step] += 100 * random.normal(size=20)
    turns = Turns(distances_between(points))
    assert turns.strays == (step,)
    assert not turns.exchanged


def test_checkpoints_with_the_names_of_a_wrapper_are_no_other_network(states, series: Series) -> None:
    for wrapped in (range(3), range(3, len(states))):
        prefixes = ["_orig_mod." if number in wrapped else "" for number in range(len(states))]
        mixed = [{prefix + name: state[name] for name in state} for prefix, state in zip(prefixes, states, strict=True)]
        texts = [finding.text for finding in audit(series(mixed)).alarms]
        assert len(texts) == 3
        assert "left out: tensor names lose '_orig_mod' to fit" in texts[0]
        assert texts[0].endswith(", which is not done here; save all with the same names")


def test_new_and_missing_tensors_and_another_network_are_alarms(states, series: Series, tmp_path: Path) -> None:
    mixed = [dict(state) for state in states]
    for state in mixed[4:]:
        state["extra.weight"] = torch.randn(5, 5)
        del state["5.bias"]
    mixed[7] = {"other.weight": torch.randn(200, 200)}
    report = audit(series(mixed))
    texts = [finding.text for finding in report.alarms]
    assert "step-130 is of another network: it has no 0.bias, 0.weight, 1.bias and 7 more" in texts
    assert "extra.weight appears at step 60" in texts
    assert "5.bias disappears at step 60" in texts
    assert "extra.weight appears at step 60" in texts
    assert "5.bias disappears at step 60" in texts
    layout = [finding for finding in report.findings if finding.kind == "layout"]
    assert [(finding.tensor, finding.checkpoints) for finding in layout] == [("5.bias", ()), ("extra.weight", ())]


def test_blocks_of_a_large_tensor_are_sampled_evenly_from_its_first_to_its_last() -> None:
    assert [start for task in _tasks(100, 10, None) for start in task] == list(range(0, 100, 10))
    assert [start for task in _tasks(100, 10, 35) for start in task] == [0, 40, 90]
    assert [start for task in _tasks(100, 10, 5) for start in task] == [0]


def test_the_jump_of_a_norm_names_its_checkpoint_and_tensor(states, series: Series) -> None:
    report = audit(series(states_with(states, 5, "3.weight", lambda t: 1000 * t)))
    jumps = [(finding.checkpoints, finding.tensor) for finding in report.alarms if finding.kind == "jump"]
    assert (("step-80",), "3.weight") in jumps


def test_a_jump_states_both_norms_its_checkpoint_and_its_tensor() -> None:
    norms = np.array([[1.0, 1.1, 1.2, 1.25, 8.0, 8.1], [1, 1.1, 1.2, 1.25, 1.3, 1.35], [4, 1, 1.1, 1.2, 1.3, 1.4]])
    arrays = {"squares": norms**2, "broken": np.zeros((3, 6, 2)), "entries": np.full(3, 20)}
    measured = Measured(("a", "b", "c"), 3, {}, arrays, np.zeros((5, 5)), exact=True)
    members = [Member(Path(f"step-{t}.pt"), f"step-{t}", t) for t in range(6)]
    [jump] = _jumps(members, measured)
    assert jump == Finding("jump", "step 4: the norm of a jumps from 1.25 to 8", ("step-4",), "a")
    # Less than ten times the largest other change is no jump, nor is the largest in a broken or small tensor.
    for change in (
        {"squares": (norms[[1, 1, 2]] + 0.2) ** 2},
        {"broken": np.ones((3, 6, 2))},
        {"entries": np.full(3, 15)},
    ):
        assert list(_jumps(members, replace(measured, arrays={**arrays, **change}))) == []


def test_tensors_that_do_not_change_are_one_finding_for_each_span(states, series: Series) -> None:
    frozen = [dict(state) for state in states[:8]]
    for t in (1, 2, 3):
        frozen[t]["3.weight"], frozen[t]["3.bias"] = states[1]["3.weight"], states[1]["3.bias"]
    for t in (6, 7):
        frozen[t]["0.bias"] = states[5]["0.bias"]
    found = [finding for finding in audit(series(frozen)).findings if finding.kind == "frozen"]
    assert found == [
        Finding("frozen", "2 of 8 tensors do not change from step 10 to step 40: 3.bias, 3.weight",
                ("step-10", "step-40"), "3.bias", alarm=False),
        Finding("frozen", "0.bias does not change from step 80 to step 130",
                ("step-80", "step-130"), "0.bias", alarm=False),
    ]  # fmt: skip


def test_tensors_that_are_no_parameters_or_change_their_type_are_described(states, series: Series) -> None:
    kept = [
        {**state, "codes.qweight": torch.zeros(4, 4, dtype=torch.int32), "ids": torch.arange(3)} for state in states[:4]
    ]
    kept[2] |= {"3.weight": kept[2]["3.weight"].double(), "5.bias": kept[2]["5.bias"].double()}
    kept[3] |= {"3.weight": kept[3]["3.weight"].double(), "5.bias": kept[3]["5.bias"].double()}
    [dtype, quantised, integer] = audit(series(kept, suffix=".safetensors")).findings
    assert dtype == Finding("dtype", "3.weight, 5.bias: F64 from step 20 on, F32 before", (), "3.weight", alarm=False)
    assert quantised.text.startswith("quantised, not compared: 1 tensors, first codes.qweight (")
    assert (quantised.kind, quantised.checkpoints, quantised.tensor, quantised.alarm) == (
        *("quantised", (), "codes.qweight", False),
    )
    text = "not floating-point numbers, not compared: ids"
    assert integer == Finding("integer", text, (), "ids", alarm=False)


def test_an_oscillating_run_says_so_in_its_verdict_and_in_a_note(states, series: Series) -> None:
    random = torch.Generator().manual_seed(0)
    noisy = [
        {name: tensor + 0.2 * torch.randn(tensor.shape, generator=random) for name, tensor in state.items()
         if tensor.is_floating_point() and "running" not in name}
        for state in [states[0]] * 8
    ]  # fmt: skip
    report = audit(series(noisy))
    assert report.turns.oscillation == 6
    assert report.verdict.startswith("audit: 8 checkpoints, nothing wrong; largest turn ratio ")
    assert report.verdict.endswith("; oscillates at 6 consecutive checkpoints")
    assert report.notes == ["oscillates: 6 consecutive checkpoints turn back, as with a large learning rate"]
    assert [(finding.kind, finding.alarm) for finding in report.findings] == [("oscillation", False)]


def test_a_checkpoint_of_another_route_is_named_with_both_ratios(states, series: Series) -> None:
    far = states_with(states, 5, "3.weight", lambda t: t + torch.randn(t.shape, generator=torch.manual_seed(1)))
    report = audit(series(far))
    [stray] = [finding for finding in report.findings if finding.kind == "stray"]
    rest = np.delete(np.arange(10), 5)
    points = np.stack([np.concatenate([state[name].flatten() for name in state if "running" not in name
                                       and "num_batches" not in name]) for state in far])[rest]  # fmt: skip
    largest = np.nanmax(turn_ratios(distances_between(points.astype(float))))
    text = (
        f"step 80 is far from the route of the others (turn ratio {report.turns.ratios[5]:.3g}); without it the "
        f"largest is {largest:.3g}"
    )
    assert stray == Finding("stray", text, ("step-80",))


def test_findings_about_the_health_of_tensors_name_checkpoints_tensors_and_kind(states, series: Series) -> None:
    kept = [dict(state) for state in states[:6]]
    for t in (2, 4):
        kept[t]["3.weight"] = kept[t]["3.weight"].clone()
        kept[t]["3.weight"][0, 0] = torch.inf
    kept[3]["5.bias"], kept[3]["3.bias"] = torch.zeros(10), torch.ones(24)
    kept[5]["1.running_var"] = -kept[5]["1.running_var"]
    kept[1]["0.weight"], kept[1]["0.extra"] = kept[1]["0.weight"].clone(), kept[1]["0.weight"].clone()
    for t in (0, 2, 3, 4, 5):
        kept[t]["0.extra"] = torch.full((32, 64), float(t)) + torch.arange(64)
    found = {finding.kind: finding for finding in audit(series(kept)).alarms}
    assert found["inf"] == Finding(
        "inf", "step 20, step 60: infinite values in 3.weight", ("step-20", "step-60"), "3.weight"
    )
    assert found["constant"] == Finding("constant", "step 40: 3.bias, 5.bias are constant", ("step-40",), "3.bias")
    text = "step 80: running variances that are not positive in 1.running_var"
    assert found["variance"] == Finding("variance", text, ("step-80",), "1.running_var")
    text = "step 10: 0.weight equals 0.extra, not tied to it"
    assert found["repeated"] == Finding("repeated", text, ("step-10",), "0.weight")


def test_a_verdict_has_the_first_alarms_and_the_number_of_the_others(states, series: Series) -> None:
    kept = [{**state, f"new{t}.weight": torch.ones(3, 3)} for t, state in enumerate(states[:6])]
    report = audit(series(kept))
    texts = [finding.text for finding in report.alarms]
    assert len(texts) == 6
    assert report.verdict == f"audit: {'; '.join(texts[:4])}; and 2 more"
    assert texts[0] == "new0.weight disappears at step 10"


def test_copies_in_a_sample_are_confirmed_by_all_bytes(series: Series) -> None:
    random = torch.Generator().manual_seed(0)
    weights = [torch.randn(40_000, generator=random) for _ in range(4)]
    almost = weights[1].clone()
    almost[-1] += 1
    for last, kinds in ((weights[1].clone(), ["copy"]), (almost, [])):
        path = series([{"w": tensor} for tensor in (*weights, last)], suffix=".safetensors")
        options = WeightOptions(parts=("audit",), sample=4096, sketch=False, cache=False)
        report = measured_series(open_series(path), options, NullProgress()).audit
        assert report is not None
        assert [finding.kind for finding in report.findings if finding.kind == "copy"] == kinds
        for file in path.iterdir():
            file.unlink()


def test_records_count_tensors_that_did_not_change_and_entries_that_are_not_finite(states, series: Series) -> None:
    kept = [dict(state) for state in states[:4]]
    kept[1]["3.weight"] = states[0]["3.weight"]
    kept[2]["0.weight"] = states[2]["0.weight"].clone()
    kept[2]["0.weight"][0, :3], kept[2]["0.weight"][1, 0] = torch.nan, torch.inf
    records = list(cp.weights(series(kept), only="audit"))
    assert [record["audit.unchanged"] for record in records] == [None, 1, 0, 0]
    assert [(record["audit.nan"], record["audit.inf"]) for record in records] == [(0, 0), (0, 0), (3, 1), (0, 0)]
    first = (records[0]["missing"] or "").split("; ")
    assert first == [
        "audit.turn_ratio: needs a checkpoint before and one after",
        "audit.unchanged: the first checkpoint",
    ]
    assert "audit.unchanged" not in (records[1]["missing"] or "")


def test_tied_tensors_give_no_alarm_and_frozen_and_repeated_ones_are_reported(states, series: Series) -> None:
    tied = [{**state, "head.weight": state["5.weight"], "0.weight": states[0]["0.weight"]} for state in states]
    report = audit(series(tied))
    assert report.alarms == ()
    assert "0.weight does not change from step 0 to step 200" in [finding.text for finding in report.findings]
    repeated = [dict(state, again=state["5.bias"] + 1) for state in states]
    repeated[6]["3.copy"] = repeated[6]["3.weight"]
    for t, state in enumerate(repeated):
        state["3.copy"] = state["3.weight"] if t == 6 else torch.randn(24, 32)
    texts = [finding.text for finding in audit(series(repeated)).alarms]
    assert "step 100: 3.weight equals 3.copy, not tied to it" in texts or (
        "step 100: 3.copy equals 3.weight, not tied to it" in texts
    )


def test_a_step_that_contradicts_the_file_name_is_an_alarm(states, tmp_path: Path) -> None:
    for t, state in enumerate(states[:3]):
        torch.save({"state_dict": state, "global_step": 10 * t if t != 1 else 77}, tmp_path / f"step={10 * t}.ckpt")
    texts = " ".join(finding.text for finding in audit(tmp_path).alarms)
    assert "its name says step 10" in texts
    assert "says 77" in texts
    torch.save({"state_dict": states[0], "global_step": 0}, tmp_path / "step=10.ckpt")
    texts = " ".join(finding.text for finding in audit(tmp_path).alarms)
    assert "step 0 and step=10 hold the same weights" in texts


def test_quantised_and_integer_tensors_are_named_and_the_others_are_compared(states, series: Series) -> None:
    codes = {"codes.qweight": torch.zeros(4, 4, dtype=torch.int32), "ids": torch.arange(3)}
    report = audit(series([{**state, **codes} for state in states]))
    texts = [finding.text for finding in report.findings]
    assert any(text.startswith("quantised, not compared: 1 tensors, first codes.qweight") for text in texts)
    assert any(text.startswith("not floating-point numbers, not compared: ids") for text in texts)
    assert report.alarms == ()


def test_series_of_one_or_two_checkpoints_have_no_turns(states, series: Series) -> None:
    assert audit(series(states[:1])).verdict == (
        "audit: one checkpoint, nothing wrong with its tensors; turns need at least three"
    )
    assert audit(series(states[:2])).verdict == "audit: 2 checkpoints, nothing wrong; turns need at least three"
    twice = audit(series([states[0], states[0]]))
    assert twice.verdict == "audit: step 0 and step 10 hold the same weights"
