"""Tests of the numbers of documents against the formulas of the papers, written in numpy."""

import math

import numpy as np
import pytest
import torch

from ckpt_probe.errors import DataError
from ckpt_probe.moments.documents import (
    CENTRED,
    CURVATURE,
    ENTROPY,
    Documents,
    centred_entropy,
    curvature,
    document_entropy,
    error_of_mean,
    errors_of_documents,
    joined_documents,
)

DRAW = np.random.default_rng(0)
LENGTHS = (1, 2, 7, 30, 4)
ROWS = [DRAW.normal(size=(length, 6)) + 1 for length in LENGTHS]


def entropy(matrix: np.ndarray) -> float:
    shares = np.linalg.eigvalsh(matrix / np.trace(matrix))
    shares = shares[shares > 1e-12]
    return float(-(shares * np.log(shares)).sum())


def skean(rows: np.ndarray) -> float:
    """Return the entropy of a prompt, of order 1: eigenvalues of Z Zᵀ over its trace (Skean et al. 2025, section 3)."""
    return entropy(rows @ rows.T)


def wei(rows: np.ndarray) -> float:
    """Return the entropy of a sentence: centred rows at unit length (`normalize`, `cal_cov` of Diff-eRank)."""
    moved = rows - rows.mean(axis=0)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    return entropy(moved.T @ moved)


def mean_angle(rows: np.ndarray) -> float:
    steps = np.diff(rows, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    return float(np.arccos((steps[1:] * steps[:-1]).sum(axis=1) / lengths[1:] / lengths[:-1]).mean())


def stream(parts: list[np.ndarray], at_once: int, first: int = 0) -> Documents:
    documents = Documents(2**20)
    rows = np.concatenate(parts)
    owners = np.repeat(np.arange(first, first + len(parts)), [len(part) for part in parts])
    places = np.concatenate([np.arange(len(part)) for part in parts])
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        documents.update(rows[part], owners[part], places[part])
    return documents


@pytest.mark.parametrize("at_once", [1, 5, 100])
def test_numbers_equal_the_papers_formulas_for_blocks_of_any_size(at_once: int) -> None:
    numbers = stream(ROWS, at_once).finish()
    assert numbers.count == 5
    assert numbers.values[ENTROPY].tolist() == pytest.approx([skean(rows) for rows in ROWS], abs=1e-9)
    assert numbers.mean(CENTRED) == pytest.approx(np.mean([wei(rows) for rows in ROWS[1:]]), abs=1e-9)
    assert numbers.mean(CURVATURE) == pytest.approx(np.mean([mean_angle(rows) for rows in ROWS[2:]]), abs=1e-9)
    parts = [stream(ROWS[:2], 3).finish(), stream(ROWS[2:], 4, first=2).finish()]
    assert torch.equal(joined_documents(parts).values[ENTROPY], numbers.values[ENTROPY])


def test_undefined_numbers_are_left_out_of_the_mean() -> None:
    single, equal = torch.ones(1, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)
    assert centred_entropy(single) is None
    assert centred_entropy(equal) is None
    assert curvature(equal) is None
    assert document_entropy(0 * equal) is None
    assert float(document_entropy(equal) or 0) == 0
    rows = torch.eye(4, dtype=torch.float64)
    assert float(curvature(rows) or 0) == pytest.approx(2 * math.pi / 3)
    # The difference across a gap in the positions is no step: 0 1 | 3 4.
    assert curvature(rows, torch.tensor([0, 1, 3, 4])) is None
    numbers = stream([np.ones((1, 3)), np.ones((2, 3))], 3).finish()
    assert numbers.mean(CENTRED) is None


def test_errors_treat_documents_as_independent() -> None:
    rows = [DRAW.normal(size=(5 + length % 7, 4)) for length in range(400)]
    numbers = stream(rows, 64).finish()
    errors = errors_of_documents(numbers, numbers)
    entropies, ranks = np.array([skean(part) for part in rows]), np.array([wei(part) for part in rows])
    error, bias = errors["documents.entropy"]
    assert error == pytest.approx(entropies.std(ddof=1) / 20)
    assert bias == 0
    halves = [math.exp(ranks[start::2].mean()) for start in (0, 1)]
    error, bias = errors["erank.documents"]
    assert error == pytest.approx(math.exp(ranks.mean()) * ranks.std(ddof=1) / 20)
    assert bias == pytest.approx(math.exp(ranks.mean()) * ranks.var(ddof=1) / 800)
    assert abs(np.mean(halves) - math.exp(ranks.mean())) < 10 * (bias or 0)
    assert errors["erank.documents_difference"] == (None, None)
    changed = [part * [3, 1, 1, 1] for part in rows]
    entropies_of_changed = np.array([wei(part) for part in changed])
    pairs = math.exp(entropies_of_changed.mean()) * entropies_of_changed - math.exp(ranks.mean()) * ranks
    error, _ = errors_of_documents(numbers, stream(changed, 64).finish())["erank.documents_difference"]
    assert error == pytest.approx(pairs.std(ddof=1) / 20)
    assert errors_of_documents(stream(rows[:7], 64).finish(), None)["documents.entropy"] == (None, None)


def test_documents_must_be_contiguous_and_fit_into_memory() -> None:
    documents = Documents(8 * 3 * 5)
    documents.update(np.ones((2, 3)), np.array([0, 2]), np.array([0, 0]))
    with pytest.raises(DataError, match="rows of document 1 come after those of document 2"):
        documents.update(np.ones((1, 3)), np.array([1]), np.array([0]))
    documents = Documents(8 * 3 * 5)
    documents.update(np.ones((8, 3)), np.array([0, 0, 1, 1, 1, 1, 1, 1]), np.arange(8))
    documents.update(np.ones((3, 3)), np.array([1, 1, 2]), np.arange(3))
    numbers = documents.finish()
    assert (numbers.count, numbers.oversized) == (2, 1)


def test_the_error_of_a_mean_over_documents_needs_eight_different_ones() -> None:
    values = np.random.default_rng(1).normal(size=8)
    assert error_of_mean(torch.from_numpy(values)) == pytest.approx(values.std(ddof=1) / math.sqrt(8))
    assert error_of_mean(torch.from_numpy(values[:7])) is None
    assert error_of_mean(torch.full((8,), 3.0)) is None
