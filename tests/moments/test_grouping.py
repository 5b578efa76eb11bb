"""A subset of rows: drawn by the seed and the number of rows alone, whatever the blocks."""

import numpy as np
import pytest
import torch

from ckpt_probe.moments.grouping import Subset, subset_indices

ROWS, OTHER = torch.arange(300.0).reshape(100, 3), torch.arange(100.0)[:, None]


def taken(sizes: list[int], *, size: int = 20, seed: int = 5) -> Subset:
    subset = Subset(size, seed)
    for rows, other in zip(ROWS.split(sizes), OTHER.split(sizes), strict=True):
        subset.update(len(rows), {"a": rows, "b": other})
    return subset


def test_rows_are_those_of_the_smallest_numbers_and_stand_at_their_places() -> None:
    subset = taken([100])
    smallest = np.sort(np.argsort(np.random.default_rng(5).random(100))[:20])
    assert subset.indices.tolist() == smallest.tolist()
    assert torch.equal(subset.rows["a"], ROWS[subset.indices])
    assert torch.equal(subset.rows["b"], OTHER[subset.indices])
    assert torch.equal(subset_indices(100, 20, 5), subset.indices)
    assert (subset.size, subset.seed) == (20, 5)


@pytest.mark.parametrize("sizes", [[1] * 100, [7] * 14 + [2], [19, 1, 80], [50, 50]])
def test_blocks_of_any_size_keep_the_same_rows(sizes: list[int]) -> None:
    whole, found = taken([100]), taken(sizes)
    assert torch.equal(found.indices, whole.indices)
    assert all(torch.equal(found.rows[name], whole.rows[name]) for name in "ab")


def test_fewer_rows_than_asked_are_all_kept_and_another_seed_takes_others() -> None:
    assert subset_indices(15, 20, 0).tolist() == list(range(15))
    assert len(subset_indices(5000, seed=1)) == 2048
    assert subset_indices(100, 20, 0).tolist() != subset_indices(100, 20, 1).tolist()
    assert len(Subset().indices) == 0
