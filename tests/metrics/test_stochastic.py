"""The sampled joint entropy against the exact one: quadrature, operator, eigenvectors, error bars; when it stops."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.metrics import stochastic
from ckpt_probe.metrics.lanczos import Lanczos, Operator, Quadratures
from ckpt_probe.metrics.stochastic import Sampling, controlled, estimate_entropies
from ckpt_probe.moments import Moments, grouping
from ckpt_probe.moments.levels import joint_operator, routes
from ckpt_probe.moments.levels.joint_operator import JointOperator

GIB = 2**30


def data(samples: int = 300, features: int = 24, classes: int = 12, shared: float = 0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    labels = torch.arange(samples) % classes
    noise = torch.randn(samples, features, generator=generator, dtype=torch.float64)
    offset = shared * torch.randn(features, generator=generator, dtype=torch.float64)
    return (weights[labels] + noise + offset).to(dtype), labels, weights


def joint_matrix(features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(features.double())
    heads = torch.nn.functional.normalize(weights)[labels]
    return (unit @ unit.T) * (heads @ heads.T) / len(unit)


def entropy(matrix: Tensor) -> float:
    values = torch.linalg.eigvalsh(matrix)
    values = values[values > 1e-14]
    return float(-(values * values.log()).sum())


def operator_of(features: Tensor, labels: Tensor, weights: Tensor, memory: int = GIB, blocks: int = 1) -> JointOperator:
    heads = torch.nn.functional.normalize(weights)
    pairs = list(zip(features.chunk(blocks), labels.chunk(blocks), strict=True))
    return JointOperator(lambda: pairs, heads, torch.bincount(labels), memory=memory)


def lanczos(operator: Operator, probes: Tensor, steps: int) -> Quadratures:
    return Lanczos(operator, probes).after(steps).quadratures()


def test_a_whole_recurrence_is_the_quadratic_form_itself() -> None:
    matrix = joint_matrix(*data(20, 8, 4))
    probes = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    run = Lanczos(matrix.matmul, probes).after(20)
    found = run.quadratures()
    values, vectors = torch.linalg.eigh(matrix)
    inside = (vectors.T @ probes).square()
    expected = (inside * -torch.xlogy(values, values)[:, None]).sum(dim=0)
    assert torch.allclose(found.integrate(1.0), expected, rtol=1e-9)
    assert torch.allclose(found.integrate(2.0), (inside * values.square()[:, None]).sum(dim=0), rtol=1e-9)
    assert torch.allclose(run.traces, (probes * (matrix @ probes)).sum(dim=0), rtol=1e-12)


def test_a_recurrence_that_ends_early_is_padded() -> None:
    matrix = torch.diag(torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64))
    found = lanczos(matrix.matmul, torch.ones(4, 1, dtype=torch.float64), 4)
    assert float(found.integrate(1.0)) == pytest.approx(math.log(2), rel=1e-12)


@pytest.mark.parametrize(("blocks", "memory"), [(1, GIB), (7, GIB), (7, 1000)])
@pytest.mark.parametrize("classes", [3, 12, 60])
def test_the_operator_is_the_joint_matrix(blocks: int, memory: int, classes: int) -> None:
    features, labels, weights = data(150, 16, classes)
    shuffled = torch.randperm(150, generator=torch.Generator().manual_seed(2))
    features, labels = features[shuffled], labels[shuffled]
    x = torch.randn(150, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = operator_of(features, labels, weights, memory, blocks)(x)
    expected = joint_matrix(features, labels, weights) @ x
    assert float((found - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [3, 60])
def test_rows_of_half_precision_are_held_as_such(dtype: torch.dtype, classes: int) -> None:
    features, labels, weights = data(150, 16, classes)
    features = features.to(dtype)
    operator = operator_of(features, labels, weights, blocks=3)
    x = torch.randn(150, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = joint_matrix(features, labels, weights) @ x
    assert float((operator(x) - expected).norm() / expected.norm()) < 1e-6
    assert operator._held is not None
    assert operator._held.rows.dtype == dtype


def test_blocks_of_two_precisions_lose_no_digits() -> None:
    features, labels, weights = data(150, 16, 60)
    pairs = [(features[:50].half(), labels[:50]), (features[50:], labels[50:])]
    heads = torch.nn.functional.normalize(weights)
    operator = JointOperator(lambda: pairs, heads, torch.bincount(labels), memory=GIB)
    x = torch.randn(150, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole = torch.cat([features[:50].half().double(), features[50:]])
    expected = joint_matrix(whole, labels, weights) @ x
    assert float((operator(x) - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("memory", [GIB, 1000])
def test_classes_of_any_size_cut_where_they_are_long(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "ROWS_AT_ONCE", 16)
    monkeypatch.setattr(joint_operator, "GROUP", 7)
    generator = torch.Generator().manual_seed(0)
    # Sizes by Zipf's law: some classes of one row, one of nearly half of all.
    labels = torch.cat([torch.arange(40), (40 * torch.rand(200, generator=generator) ** 6).long()])
    features, weights = (torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (240, 40))
    x = torch.randn(240, 3, generator=generator, dtype=torch.float64)
    found = operator_of(features, labels, weights, memory, blocks=3)(x)
    expected = joint_matrix(features, labels, weights) @ x
    assert float((found - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize(("dtype", "at_once"), [(torch.float64, 4096), (torch.float16, 4096), (torch.float64, 16)])
def test_many_rows_of_many_classes_take_vectors_of_the_squared_width(
    dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "ROWS_AT_ONCE", at_once)
    monkeypatch.setattr(joint_operator, "GROUP", 7)
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(40), (40 * torch.rand(200, generator=generator) ** 6).long()])
    features, weights = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (240, 40))
    features = features.to(dtype)
    features[7] = 0
    operator = JointOperator(
        lambda: [(features, labels)],
        torch.nn.functional.normalize(weights),
        torch.bincount(labels[features.abs().amax(dim=1) > 0], minlength=40),
        memory=GIB,
    )
    assert operator.size == 64
    found = operator(torch.eye(64, dtype=torch.float64))
    unit, kept = torch.nn.functional.normalize(features.double()), torch.arange(240) != 7
    of_labels = torch.nn.functional.normalize(weights)[labels]
    rows = (of_labels[:, :, None] * unit[:, None, :]).flatten(1)[kept]
    assert torch.allclose(found, rows.T @ rows / 239, atol=1e-7)
    expected = torch.linalg.eigvalsh(joint_matrix(features[kept], labels[kept], weights))
    assert torch.allclose(torch.linalg.eigvalsh(found), expected[-64:], atol=1e-6)


@pytest.mark.parametrize("memory", [GIB, 1000])
def test_rows_that_are_not_those_that_were_counted(memory: int) -> None:
    features, labels, weights = data(150, 16, 60)
    heads, counts = torch.nn.functional.normalize(weights), torch.bincount(labels)
    for pairs in ([(features[:99], labels[:99])], [(features, labels), (features[:3], labels[:3])]):
        with pytest.raises(DataError, match="changed between two passes: 150 rows, then"):
            JointOperator(lambda pairs=pairs: pairs, heads, counts, memory=memory)(torch.ones(150, 1).double())


def test_earlier_vectors_in_single_precision_leave_the_quadrature_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    product, _ = slow_to_settle(300)
    probes = torch.randn(300, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).sign()
    expected = lanczos(product, probes, 40).integrate(1.0)
    monkeypatch.setattr("ckpt_probe.metrics.lanczos.SINGLE", 300)
    growing = Lanczos(product, probes)
    assert torch.allclose(growing.after(40).quadratures().integrate(1.0), expected, rtol=1e-6)
    assert growing._basis[0].dtype == torch.float32


def test_some_vectors_go_on_alone() -> None:
    product, _ = slow_to_settle(100)
    probes = torch.randn(100, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    growing = Lanczos(product, probes)
    growing.after(11)
    growing.keep(2)
    assert torch.allclose(growing.after(20).alphas, Lanczos(product, probes[:, :2]).after(20).alphas, rtol=1e-12)


def test_a_recurrence_goes_on_where_it_was_left() -> None:
    matrix = joint_matrix(*data(60, 8, 4))
    probes = torch.randn(60, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    products = []
    growing = Lanczos(lambda x: products.append(1) or matrix @ x, probes)
    first = growing.after(4).quadratures()
    assert torch.equal(first.nodes, lanczos(matrix.matmul, probes, 4).nodes)
    later = growing.after(9)
    assert torch.equal(later.quadratures().nodes, lanczos(matrix.matmul, probes, 9).nodes)
    assert torch.equal(later.quadratures(4).nodes, first.nodes)
    assert len(products) == 9


def test_float32_products_stay_far_below_a_tenth_of_the_default_tolerance() -> None:
    features, labels, weights = data(600, 48, 20)
    matrix = joint_matrix(features, labels, weights)
    probes = torch.randn(600, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).sign()
    single = lanczos(operator_of(features, labels, weights), probes, 14).integrate(1.0)
    exact = lanczos(matrix.matmul, probes, 14).integrate(1.0)
    assert float(((single - exact) / exact).abs().max()) < 0.01 * Sampling().tolerance


def test_the_control_variate_leaves_each_probe_out_of_its_own_slope() -> None:
    generator = np.random.default_rng(0)
    control = generator.normal(size=12)
    values = 3 + 2 * control + 0.1 * generator.normal(size=12)
    corrected = []
    for i in range(12):
        rest = np.arange(12) != i
        x = control[rest] - control[rest].mean()
        corrected.append(values[i] - x @ values[rest] / (x @ x) * control[i])
    mean, stderr = controlled(torch.tensor(values), torch.tensor(control))
    assert mean == pytest.approx(np.mean(corrected), rel=1e-12)
    assert stderr == pytest.approx(np.std(corrected, ddof=1) / math.sqrt(12), rel=1e-12)
    assert controlled(torch.ones(3), torch.zeros(3))[1] == math.inf


@pytest.mark.parametrize("shared", [0.0, 3.0])
def test_error_bars_are_honest_over_seeds(shared: float) -> None:
    features, labels, weights = data(shared=shared)
    exact = entropy(joint_matrix(features, labels, weights))
    operator = operator_of(features, labels, weights)
    found = [
        estimate_entropies(operator, len(features), known=exact + 1, sampling=Sampling(1e-2, seed=seed))
        for seed in range(60)
    ]
    errors = np.array([one.entropies[1.0] - exact for one in found])
    bars = np.array([one.stderrs[1.0] for one in found])
    # Of 60 with a chance of 0.95, fewer than 51 are within two error bars once in a few thousand times.
    assert (abs(errors) <= 2 * bars).sum() >= 51
    # The quadrature's own error is the same for all seeds: up to a quarter of what is wanted, which the bar contains.
    assert abs(errors.mean()) <= 3.5 * errors.std() / math.sqrt(len(errors)) + 1e-2 / 4
    assert all(one.reached and one.stderrs[1.0] <= 1e-2 * abs(exact + 1 - one.entropies[1.0]) for one in found)


@pytest.mark.parametrize("shared", [0.0, 3.0])
def test_what_is_taken_off_is_zero_on_average(shared: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # So many steps that nothing but sampling is left.
    monkeypatch.setattr(stochastic, "STEPS", (60,))
    features, labels, weights = data(shared=shared)
    exact = entropy(joint_matrix(features, labels, weights))
    operator = operator_of(features, labels, weights)
    errors = np.array(
        [
            estimate_entropies(operator, 300, known=exact + 1, sampling=Sampling(0.9, seed=seed)).entropies[1.0] - exact
            for seed in range(50)
        ]
    )
    assert abs(errors.mean()) <= 3.5 * errors.std() / math.sqrt(len(errors))


def test_a_smaller_tolerance_is_met_by_more_probes_and_the_seed_decides() -> None:
    features, labels, weights = data()
    exact = entropy(joint_matrix(features, labels, weights))
    operator = operator_of(features, labels, weights)

    def run(tolerance: float, seed: int = 0):
        return estimate_entropies(operator, 300, known=exact + 1, sampling=Sampling(tolerance, seed=seed))

    coarse, fine = run(2e-2), run(4e-3)
    assert fine.stderrs[1.0] <= 4e-3 * abs(exact + 1 - fine.entropies[1.0])
    assert fine.probes > coarse.probes
    assert run(2e-2).entropies == coarse.entropies
    assert run(2e-2, seed=1).entropies != coarse.entropies


def test_renyi_orders_are_sampled_beside() -> None:
    features, labels, weights = data()
    matrix = joint_matrix(features, labels, weights)
    exact = entropy(matrix)
    found = estimate_entropies(
        operator_of(features, labels, weights), 300, known=exact + 1, orders=(2.0, 0.5), sampling=Sampling(1e-2)
    )
    values = torch.linalg.eigvalsh(matrix).clamp_min(0)
    values = values[values > 1e-14]
    for order in (2.0, 0.5):
        expected = float(values.pow(order).sum().log() / (1 - order))
        assert abs(found.entropies[order] - expected) <= 4 * found.stderrs[order] + 1e-6


def test_the_leading_eigenvectors_of_a_recurrence() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, _ = torch.linalg.qr(torch.randn(200, 200, generator=generator, dtype=torch.float64))
    values = torch.cat([torch.tensor([0.2, 0.1, 0.05]), torch.full((197,), 0.65 / 197)]).double()
    matrix = vectors * values @ vectors.T
    growing = Lanczos(matrix.matmul, torch.randn(200, 2, generator=generator, dtype=torch.float64))
    growing.after(11)
    found = growing.leading(3)
    assert torch.allclose(found.values, values[:3], rtol=1e-9)
    assert torch.allclose((found.vectors.T @ vectors[:, :3]).abs(), torch.eye(3, dtype=torch.float64), atol=1e-7)
    assert growing.leading(64).vectors.shape == (200, 11)
    probes = torch.randint(0, 2, (200, 5000), generator=generator).double().mul_(2).sub_(1)
    chance = found.chance(probes)
    assert torch.allclose(chance, (vectors[:, :3].T @ probes).square() - 1, atol=1e-6)
    assert float(chance.mean()) == pytest.approx(0, abs=4 * math.sqrt(2 / 15000))


def test_what_probes_lay_on_leading_eigenvectors_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, weights = data(shared=3.0)
    exact = entropy(joint_matrix(features, labels, weights))
    operator = operator_of(features, labels, weights)
    found = {}
    for count in (1, 64):
        monkeypatch.setattr(stochastic, "LEADING", count)
        found[count] = estimate_entropies(operator, 300, known=exact + 1, sampling=Sampling(3e-3))
        assert abs(found[count].entropies[1.0] - exact) <= 4 * found[count].stderrs[1.0]
        assert found[count].reached
    assert found[64].probes < found[1].probes / 2


def slow_to_settle(samples: int = 1500):
    """A matrix with eigenvalues over six decades, whose entropy takes a recurrence many steps."""
    generator = torch.Generator().manual_seed(0)
    vectors, _ = torch.linalg.qr(torch.randn(samples, samples, generator=generator, dtype=torch.float64))
    values = torch.logspace(0, -6, samples, dtype=torch.float64)
    values /= values.sum()
    return (vectors * values @ vectors.T).matmul, float(-(values * values.log()).sum())


def test_most_probes_stop_early_and_a_few_say_what_more_steps_add() -> None:
    product, exact = slow_to_settle()
    vectors = []

    def operator(x: Tensor) -> Tensor:
        vectors.append(x.shape[1])
        return product(x)

    found = estimate_entropies(operator, 1500, known=exact + 2, sampling=Sampling(3e-3))
    assert 2 * found.depths.short <= found.depths.long
    assert found.deep < found.probes / 2
    assert sum(vectors) == found.deep * found.depths.long + (found.probes - found.deep) * found.depths.short
    assert abs(found.entropies[1.0] - exact) <= 4 * found.stderrs[1.0]
    assert found.stderrs[1.0] <= 3e-3 * (exact + 2 - found.entropies[1.0])


def test_error_bars_are_honest_where_the_first_steps_say_little(monkeypatch: pytest.MonkeyPatch) -> None:
    product, exact = slow_to_settle(100)
    monkeypatch.setattr(stochastic, "STEPS", (2, *(steps for steps in stochastic.STEPS if steps > 10)))
    # All but a few of the first probes stop there.
    monkeypatch.setattr(stochastic._Pilot, "agreed", lambda *_: True)
    found = [estimate_entropies(product, 100, known=exact + 1, sampling=Sampling(4e-2, seed=seed)) for seed in range(8)]
    errors = np.array([one.entropies[1.0] - exact for one in found])
    bars = np.array([one.stderrs[1.0] for one in found])
    # Of 8 with a chance of 0.95, fewer than 5 are within two error bars once in a few thousand times.
    assert (abs(errors) <= 2 * bars).sum() >= 5
    assert all(one.depths.short == 2 for one in found)
    # As these do not agree on the addition, more of them go on.
    assert max(one.deep for one in found) > stochastic.DEEP


def test_a_recurrence_that_is_too_short_is_lengthened_or_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    product, exact = slow_to_settle(100)
    monkeypatch.setattr(stochastic._Pilot, "settled", lambda *_: True)
    found = estimate_entropies(product, 100, known=exact + 1, sampling=Sampling(3e-3))
    assert found.reached
    assert found.depths.long > stochastic.LEAST
    assert abs(found.entropies[1.0] - exact) <= 3 * found.stderrs[1.0]
    monkeypatch.setattr(stochastic, "STEPS", (4, 6))
    monkeypatch.setattr(stochastic, "LEAST", 4)
    found = estimate_entropies(product, 100, known=exact + 1, sampling=Sampling(1e-3))
    assert not found.reached
    assert found.depths.long == 6
    assert abs(found.entropies[1.0] - exact) <= 3 * found.stderrs[1.0]


def test_what_is_reached_is_not_thrown_away_for_longer_recurrences(monkeypatch: pytest.MonkeyPatch) -> None:
    product, exact = slow_to_settle(100)
    monkeypatch.setattr(stochastic._Pilot, "settled", lambda *_: True)
    # As if what is missing were most of the error bar.
    monkeypatch.setattr(stochastic._Samples, "missing", lambda *_: 1e-3)
    monkeypatch.setattr(stochastic._Samples, "disagreement", lambda *_: 0.0)
    monkeypatch.setattr(stochastic, "controlled", lambda values, _: (float(values.mean()), 1e-9))
    monkeypatch.setattr(stochastic, "SETTLED", 1e-9)
    found = estimate_entropies(product, 100, known=exact + 1, sampling=Sampling(0.9))
    assert (found.reached, found.depths.long, found.deep > 0) == (True, stochastic.LEAST, True)
    assert abs(found.entropies[1.0] - exact) < 0.9


def test_what_a_quadrature_lacks_is_foreseen() -> None:
    product, _ = slow_to_settle(200)
    probes = torch.randn(200, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sign()
    run = Lanczos(product, probes).after(150)
    whole = float(run.quadratures().integrate(1.0).mean())
    for steps in (14, 20, 28, 40):
        ends = stochastic._ends(run, [1.0], steps)[1.0].mean(dim=1)
        lacks, foreseen = whole - float(ends[0]), stochastic.missing_of(ends)
        assert lacks / foreseen == pytest.approx(0.5, abs=0.5)
    # An error like a power of the length is foreseen exactly, and overestimated where it falls faster.
    lengths = torch.tensor([1.0, stochastic.CUT, stochastic.CUT**2], dtype=torch.float64)
    assert stochastic.missing_of(5 + lengths.pow(-1.5)) == pytest.approx(-1, rel=1e-9)
    assert -2 < stochastic.missing_of(5 + lengths.pow(-3.0)) < -1
    assert stochastic.missing_of(torch.ones(3)) == 0


@pytest.mark.parametrize(("times", "probes"), [(1.01, 8), (0.99, 16)])
def test_the_first_eight_probes_are_enough_where_their_error_bar_is_far_below(
    monkeypatch: pytest.MonkeyPatch, times: float, probes: int
) -> None:
    # So many steps that the error bar is that of sampling alone.
    monkeypatch.setattr(stochastic, "STEPS", (120,))
    features, labels, weights = data(1000)
    exact = entropy(joint_matrix(features, labels, weights))
    operator, known = operator_of(features, labels, weights), exact + 2
    eight = estimate_entropies(operator, 1000, known=known, sampling=Sampling(0.9))
    assert eight.probes == 8
    relative = eight.stderrs[1.0] / (known - eight.entropies[1.0])
    found = estimate_entropies(operator, 1000, known=known, sampling=Sampling(stochastic.CERTAIN * times * relative))
    assert (found.probes, found.reached) == (probes, True)
    assert abs(found.entropies[1.0] - exact) <= 4 * found.stderrs[1.0]


def test_sampling_that_makes_no_sense_is_refused() -> None:
    for tolerance in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="tolerance: expected a positive number"):
            Sampling(tolerance)
    with pytest.raises(UsageError, match="budget: expected a positive number of seconds"):
        Sampling(budget=0)
    features, labels, weights = data()
    with pytest.raises(
        DataError,
        match=r"the time budget of 1e-06 s ran out after \d+ probes .* a standard error needs 16: raise the budget",
    ):
        estimate_entropies(operator_of(features, labels, weights), 300, known=5.0, sampling=Sampling(1e-9, budget=1e-6))


def record_of(monkeypatch: pytest.MonkeyPatch, **sampling) -> dict:
    monkeypatch.setattr(routes, "DENSE_LIMIT", 40)
    features, labels, weights = data()
    moments = Moments(12)
    moments.update(features, labels)
    return moments.compute(weights, rows=lambda: [(features, labels)], sampling=Sampling(**sampling))


def test_the_record_of_the_stochastic_route(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, weights = data()
    exact = Moments(12)
    exact.update(features, labels)
    expected = exact.compute(weights)
    record = record_of(monkeypatch, tolerance=2e-3, seed=5)
    assert record["route"] == "stochastic"
    assert "largest side for a dense eigensolver" in str(record["route_reason"])
    assert record["missing"] is None
    assert 0 < record["sample.mir_stderr"] <= 2e-3 * record["sample.mir"]
    assert abs(record["sample.mir"] - expected["sample.mir"]) <= 4 * record["sample.mir_stderr"]
    assert record["sample.probes"] >= 16
    assert record["sample.seed"] == 5
    for name in ("sample.entropy_features", "within.entropy_mean", "class.mir", "nc1.pinv"):
        assert record[name] == pytest.approx(expected[name], rel=1e-10)


def test_a_tolerance_out_of_reach_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    record = record_of(monkeypatch, tolerance=1e-9, probes=24)
    assert record["sample.probes"] == 24
    assert "sampling stopped before the tolerance was reached" in record["route_reason"]
    assert record["sample.mir_stderr"] > 1e-9 * record["sample.mir"]


def test_rows_that_have_no_direction_or_no_head_are_not_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "DENSE_LIMIT", 40)
    features, labels, weights = data()
    features[5], weights[3] = 0, 0
    kept = (labels != 3) & (features.abs().amax(dim=1) > 0)
    exact = entropy(joint_matrix(features[kept], labels[kept], weights))
    moments = Moments(12)
    moments.update(features, labels)
    pairs = [(features[:99], labels[:99]), (features[99:], labels[99:])]
    record = moments.compute(weights, rows=lambda: pairs, sampling=Sampling(1e-2))
    assert record["samples_left_out"] == 300 - int(kept.sum())
    assert abs(record["sample.entropy_joint"] - exact) <= 4 * record["sample.entropy_joint_stderr"]
