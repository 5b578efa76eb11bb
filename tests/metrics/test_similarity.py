"""Tests of linear CKA by unbiased HSIC against brute force, of its invariances, and of its streaming form."""

import inspect
from itertools import pairwise

import numpy as np
import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.errors import DataError
from ckpt_probe.metrics import similarity
from ckpt_probe.metrics.similarity import CKA, cka, cka_between, cka_matrix, hsic, mir_between

RNG = np.random.default_rng(0)


def related(n: int, d: int, e: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=(n, 3))
    X, Y = (shared @ generator.normal(size=(3, width)) + generator.normal(size=(n, width)) for width in (d, e))
    return X, Y


def brute_hsic(X: np.ndarray, Y: np.ndarray) -> float:
    """Return HSIC by equation 5 of Song et al. 2012, with n × n matrices."""
    n, ones = len(X), np.ones(len(X))
    K, L = (rows @ rows.T for rows in (X, Y))
    np.fill_diagonal(K, 0)
    np.fill_diagonal(L, 0)
    last = (ones @ K @ ones) * (ones @ L @ ones) / ((n - 1) * (n - 2)) - 2 * (ones @ K @ L @ ones) / (n - 2)
    return float((np.trace(K @ L) + last) / (n * (n - 3)))


def u_statistic(X: np.ndarray, Y: np.ndarray) -> float:
    """Return HSIC as an average over ordered quadruples of different rows (Gretton et al. 2005)."""
    K, L, n = X @ X.T, Y @ Y.T, len(X)
    terms = [
        K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q])
        for i in range(n) for j in range(n) for q in range(n) for r in range(n)
        if len({i, j, q, r}) == 4
    ]  # fmt: skip
    return float(np.mean(terms))


@pytest.mark.parametrize(("n", "d", "e"), [(4, 3, 2), (9, 2, 5), (12, 30, 20), (60, 4, 7), (15, 1, 1)])
def test_hsic_equals_its_definition(n: int, d: int, e: int) -> None:
    X, Y = related(n, d, e)
    assert hsic(X, Y) == pytest.approx(brute_hsic(X, Y), rel=1e-10)
    expected = brute_hsic(X, Y) / np.sqrt(brute_hsic(X, X) * brute_hsic(Y, Y))
    assert cka(X, Y) == pytest.approx(expected, rel=1e-10)
    assert cka(X, Y) == pytest.approx(cka(Y, X), rel=1e-12)


def test_hsic_is_the_u_statistic() -> None:
    X, Y = related(7, 3, 2)
    assert hsic(X, Y) == pytest.approx(u_statistic(X, Y), rel=1e-10)


def test_rotation_scale_and_offset_do_not_change_cka() -> None:
    X, Y = related(80, 6, 9)
    rotation, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
    for changed in (X @ rotation, 1e-3 * X, X + RNG.normal(size=6), 7 * X @ rotation - 100, X[:, ::-1].copy()):
        assert cka(changed, Y) == pytest.approx(cka(X, Y), rel=1e-9)
        assert cka(changed, X) == pytest.approx(1, rel=1e-9)
    order = RNG.permutation(80)
    assert cka(X[order], Y[order]) == pytest.approx(cka(X, Y), rel=1e-12)
    assert cka(X[order], Y) != pytest.approx(cka(X, Y), rel=1e-2)


@pytest.mark.parametrize(("d", "e"), [(16, 16), (512, 256)])
def test_cka_of_independent_gaussian_rows_is_near_zero(d: int, e: int) -> None:
    X, Y = RNG.normal(size=(2048, d)), RNG.normal(size=(2048, e))
    assert abs(cka(X, Y)) < 0.02
    assert cka(X, X) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("cuts", [[], [1], [4, 5, 40], list(range(1, 60))])
def test_streams_and_merges_of_any_parts_equal_one_pass(cuts: list[int]) -> None:
    X, Y = related(60, 5, 8)
    X += 1e3
    complete, second = CKA(), CKA()
    edges = [0, *cuts, 60]
    for number, (start, stop) in enumerate(pairwise(edges)):
        (complete if number % 2 else second).update(X[start:stop], Y[start:stop])
    complete.merge(second)
    assert complete.rows == 60
    assert complete.compute() == pytest.approx(cka(X, Y), rel=1e-9)


def test_minibatches_average_hsic_and_estimate_the_same_cka() -> None:
    X, Y = related(4096, 6, 9)
    averaged, second = CKA(minibatches=True), CKA(minibatches=True)
    for number, start in enumerate(range(0, 4096, 256)):
        (averaged if number % 3 else second).update(X[start : start + 256], Y[start : start + 256])
    averaged.merge(second)
    parts = [slice(start, start + 256) for start in range(0, 4096, 256)]
    sums = [sum(brute_hsic(a[p], b[p]) for p in parts) for a, b in ((X, Y), (X, X), (Y, Y))]
    assert averaged.compute() == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), rel=1e-10)
    assert averaged.compute() == pytest.approx(cka(X, Y), abs=0.02)


def test_a_matrix_has_the_cka_of_every_pair_of_layers() -> None:
    X, Y = related(50, 4, 60)
    matrix = cka_matrix([X, Y, X + 1])
    assert matrix.shape == (3, 3)
    assert torch.equal(matrix, matrix.T)
    assert matrix.diag().tolist() == pytest.approx([1, 1, 1])
    assert float(matrix[0, 1]) == pytest.approx(cka(X, Y), rel=1e-12)
    assert float(matrix[0, 2]) == pytest.approx(1, rel=1e-9)


def test_torch_gives_tensors_with_a_gradient_and_numpy_floats() -> None:
    X, Y = (torch.tensor(rows) for rows in related(12, 3, 4))
    assert type(cka(X.numpy(), Y.numpy())) is float
    X.requires_grad_()
    assert torch.autograd.gradcheck(cka, (X, Y), eps=1e-6, atol=1e-6)


def test_the_functions_are_exported_by_the_package() -> None:
    X, Y = related(20, 3, 4)
    assert cp.cka(X, Y) == cka(X, Y)
    exported = (cp.CKA, cp.cka_matrix, cp.cka_between, cp.mir_between, cp.hsic)
    defined = (CKA, cka_matrix, cka_between, mir_between, hsic)
    assert [*map(inspect.unwrap, exported)] == [*map(inspect.unwrap, defined)]


def test_invalid_rows_blocks_and_merges_are_errors() -> None:
    X, Y = related(20, 3, 4)
    for arguments, message in (
        ((X[:3], Y[:3]), "needs at least 4 rows, found 3"),
        ((X, Y[:-1]), "X has 20 rows and Y has 19"),
        ((np.full_like(X, 0.1), Y), "does not vary"),
        ((np.where(np.arange(20)[:, None] == 4, np.nan, X), Y), "the first is row 4"),
    ):
        with pytest.raises(DataError, match=message):
            cka(*arguments)
    with pytest.raises(DataError, match="layer 0 has 20 rows and layer 1 has 19"):
        cka_matrix([X, Y[:-1]])
    stream = CKA()
    with pytest.raises(DataError, match="needs at least 4 rows, found 0"):
        stream.compute()
    stream.update(X, Y)
    with pytest.raises(DataError, match=r"have \(2, 4\) columns, earlier blocks had \(3, 4\)"):
        stream.update(X[:, :2], Y)
    with pytest.raises(DataError, match="cannot be merged"):
        stream.merge(CKA(minibatches=True))


def test_matrices_of_two_models_have_the_values_of_every_pair() -> None:
    draw = np.random.default_rng(0)
    shared = draw.normal(size=(50, 4))
    first = [shared @ draw.normal(size=(4, width)) for width in (3, 6)]
    second = [shared @ draw.normal(size=(4, width)) for width in (5, 2, 7)]
    matrices = cka_between(first, second), mir_between(first, second)
    assert matrices[0].shape == matrices[1].shape == (2, 3)
    for a in range(2):
        for b in range(3):
            assert float(matrices[0][a, b]) == pytest.approx(cka(first[a], second[b]))
            assert float(matrices[1][a, b]) == pytest.approx(cp.mir(first[a], second[b]))
    torch.testing.assert_close(cka_between(second), cka_matrix(second))
    torch.testing.assert_close(mir_between(second), mir_between(second, second).T)
    for between in (cka_between, mir_between):
        assert [between([], second).shape, between(first, []).shape, between([]).shape] == [(0, 3), (2, 0), (0, 0)]


def test_a_constant_layer_is_undefined_and_leaves_other_entries_of_a_matrix() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 3))
    matrix = cka_between([rows, np.ones((20, 2))])
    assert float(matrix[0, 0]) == pytest.approx(1)
    assert matrix[0, 1].isnan()
    assert matrix[1, 1].isnan()
    # Constant rows have a single direction, and therefore no entropy to share.
    assert mir_between([rows, np.ones((20, 2))])[0, 1].isnan()
    assert mir_between([rows, np.zeros((20, 2))])[1, 0].isnan()


@pytest.mark.parametrize(
    "rows", [np.eye(10), 3 * np.eye(13) + 1, np.eye(10)[:, :1], np.linalg.qr(RNG.normal(size=(6, 6)))[0]]
)
def test_rows_without_similarity_to_each_other_are_undefined_and_not_rounding(rows: np.ndarray) -> None:
    others = RNG.normal(size=(len(rows), 3))
    assert hsic(rows, rows) == 0  # of the off-diagonal part of K, which is constant
    with pytest.raises(DataError, match="orthogonal rows"):
        cka(rows, others)
    blocks = CKA()
    for part in (slice(0, 4), slice(4, None)):
        blocks.update(rows[part], others[part])
    with pytest.raises(DataError, match="orthogonal rows"):
        blocks.compute()
    assert cka_between([rows, others]).isnan().tolist() == [[True, True], [True, False]]


def test_rotation_and_scale_of_a_layer_change_neither_entropy_nor_cka() -> None:
    draw = np.random.default_rng(0)
    rows, changed = related(60, 5, 7)
    rotation, _ = np.linalg.qr(draw.normal(size=(5, 5)))
    turned = 3.7 * rows @ rotation
    assert cp.matrix_entropy(turned) == pytest.approx(cp.matrix_entropy(rows), rel=1e-12)
    assert cka(turned, changed) == pytest.approx(cka(rows, changed), rel=1e-12)
    assert cka(rows, rows) == pytest.approx(1, rel=1e-12)


def test_similarity_of_independent_rows_is_near_zero_on_a_subset() -> None:
    draw = np.random.default_rng(0)
    assert abs(cka(draw.normal(size=(2048, 64)), draw.normal(size=(2048, 128)))) < 0.02


def test_layers_of_one_rank_of_a_linear_network_share_their_entropy() -> None:
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(40, 6))
    first = inputs @ np.outer(draw.normal(size=6), draw.normal(size=5))
    layers = [first, first @ draw.normal(size=(5, 9)), first @ draw.normal(size=(5, 4))]
    assert [cp.matrix_entropy(layer) for layer in layers] == pytest.approx([0, 0, 0], abs=1e-12)
    turned, _ = np.linalg.qr(draw.normal(size=(6, 6)))
    assert cp.matrix_entropy(inputs @ turned) == pytest.approx(cp.matrix_entropy(inputs), rel=1e-12)


@pytest.mark.parametrize("memory", [1, 10**9])
def test_many_wide_layers_by_gram_matrices_have_the_same_similarities(
    monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr(similarity, "GRAM_BYTES", memory)
    draw = np.random.default_rng(3)
    shared = draw.normal(size=(30, 4))
    layers = [shared @ draw.normal(size=(4, width)) + draw.normal(size=(30, width)) + 5 for width in (90, 70, 80, 60)]
    layers.append(np.ones((30, 50)))
    called = []
    by_grams = similarity._by_grams
    monkeypatch.setattr(similarity, "_by_grams", lambda *sides: called.append(1) or by_grams(*sides))
    for first, second in ((layers, None), (layers[:3], layers[1:])):
        matrix = cka_between(first, second)
        assert called
        called.clear()
        for a, X in enumerate(first):
            for b, Y in enumerate(first if second is None else second):
                if X.std() == 0 or Y.std() == 0:
                    assert matrix[a, b].isnan()
                else:
                    assert float(matrix[a, b]) == pytest.approx(cka(X, Y), rel=1e-11)


def test_mir_between_needs_two_rows_only_and_equal_numbers_of_rows() -> None:
    X, Y = (np.random.default_rng(seed).standard_normal((3, 4)) for seed in (0, 1))
    assert float(cp.mir_between([X], [Y])) == pytest.approx(cp.mir(X, Y), rel=1e-12)
    with pytest.raises(DataError, match="the first ones have 3 rows and the others 2"):
        cp.mir_between([X], [Y[:2]])


def test_an_hsic_that_overflows_is_an_error_and_not_nan() -> None:
    X = 1e200 * np.random.default_rng(0).standard_normal((8, 4))
    with pytest.raises(DataError, match="hsic: the rows are so large"):
        cp.hsic(X, X)


@pytest.mark.parametrize("minibatches", [False, True])
@pytest.mark.parametrize("scales", [(1e-100, 1e-100), (1e-200, 1e-250), (0, 1e-250), (1e50, 1e50), (1e-150, 1e150)])
def test_streamed_cka_keeps_its_digits_at_any_scale(scales: tuple[float, float], minibatches: bool) -> None:
    X, Y = related(24, 3, 4)
    parts = [CKA(minibatches=minibatches) for _ in range(3)]
    for rows, scale, part in ((slice(0, 8), scales[0], 0), (slice(8, 16), scales[1], 1), (slice(16, 24), scales[1], 1)):
        parts[part].update(scale * X[rows], scale * Y[rows])
    parts[2].merge(parts[1])
    parts[0].merge(parts[2])
    size = np.repeat(np.array(scales) / max(scales), [8, 16])[:, None]
    X, Y = size * X, size * Y
    expected = cka(X, Y)
    if minibatches:
        blocks = [slice(0, 8), slice(8, 16), slice(16, 24)]
        shared, first, second = (
            sum(float(hsic(a[rows], b[rows])) for rows in blocks) for a, b in ((X, Y), (X, X), (Y, Y))
        )
        expected = shared / (first * second) ** 0.5
    assert parts[0].compute() == pytest.approx(expected, rel=1e-12)
    assert parts[1].rows == 16
    assert cka(max(scales) * X, max(scales) * Y) == pytest.approx(float(cka(X, Y)), rel=1e-12)
