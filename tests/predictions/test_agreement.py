"""Tests of disagreement, agreement among errors and divergence of predictions: known cases, scipy, and formulas."""

from itertools import combinations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax as softmax_of_scipy

from ckpt_probe.predictions.matrices import compare_predictions, divergences, symmetric
from ckpt_probe.predictions.scores import softmax

LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([[0, 1, 1, 1, 2, 2], [0, 0, 1, 2, 2, 0]])


def test_shares_of_six_rows_equal_those_counted_by_hand() -> None:
    shares = compare_predictions(PREDICTED, LABELS, [(0, 1)])
    # Rows 1, 3 and 5 differ. Rows 2 and 4 are wrong in both, each with one class.
    # Row 1 becomes right, rows 3 and 5 become wrong.
    assert shares.disagreement == pytest.approx([3 / 6])
    assert shares.error_agreement == pytest.approx([1.0])
    assert shares.wins == pytest.approx([1 / 6])
    assert shares.losses == pytest.approx([2 / 6])


def test_shares_over_several_blocks_equal_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_probe.predictions.matrices.ROWS", 64)
    rng = np.random.default_rng(1)
    labels, predicted = rng.integers(0, 4, 500), rng.integers(0, 4, (3, 500))
    pairs = [(0, 1), (0, 2), (1, 2)]
    shares = compare_predictions(predicted, labels, pairs)
    for number, (i, j) in enumerate(pairs):
        a, b = predicted[i], predicted[j]
        wrong_in_both = (a != labels) & (b != labels)
        assert shares.disagreement[number] == pytest.approx(np.mean(a != b))
        assert shares.error_agreement[number] == pytest.approx(np.mean(a[wrong_in_both] == b[wrong_in_both]))
        assert shares.wins[number] == pytest.approx(np.mean((a != labels) & (b == labels)))


def test_without_common_errors_or_labels_the_values_are_undefined() -> None:
    assert np.isnan(compare_predictions(np.stack([LABELS, LABELS]), LABELS, [(0, 1)]).error_agreement).all()
    unlabelled = compare_predictions(PREDICTED, None, [(0, 1)])
    assert unlabelled.disagreement == pytest.approx([0.5])
    assert np.isnan([unlabelled.error_agreement, unlabelled.wins, unlabelled.losses]).all()


def test_divergence_equals_that_of_scipy() -> None:
    logits = np.random.default_rng(2).normal(size=(4, 300, 7)) * 4
    probabilities = np.stack([softmax(each) for each in logits])
    np.testing.assert_allclose(probabilities, softmax_of_scipy(logits, axis=2), rtol=1e-12)
    blocks = [probabilities[:, :100], probabilities[:, 100:]]
    pairs = [*combinations(range(4), 2)]
    expected = [np.mean(jensenshannon(probabilities[i].T, probabilities[j].T) ** 2) for i, j in pairs]
    np.testing.assert_allclose(divergences(blocks, pairs), expected, rtol=1e-9)


def test_divergence_of_extreme_logits_is_finite() -> None:
    certain = softmax(np.array([[0.0, -np.inf], [2000.0, 0.0]]))
    opposite = certain[:, ::-1]
    values = divergences([np.stack([certain, certain, opposite])], [(0, 1), (0, 2)])
    np.testing.assert_allclose(values, [0, np.log(2)], atol=1e-15)


def test_divergence_of_equal_probabilities_is_zero() -> None:
    p = softmax(np.random.default_rng(5).normal(size=(300, 7)))
    same, other = divergences([np.stack([p, p, p[::-1]])], [(0, 1), (0, 2)])
    assert same == 0 < other


def test_divergence_over_parts_of_a_block_counts_networks_that_differ_in_one_of_them() -> None:
    p = softmax(np.random.default_rng(5).normal(size=(9000, 5)))
    first, last = p.copy(), p.copy()
    first[0], last[-1] = p[0, ::-1], p[-1, ::-1]
    values = divergences([np.stack([p, first, last])], [(0, 1), (0, 2), (1, 1)])
    of_row = [jensenshannon(p[row], p[row, ::-1]) ** 2 / 9000 for row in (0, -1)]
    assert values == pytest.approx([*of_row, 0], rel=1e-6)
    assert np.isnan(divergences([], [(0, 1)])).all()


def test_divergence_of_close_networks_equals_its_second_order_value() -> None:
    logits = np.random.default_rng(3).normal(size=(200, 5))
    p, q = softmax(logits), softmax(logits + 1e-5 * np.random.default_rng(4).normal(size=(200, 5)))
    expected = np.mean(np.sum((p - q) ** 2 / (p + q), axis=1)) / 4  # second order of both Kullback-Leibler terms
    assert divergences([np.stack([p, q])], [(0, 1)])[0] == pytest.approx(expected, rel=1e-3)


def test_a_matrix_is_symmetric() -> None:
    matrix = symmetric(np.array([1.0, 2.0, 3.0]), 3, 0.5)
    assert matrix.tolist() == [[0.5, 1, 2], [1, 0.5, 3], [2, 3, 0.5]]
