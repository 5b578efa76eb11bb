"""Tests of portraits: mean cosines of blocks, the ranks of spectra that are stored, and what the cache returns."""

import itertools
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ckpt_probe.analysis import Settings, read_series
from ckpt_probe.moments.details import MOST_BLOCKS, block_cosines, block_edges, portrait_of, some_ranks

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("count", [1, 2, 10, MOST_BLOCKS, MOST_BLOCKS + 1, 150])
def test_cosines_of_blocks_are_the_means_over_their_pairs(count: int) -> None:
    rows = torch.tensor(RNG.normal(size=(count, 5)))
    means = np.array(block_cosines(rows), dtype=float)
    unit = rows / rows.norm(dim=1, keepdim=True)
    cosines, edges = (unit @ unit.T).numpy(), block_edges(count)
    assert len(means) == min(count, MOST_BLOCKS)
    assert (edges[0], edges[-1]) == (0, count)
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        for j, (left, right) in enumerate(itertools.pairwise(edges)):
            block = cosines[low:high, left:right]
            if i == j and high - low > 1:
                block = block[~np.eye(high - low, dtype=bool)]
            assert means[i, j] == pytest.approx(block.mean(), abs=1e-12)


def test_a_zero_row_has_no_cosine_and_is_left_out_of_means() -> None:
    rows = torch.tensor(RNG.normal(size=(3, 4)))
    rows[1] = 0
    cosines = block_cosines(rows)
    assert [cosines[1][j] for j in range(3)] == [None] * 3
    assert cosines[0][0] == cosines[2][2] == 1
    many = torch.tensor(RNG.normal(size=(2 * MOST_BLOCKS, 4)))
    many[0] = 0
    unit = torch.nn.functional.normalize(many[1:4], dim=1)
    assert block_cosines(many)[0][1] == pytest.approx(float((unit[0] @ unit[1:].T).mean()))
    assert block_cosines(many)[0][0] == 1


def test_the_first_ranks_are_all_stored_and_later_ones_ever_more_sparsely() -> None:
    values = torch.tensor(RNG.random(5000))
    ranks, stored_values = some_ranks(values)
    descending = np.sort(values.numpy())[::-1]
    assert ranks[:20] == list(range(1, 21))
    assert stored_values == [descending[rank - 1] for rank in ranks]
    assert all(after <= 1.25 * before + 1 for before, after in itertools.pairwise(ranks))
    assert len(ranks) < 50
    assert ranks[-1] > 5000 / 1.26
    # Ranks do not depend on the length of the spectrum.
    assert some_ranks(values[:700])[0] == [rank for rank in ranks if rank <= 700]
    assert some_ranks(values[:0]) == ([], [])


def test_within_is_the_mean_over_classes_by_rank() -> None:
    spectra = {"within.0": torch.tensor([0.25, 0.75]), "within.7": torch.tensor([1.0]), "class.means": torch.ones(1)}
    portrait = portrait_of([0, 7], {}, spectra)
    assert portrait.spectra["within"] == ([1, 2], [0.875, 0.125])
    assert (portrait.blocks, portrait.counts) == ([[0], [7]], {"class.means": 1, "within": 2})


def test_the_cache_returns_the_same_portrait(tmp_path: Path) -> None:
    labels = np.arange(60) % 3
    with h5py.File(tmp_path / "step-1.h5", "w") as file:
        file["test/features"] = RNG.normal(size=(3, 5))[labels] + RNG.normal(size=(60, 5))
        file["test/labels"] = labels
        file["classifier/weights"] = RNG.normal(size=(3, 5))
    settings = Settings(portrait=True, per_class=True)
    first, second = (list(read_series(tmp_path, settings, cache=True)) for _ in range(2))
    assert first[0].portrait is not None
    assert second[0].portrait is not None
    assert set(first[0].portrait.cosines) == {"means", "weights"}
    assert first[0].portrait.cosines == second[0].portrait.cosines
    assert [list(map(list, spectrum)) for spectrum in first[0].portrait.spectra.values()] == [
        list(map(list, spectrum)) for spectrum in second[0].portrait.spectra.values()
    ]
    [plain] = read_series(tmp_path, Settings(), cache=True)
    assert plain.portrait is None
