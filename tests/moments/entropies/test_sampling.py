"""Tests of the joint matrix as a linear map, from rows or class moments, against the N × N matrix of all rows."""

import pytest
import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.rows import directions
from ckpt_probe.moments.class_sums import group
from ckpt_probe.moments.entropies import sampling
from ckpt_probe.moments.entropies.sampling import JointOperator, MomentsOperator
from ckpt_probe.moments.entropies.spectra import factor
from ckpt_probe.moments.unit_moments import UnitMoments

GIB = 2**30


def data(samples: int = 300, features: int = 24, classes: int = 12):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    labels = torch.arange(samples) % classes
    noise = torch.randn(samples, features, generator=generator, dtype=torch.float64)
    return weights[labels] + noise, labels, weights


def joint_matrix(features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(features.double())
    heads = torch.nn.functional.normalize(weights)[labels]
    return (unit @ unit.T) * (heads @ heads.T) / len(unit)


def operator_of(features: Tensor, labels: Tensor, weights: Tensor, memory: int = GIB, blocks: int = 1) -> JointOperator:
    heads = torch.nn.functional.normalize(weights)
    pairs = list(zip(features.chunk(blocks), labels.chunk(blocks), strict=True))
    return JointOperator(lambda: pairs, heads, torch.bincount(labels), memory=memory)


@pytest.mark.parametrize(("classes", "labels_left"), [(4, [0, 1, 2, 3]), (4, [0, 2, 3]), (9, list(range(9)))])
def test_the_moments_operator_has_the_eigenvalues_of_the_matrix_of_all_rows(
    classes: int, labels_left: list[int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % classes
    features = torch.randn(120, 6, generator=generator, dtype=torch.float64)
    weights = torch.randn(classes, 6, generator=generator, dtype=torch.float64)
    unit = UnitMoments(6, classes, 2**30, torch.device("cpu"))
    unit.update(group(features, labels))
    assert unit.kind == "classes"
    chosen = torch.tensor(labels_left)
    heads, _ = directions(weights[chosen])
    operator = MomentsOperator(unit, chosen, factor(heads))
    matrix = operator(torch.eye(operator.size, dtype=torch.float64))
    assert torch.allclose(matrix, matrix.T, atol=1e-14)

    chosen_rows = torch.isin(labels, chosen)
    rows, _ = directions(features[chosen_rows])
    of_labels, _ = directions(weights[labels[chosen_rows]])
    complete = (rows @ rows.T) * (of_labels @ of_labels.T) / int(chosen_rows.sum())
    eigenvalues, expected = torch.linalg.eigvalsh(matrix), torch.linalg.eigvalsh(complete)
    count = min(len(eigenvalues), len(expected))
    assert torch.allclose(eigenvalues[-count:], expected[-count:], atol=1e-13)
    assert float(eigenvalues.sum()) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize(("blocks", "memory"), [(1, GIB), (7, GIB), (7, 1000)])
@pytest.mark.parametrize("classes", [3, 12, 60])
def test_the_operator_multiplies_by_the_joint_matrix(blocks: int, memory: int, classes: int) -> None:
    features, labels, weights = data(150, 16, classes)
    shuffled = torch.randperm(150, generator=torch.Generator().manual_seed(2))
    features, labels = features[shuffled], labels[shuffled]
    x = torch.randn(150, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    product = operator_of(features, labels, weights, memory, blocks)(x)
    expected = joint_matrix(features, labels, weights) @ x
    assert float((product - expected).norm() / expected.norm()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [3, 60])
def test_rows_are_stored_in_their_own_precision_if_float64_exceeds_the_memory(dtype: torch.dtype, classes: int) -> None:
    features, labels, weights = data(150, 16, classes)
    features = features.to(dtype)
    x = torch.randn(150, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = joint_matrix(features, labels, weights) @ x
    for memory, stored_dtype in ((GIB, torch.float64), (2 * 150 * 16 * dtype.itemsize, dtype), (1000, None)):
        operator = operator_of(features, labels, weights, memory, blocks=3)
        assert float((operator(x) - expected).norm() / expected.norm()) < 1e-12
        assert (operator._stored.rows.dtype if operator._stored else None) == stored_dtype


@pytest.mark.parametrize("memory", [GIB, 2 * 150 * 16 * 2])
def test_blocks_of_two_precisions_lose_no_digits(memory: int) -> None:
    features, labels, weights = data(150, 16, 60)
    pairs = [(features[:50].half(), labels[:50]), (features[50:], labels[50:])]
    heads = torch.nn.functional.normalize(weights)
    operator = JointOperator(lambda: pairs, heads, torch.bincount(labels), memory=memory)
    x = torch.randn(150, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    all_features = torch.cat([features[:50].half().double(), features[50:]])
    expected = joint_matrix(all_features, labels, weights) @ x
    assert float((operator(x) - expected).norm() / expected.norm()) < 1e-12


@pytest.mark.parametrize("memory", [GIB, 1000])
def test_long_classes_are_cut_into_parts_without_changing_the_product(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "ROWS_AT_ONCE", 16)
    monkeypatch.setattr(sampling, "CLASSES_AT_ONCE", 7)
    generator = torch.Generator().manual_seed(0)
    # Sizes follow Zipf's law: some classes have one row, one has nearly half of all rows.
    labels = torch.cat([torch.arange(40), (40 * torch.rand(200, generator=generator) ** 6).long()])
    features, weights = (torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (240, 40))
    x = torch.randn(240, 3, generator=generator, dtype=torch.float64)
    product = operator_of(features, labels, weights, memory, blocks=3)(x)
    expected = joint_matrix(features, labels, weights) @ x
    assert float((product - expected).norm() / expected.norm()) < 1e-12


@pytest.mark.parametrize(("dtype", "at_once"), [(torch.float64, 4096), (torch.float16, 4096), (torch.float64, 16)])
def test_many_rows_of_many_classes_use_vectors_of_squared_width(
    dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "ROWS_AT_ONCE", at_once)
    monkeypatch.setattr(sampling, "CLASSES_AT_ONCE", 7)
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
    matrix = operator(torch.eye(64, dtype=torch.float64))
    unit, nonzero = torch.nn.functional.normalize(features.double()), torch.arange(240) != 7
    of_labels = torch.nn.functional.normalize(weights)[labels]
    rows = (of_labels[:, :, None] * unit[:, None, :]).flatten(1)[nonzero]
    assert torch.allclose(matrix, rows.T @ rows / 239, atol=1e-14)
    expected = torch.linalg.eigvalsh(joint_matrix(features[nonzero], labels[nonzero], weights))
    assert torch.allclose(torch.linalg.eigvalsh(matrix), expected[-64:], atol=1e-13)


@pytest.mark.parametrize("memory", [GIB, 1000])
def test_rows_that_differ_from_the_counted_ones_are_an_error(memory: int) -> None:
    features, labels, weights = data(150, 16, 60)
    heads, counts = torch.nn.functional.normalize(weights), torch.bincount(labels)
    for pairs in ([(features[:99], labels[:99])], [(features, labels), (features[:3], labels[:3])]):
        with pytest.raises(DataError, match="changed between two passes: 150 rows, then"):
            JointOperator(lambda pairs=pairs: pairs, heads, counts, memory=memory)(torch.ones(150, 1).double())


@pytest.mark.parametrize("scale", [1e-30, 1e-200, 1e200])
def test_rows_of_any_length_give_the_same_operator(scale: float) -> None:
    features, labels, weights = data(150, 16, 12)
    dtype = torch.float32 if scale == 1e-30 else torch.float64
    x = torch.randn(150, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    product = operator_of((features * scale).to(dtype), labels, weights)(x)
    expected = operator_of(features, labels, weights)(x)
    assert torch.allclose(product, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_exactly_collapsed_rows_leave_no_eigenvalue_in_the_null_space() -> None:
    weights = torch.eye(20, dtype=torch.float64) - 1 / 20
    labels = torch.arange(400) % 20
    operator = operator_of(weights[labels].float(), labels, weights)
    values = torch.linalg.eigvalsh(operator(torch.eye(400, dtype=torch.float64)))
    assert float(values[:-20].abs().max()) < 1e-15
    assert float(values[-20]) > 0.04
