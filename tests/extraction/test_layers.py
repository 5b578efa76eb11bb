"""Layers in dumps: the same rows in every layer, moments and features of one pass, and what is refused."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ckpt_probe as cp
from ckpt_probe.dumps import DumpWriter
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.models import build_model
from ckpt_probe.moments import Moments

SAMPLES, CLASSES = 60, 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet", {"input_shape": [1, 8, 8], "classes": CLASSES}).eval()


def batches(size: int = 16) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(SAMPLES, 1, 8, 8, generator=draw), torch.arange(SAMPLES) % CLASSES
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def series(place: Path, **options: Any) -> Path:
    """The dump of one checkpoint of the network, with these options of `extract_series`."""
    torch.save(network().state_dict(), place / "a.pth")
    inputs, labels = (torch.cat(parts).numpy() for parts in zip(*batches(), strict=True))
    np.savez(place / "data.npz", x_test=inputs, y_test=labels)
    known = {"model": "resnet", "model_arguments": {"input_shape": [1, 8, 8], "classes": CLASSES}, "device": "cpu"}
    cp.extract_series(place / "a.pth", place / "out", data=f"npz:{place / 'data.npz'}", **known, **options)
    return place / "out" / "a.h5"


def test_layers_of_a_dump(tmp_path: Path) -> None:
    path = series(tmp_path, layers="all", layer_store="both", subset_rows=20, batch_size=7)
    with cp.open_dump(path) as dump:
        view = dump["test"]
        assert [(layer.name, layer.depth, layer.pooling) for layer in view.layers] == [
            *((name, number / 4, "mean") for number, name in enumerate(("2", "3", "4", "5"))),
            ("penultimate", 1.0, "features"),
        ]
        found = view.subset_indices()
        assert found is not None
        indices, seed = found
        assert seed == 0
        assert (indices[1:] > indices[:-1]).all()
        counts, all_counts = (np.bincount(view.labels[:][part], minlength=CLASSES) for part in (indices, slice(None)))
        assert counts.sum() == 20
        # As equal as the classes allow.
        assert all(count == total or count >= counts.max() - 1 for count, total in zip(counts, all_counts, strict=True))
        for layer in view.layers:
            whole = view.features if layer.name == "penultimate" else layer.features
            assert np.array_equal(layer.rows[:], whole[:][indices])
        held = view.layers[2]
        moments = Moments(CLASSES, halves=True, subset=20)
        moments.update(held.features[:], held.labels[:])
        stored = held.read_moments()
        assert stored is not None
        for name, values in moments.state_dict().items():
            torch.testing.assert_close(torch.from_numpy(stored[0][name]), values)


def test_the_rest_of_a_dump_is_as_without_layers(tmp_path: Path) -> None:
    plain = cp.extract(network(), batches(), tmp_path / "a.h5", device="cpu")
    layered = cp.extract(network(), batches(), tmp_path / "b.h5", device="cpu", layers="3,4")
    with h5py.File(plain) as one, h5py.File(layered) as other:
        for name in ("features", "labels", "logits"):
            assert np.array_equal(one[f"data/{name}"][()], other[f"data/{name}"][()])
        assert set(other["data"]) - set(one["data"]) == {"layers"}


def test_another_choice_of_layers_is_another_provenance(tmp_path: Path) -> None:
    series(tmp_path, layers="all")
    with pytest.raises(UsageError, match=r"another provenance .*: layers 'all' / '3'"):
        series(tmp_path, layers="3")


class Tokens(nn.Module):
    """Classifies every token; a block mixes only a token's own features."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 6), nn.Linear(6, CLASSES)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


def test_token_rows_of_a_padded_batch_are_those_of_the_sequences(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = Tokens().eval(), torch.randint(9, (2, 5))
    labels = torch.tensor([[0, 1, 2, 0, 1], [2, 1, -100, -100, -100]])
    alone = [(ids[:1], labels[:1]), (ids[1:, :2], labels[1:, :2])]
    taken = []
    for number, shown in enumerate(([(ids, labels)], alone)):
        path = cp.extract(model, shown, tmp_path / f"{number}.h5", device="cpu", layers="embedding,blocks.*.1")
        with cp.open_dump(path) as dump:
            taken.append({layer.name: layer.rows[:] for layer in dump["data"].layers})
    assert list(taken[0]) == ["embedding", "blocks.0.1", "blocks.1.1", "penultimate"]
    for layer, rows in taken[0].items():
        assert rows.shape == (7, 6)
        np.testing.assert_allclose(rows, taken[1][layer], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"layer_store": "rows"}, r"`layer_store='rows'`: expected one of features, moments, both"),
        ({"subset_rows": 3}, r"`subset_rows=3`: expected at least 4"),
        ({"subset_seed": -1}, r"`subset_seed=-1`: expected at least 0"),
        ({"layers": "nine"}, r"`layers='nine'`: no layer has that name"),
        ({"pooling": "max"}, r"`pooling='max'`: expected one of"),
    ],
)
def test_options_without_a_meaning(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        series(tmp_path, **{"layers": "all", **options})


def test_a_layers_name_that_is_a_path(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"layer 'a/b': not a name that a dump can hold"),
        DumpWriter(tmp_path / "a.h5", None, classes=2, features=3) as writer,
    ):
        writer.start_layer("test", "a/b", depth=0.0, pooling="mean")


def test_a_dump_with_layers_as_a_tree(tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    path = series(tmp_path, layers="3", layer_store="both", subset_rows=20)
    with cp.open_dump(path) as dump:
        tree = dump.to_xarray().load()
    assert tree["/test/layers/3/features"].dims == ("sample", "layer_feature")
    assert tree["/test/layers/3/subset_rows"].dims == ("subset_row", "layer_feature")
    assert tree["/test/subset/indices"].shape == (20,)
