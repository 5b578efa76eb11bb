"""Tests of the subset for standard errors: independent of blocks and merges, balanced by class, drawn by documents."""

import numpy as np
import pytest
import torch

from ckpt_probe.errors import DataError
from ckpt_probe.moments import Moments
from ckpt_probe.moments.errors.subset import halves_of, priorities


def data(samples: int = 3000, classes: int = 7, features: int = 5):
    random = np.random.default_rng(0)
    shares = np.arange(1, classes + 1) ** 2
    return random.normal(size=(samples, features)), random.choice(classes, samples, p=shares / shares.sum())


def numbers(record: dict) -> dict[str, float]:
    return {name: value for name, value in record.items() if isinstance(value, float | int)}


def accumulated(blocks, **options) -> Moments:
    moments = Moments(7, halves=True, **{"subset": 200} | options)
    for rows, labels, indices in blocks:
        moments.update(rows, labels, indices)
    return moments


def test_blocks_order_and_merges_do_not_change_the_subset() -> None:
    rows, labels = data()
    first = Moments(7, halves=True, subset=200)
    first.update(rows, labels)
    blocks = [(rows[i : i + 170], labels[i : i + 170], np.arange(3000)[i : i + 170]) for i in range(0, 3000, 170)]
    backwards, workers = accumulated(blocks[::-1]), [accumulated(blocks[i::3]) for i in range(3)]
    merged = Moments(7, halves=True, subset=200)
    for worker in workers[::-1]:
        merged.merge(worker)
    for moments in (accumulated(blocks), backwards, merged):
        assert torch.equal(moments.subset.indices, first.subset.indices)
        assert torch.equal(moments.subset.labels, first.subset.labels)
        assert torch.equal(moments.subset.features, first.subset.features)
    assert np.array_equal(first.subset.features.numpy(), rows[first.subset.indices.numpy()])
    assert not torch.equal(accumulated(blocks, seed=1).subset.indices, first.subset.indices)


def test_classes_are_balanced() -> None:
    rows, labels = data()
    moments = Moments(7, subset=200)
    moments.update(rows, labels)
    counts, sizes = np.bincount(labels), torch.bincount(moments.subset.labels).numpy()
    assert sizes.sum() == 200
    quota = sizes.max()
    assert ((sizes >= np.minimum(counts, quota - 1)) & (sizes <= quota)).all()


def test_rows_of_a_class_are_drawn_uniformly() -> None:
    hits = np.zeros(100)
    for seed in range(300):
        moments = Moments(2, subset=20, seed=seed)
        moments.update(np.ones((100, 2)), np.arange(100) % 2)
        hits[moments.subset.indices.numpy()] += 1
    assert hits.mean() == 60
    assert np.abs(hits - 60).max() < 5 * np.sqrt(300 * 0.2 * 0.8)


def test_documents_are_drawn_as_units() -> None:
    rows, labels = data(6000)
    documents = np.repeat(np.arange(300), 20)
    moments = Moments(7, halves=True, subset=400)
    for start in range(0, 6000, 1111):
        part = slice(start, start + 1111)
        moments.update(rows[part], labels[part], documents=documents[part])
    subset = moments.subset
    drawn, sizes = np.unique(subset.documents.numpy(), return_counts=True)
    assert len(drawn) == 50
    assert (sizes == 8).all()
    assert (subset.document_rows == 20).all()
    assert all(len(set(subset.halves[subset.documents == document].tolist())) == 1 for document in drawn)
    parts = [Moments(7, halves=True, subset=400) for _ in range(2)]
    for number, part in enumerate(parts):
        chosen = np.arange(number, 6000, 2)
        part.update(rows[chosen], labels[chosen], chosen, documents[chosen])
    parts[0].merge(parts[1])
    assert torch.equal(parts[0].subset.indices, subset.indices)
    assert torch.equal(parts[0].subset.document_rows, subset.document_rows)
    loaded = Moments(7, halves=True, subset=400)
    loaded.load_state_dict(moments.state_dict())
    for name in ("documents", "document_rows", "halves"):
        assert torch.equal(getattr(loaded.subset, name), getattr(subset, name))


def test_halves_alternate_within_classes_and_merge_to_all_rows() -> None:
    rows, labels = data(500)
    plain, with_halves = Moments(7), Moments(7, halves=True, subset=100)
    plain.update(rows, labels)
    for start in range(0, 500, 37):
        with_halves.update(rows[start : start + 37], labels[start : start + 37])
    counts = [part.scatter.counts for part in with_halves._parts]
    assert (counts[0] - counts[1]).abs().max() <= 1
    first, second = plain.state_dict(), with_halves.state_dict()
    for name in ("counts", "means", "squares", "within"):
        assert torch.allclose(first[name].double(), second[name].double(), rtol=1e-12, atol=1e-10)
    assert numbers(plain.compute(only="nc")) == pytest.approx(numbers(with_halves.compute(only="nc")), rel=1e-9)
    again = Moments(7, halves=True, subset=100)
    again.load_state_dict(second)
    assert numbers(again.compute(errors=True)) == pytest.approx(numbers(with_halves.compute(errors=True)), rel=1e-9)
    # Accumulators without halves can load the state; states of earlier versions have neither halves nor a subset.
    bare = Moments(7)
    bare.load_state_dict(second)
    assert numbers(bare.compute()) == pytest.approx(numbers(plain.compute()), rel=1e-9)
    again.load_state_dict(first)
    assert "no rows were kept" in again.compute(errors=True)["missing"]
    with_halves.reset()
    assert with_halves.samples == 0
    assert len(with_halves.subset) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indices": [0, 1]}, "indices: expected shape"),
        ({"documents": [0, -1, 2]}, "documents: row 1 is -1"),
        ({"documents": [0.5, 1, 2]}, "documents: expected whole numbers"),
    ],
)
def test_invalid_indices_and_documents_are_errors(arguments: dict, message: str) -> None:
    moments = Moments(3, subset=10)
    with pytest.raises(DataError, match=message):
        moments.update(np.eye(3), [0, 1, 2], **arguments)
    assert moments.samples == 0


def test_accumulators_with_and_without_halves_or_subset_cannot_be_merged() -> None:
    full, without = Moments(3, halves=True, subset=10), [Moments(3), Moments(3, halves=True), Moments(3, subset=10)]
    for second in without:
        second.update(np.eye(3), [0, 1, 2])
        with pytest.raises(DataError, match="without"):
            full.merge(second)


def test_damaged_subsets_are_refused() -> None:
    moments = Moments(3, halves=True, subset=10)
    moments.update(np.eye(3), [0, 1, 2])
    state = moments.state_dict()
    for name, value in (
        ("subset.labels", torch.tensor([0, 1, 9])),
        ("subset.indices", torch.tensor([0, 1])),
        ("subset.features", torch.full((3, 3), torch.nan)),
        ("subset.features", torch.ones(3, 4)),
    ):
        with pytest.raises(DataError, match="stored moments"):
            Moments(3, halves=True, subset=10).load_state_dict({**state, name: value})


def test_halves_alternate_within_each_class_after_earlier_rows_and_are_even_over_documents() -> None:
    labels, earlier = (
        torch.tensor([2, 0, 2, 2, 0, 5, 2]),
        [torch.tensor([1, 0, 2]), torch.tensor([0, 0, 1, 9, 9, 9, 9])],
    )
    seen, expected = {0: 1, 2: 3, 5: 9}, []
    for label in labels.tolist():
        expected.append(seen[label] % 2)
        seen[label] += 1
    assert halves_of(labels, None, earlier).tolist() == expected
    documents = torch.arange(400).repeat_interleave(2)
    halves = halves_of(torch.zeros(800, dtype=torch.int64), documents, [])
    assert torch.equal(halves[::2], halves[1::2])
    assert set(halves.tolist()) == {0, 1}
    assert float(halves.double().mean()) == pytest.approx(0.5, abs=0.08)
    drawn = priorities(documents[::2], 0)
    assert len(set(drawn.tolist())) == 400
