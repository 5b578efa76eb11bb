"""Tests of gram, matrix_entropy, effective_rank, mutual_information, mir and hdr against closed forms."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ckpt_probe.errors import DataError
from ckpt_probe.metrics import effective_rank, gram, hdr, matrix_entropy, mir, mutual_information
from ckpt_probe.metrics.collapse import reference_values, simplex_etf
from ckpt_probe.metrics.rows import to_rows


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def brute_entropy(K: np.ndarray, alpha: float = 1.0) -> float:
    values = np.linalg.eigvalsh(K / len(K))
    values = values[values > 1e-14]
    if alpha == 1:
        return float(-(values * np.log(values)).sum())
    return float(np.log((values**alpha).sum()) / (1 - alpha))


def brute_gram(X: np.ndarray) -> np.ndarray:
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize(("n", "d"), [(7, 12), (12, 7), (9, 9), (40, 1), (1, 5), (1, 1)])
def test_entropy_equals_that_of_the_gram_matrix_for_wide_and_tall_matrices(n: int, d: int) -> None:
    X = rows(n, d)
    assert matrix_entropy(X) == pytest.approx(brute_entropy(brute_gram(X)), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 0.999999, 1.5, 2.0, 3.0])
def test_renyi_entropies_equal_their_definition(alpha: float) -> None:
    X = rows(8, 30)
    assert matrix_entropy(X, alpha=alpha) == pytest.approx(brute_entropy(brute_gram(X), alpha), rel=1e-9)


def test_renyi_entropy_approaches_von_neumann_entropy_and_decreases_with_its_order() -> None:
    X = rows(20, 6)
    orders = [matrix_entropy(X, alpha=alpha) for alpha in (0.5, 1.0, 2.0, 4.0)]
    assert orders == sorted(orders, reverse=True)
    assert matrix_entropy(X, alpha=1 + 1e-6) == pytest.approx(matrix_entropy(X), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_an_invalid_order_is_an_error(alpha: float) -> None:
    with pytest.raises(DataError, match="alpha"):
        matrix_entropy(rows(4, 3), alpha=alpha)


def test_orthogonal_rows_reach_log_n_and_equal_rows_zero() -> None:
    assert matrix_entropy(np.eye(5)) == pytest.approx(math.log(5), rel=1e-14)
    assert matrix_entropy(np.eye(5), normalized=True) == pytest.approx(1, rel=1e-14)
    assert effective_rank(np.eye(5)) == pytest.approx(5, rel=1e-13)
    assert matrix_entropy(np.ones((6, 4))) == pytest.approx(0, abs=1e-12)
    assert matrix_entropy(np.ones((1, 4)), normalized=True) == 0


def test_lengths_and_order_of_rows_and_rotations_do_not_change_the_entropy() -> None:
    X = rows(15, 6)
    scaled = X * np.random.default_rng(1).uniform(1e-150, 1e3, size=(15, 1))
    rotation, _ = np.linalg.qr(rows(6, 6, seed=2))
    for changed in (scaled, X[::-1].copy(), X @ rotation, np.hstack([X, np.zeros((15, 3))])):
        assert matrix_entropy(changed) == pytest.approx(matrix_entropy(X), rel=1e-11)


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e160, 1e300])
def test_the_magnitude_of_rows_does_not_change_the_entropy(scale: float) -> None:
    X = rows(6, 4)
    np.testing.assert_allclose(gram(X * scale), gram(X), rtol=1e-12, atol=1e-14)


def test_gram_has_a_unit_diagonal_and_leaves_zero_rows_out() -> None:
    X = rows(6, 4)
    X[2] = 0
    K = gram(X)
    assert K.shape == (5, 5)
    np.testing.assert_allclose(np.diag(K), 1, rtol=1e-14)
    np.testing.assert_allclose(K, brute_gram(np.delete(X, 2, axis=0)), rtol=1e-12, atol=1e-14)


def test_more_than_half_zero_rows_is_an_error() -> None:
    X = rows(6, 4)
    X[:4] = 0
    with pytest.raises(DataError, match="4 of 6 rows have zero length"):
        gram(X)
    X[3] = 1
    assert gram(X).shape == (3, 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_named(bad: float) -> None:
    X = rows(6, 4)
    X[3, 1] = X[5, 0] = bad
    with pytest.raises(DataError, match="2 rows hold NaN or infinity, the first is row 3"):
        matrix_entropy(X)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (4,), (2, 3, 4)])
def test_arrays_that_are_no_matrices_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"expected one vector per row, shape \(n, d\)"):
        gram(np.ones(shape))


@pytest.mark.parametrize(("n", "d", "e"), [(30, 3, 2), (6, 20, 9), (12, 4, 3)])
def test_mutual_information_equals_that_of_the_product_of_gram_matrices(n: int, d: int, e: int) -> None:
    X, Y = rows(n, d), rows(n, e, seed=1)
    first, second = brute_entropy(brute_gram(X)), brute_entropy(brute_gram(Y))
    joint = brute_entropy(brute_gram(X) * brute_gram(Y))
    assert mutual_information(X, Y) == pytest.approx(first + second - joint, rel=1e-9)
    assert mir(X, Y) == pytest.approx((first + second - joint) / min(first, second), rel=1e-9)
    assert hdr(X, Y) == pytest.approx(abs(first - second) / max(first, second), rel=1e-9)
    assert mir(X, Y) == pytest.approx(mir(Y, X), rel=1e-10)
    assert hdr(X, Y) == pytest.approx(hdr(Y, X), rel=1e-10)


def test_rows_that_are_zero_in_one_matrix_are_left_out_of_both() -> None:
    X, Y = rows(10, 4), rows(10, 3, seed=1)
    X[2] = 0
    Y[7] = 0
    nonzero = [i for i in range(10) if i not in {2, 7}]
    assert mir(X, Y) == pytest.approx(mir(X[nonzero], Y[nonzero]), rel=1e-12)


def test_ratios_of_zero_entropy_are_undefined() -> None:
    X, same = rows(6, 4), np.ones((6, 3))
    with pytest.raises(DataError, match="mir: undefined"):
        mir(X, same)
    assert hdr(X, same) == pytest.approx(1, rel=1e-12)
    with pytest.raises(DataError, match="hdr: undefined"):
        hdr(same, same)


def test_different_numbers_of_rows_are_an_error() -> None:
    with pytest.raises(DataError, match="X has 5 rows and Y has 6"):
        mir(rows(5, 3), rows(6, 3))


def test_torch_gives_tensors_with_a_gradient_and_numpy_gives_floats() -> None:
    X, Y = rows(9, 4), rows(9, 3, seed=1)
    assert type(mir(X, Y)) is float
    first = torch.tensor(X, requires_grad=True)
    value = mir(first, torch.tensor(Y))
    assert isinstance(value, torch.Tensor)
    assert value.item() == pytest.approx(mir(X, Y), rel=1e-13)
    value.backward()
    assert first.grad is not None
    assert torch.isfinite(first.grad).all()


@pytest.mark.parametrize("function", [mutual_information, mir, hdr])
def test_gradients_match_finite_differences(function) -> None:
    X, Y = torch.tensor(rows(5, 7), requires_grad=True), torch.tensor(rows(5, 6, seed=1), requires_grad=True)
    assert torch.autograd.gradcheck(function, (X, Y), eps=1e-6, atol=1e-5)
    assert torch.autograd.gradcheck(matrix_entropy, (X,), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_other_dtypes_are_computed_in_float64(dtype: torch.dtype) -> None:
    X = (torch.tensor(rows(9, 4)) * 8).to(dtype)
    assert to_rows(X).dtype == torch.float64
    assert float(matrix_entropy(X)) == pytest.approx(matrix_entropy(X.double().numpy()), rel=1e-12)


@pytest.mark.parametrize("classes", [3, 4, 10, 100])
def test_an_aligned_simplex_reaches_the_reference_values(classes: int) -> None:
    etf = simplex_etf(classes, classes + 5).numpy()
    np.testing.assert_allclose(np.linalg.norm(etf, axis=1), 1, rtol=1e-12)
    reference = reference_values(classes)
    assert matrix_entropy(etf) == pytest.approx(reference["reference.entropy"], rel=1e-12)
    assert mir(3 * etf, etf) == pytest.approx(reference["reference.mir"], rel=1e-12)
    assert hdr(3 * etf, etf) == pytest.approx(0, abs=1e-12)


def test_reference_values_exist_for_at_least_two_classes() -> None:
    assert reference_values(2) == {"reference.mir": None, "reference.hdr": None, "reference.entropy": 0.0}
    with pytest.raises(DataError, match="at least two classes"):
        reference_values(1)
    assert reference_values(3)["reference.mir"] == pytest.approx(0.5)


@pytest.mark.parametrize(("classes", "features"), [(5, 3), (1, 4)])
def test_a_simplex_of_one_class_or_in_too_few_dimensions_is_an_error(classes: int, features: int) -> None:
    with pytest.raises(DataError, match="does not exist"):
        simplex_etf(classes, features)


@pytest.mark.parametrize("function", [matrix_entropy, effective_rank, lambda X: mir(X, X * 2), lambda X: hdr(X, X**3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", ["denormal", "smallest"])
def test_gradients_of_rows_with_tiny_entries_are_finite(function: Callable, dtype: torch.dtype, scale: str) -> None:
    kind = torch.finfo(dtype)
    X = torch.from_numpy(rows(6, 4)).clamp(0.1, 1).to(dtype)
    # Denormal numbers, and the smallest normal ones.
    X[2:4] = kind.smallest_normal * (0.25 if scale == "denormal" else 1) * (1 + (X[2:4] > 0.5))
    X.requires_grad_()
    value = function(X)
    value.backward()
    assert X.grad is not None
    assert bool(torch.isfinite(value))
    assert bool(torch.isfinite(X.grad).all())
    assert bool((X.grad[[0, 1, 4, 5]] != 0).any())
    if scale == "denormal":
        assert bool((X.grad[2:4] == 0).all())
    if scale == "denormal" or function not in (matrix_entropy, effective_rank):
        return
    wide = X.detach().double().mul(2.0**500).requires_grad_()
    function(wide).backward()
    assert wide.grad is not None
    # The expected gradient is that of a row 2^500 times as long, times 2^500.
    expected = (wide.grad[2:4] * 2.0**500).clamp(-kind.max, kind.max)
    assert torch.allclose(X.grad[2:4].double(), expected, rtol=4 * kind.eps, atol=kind.tiny)


def test_rows_with_tiny_entries_count_like_others() -> None:
    X = torch.from_numpy(rows(6, 4)).float()
    X[2] *= 1e-39
    X.requires_grad_()
    assert matrix_entropy(X).item() == pytest.approx(matrix_entropy(X.detach().double().numpy()), rel=1e-9)
