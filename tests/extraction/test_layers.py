"""Tests of layers in dumps: the same rows in every layer, moments and features of one pass, and refused options."""

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


def series(directory: Path, **options: Any) -> Path:
    """Extract one checkpoint of the network with these options, and return the dump."""
    torch.save(network().state_dict(), directory / "a.pth")
    inputs, labels = (torch.cat(parts).numpy() for parts in zip(*batches(), strict=True))
    np.savez(directory / "data.npz", x_test=inputs, y_test=labels)
    settings = {"model": "resnet", "model_arguments": {"input_shape": [1, 8, 8], "classes": CLASSES}, "device": "cpu"}
    cp.extract_series(
        directory / "a.pth", directory / "out", data=f"npz:{directory / 'data.npz'}", **settings, **options
    )
    return directory / "out" / "a.h5"


def test_layers_of_a_dump_have_consistent_rows_subsets_and_moments(tmp_path: Path) -> None:
    path = series(tmp_path, layers="all", layer_store="both", subset_rows=20, batch_size=7)
    with cp.open_dump(path) as dump:
        view = dump["test"]
        assert [(layer.name, layer.depth, layer.pooling) for layer in view.layers] == [
            *((name, number / 4, "mean") for number, name in enumerate(("2", "3", "4", "5"))),
            ("penultimate", 1.0, "features"),
        ]
        subset = view.subset_indices()
        assert subset is not None
        indices, seed = subset
        assert seed == 0
        assert (indices[1:] > indices[:-1]).all()
        counts, all_counts = (np.bincount(view.labels[:][part], minlength=CLASSES) for part in (indices, slice(None)))
        assert counts.sum() == 20
        # Classes have equal counts, except those with fewer samples.
        assert all(count == total or count >= counts.max() - 1 for count, total in zip(counts, all_counts, strict=True))
        for layer in view.layers:
            features = view.features if layer.name == "penultimate" else layer.features
            assert np.array_equal(layer.rows[:], features[:][indices])
        third = view.layers[2]
        moments = Moments(CLASSES, halves=True, subset=20)
        moments.update(third.features[:], third.labels[:])
        stored = third.read_moments()
        assert stored is not None
        for name, values in moments.state_dict().items():
            torch.testing.assert_close(torch.from_numpy(stored[0][name]), values)


def test_other_arrays_of_a_dump_do_not_depend_on_layers(tmp_path: Path) -> None:
    plain = cp.extract(network(), batches(), tmp_path / "a.h5", device="cpu")
    layered = cp.extract(network(), batches(), tmp_path / "b.h5", device="cpu", layers="3,4")
    with h5py.File(plain) as without_layers, h5py.File(layered) as with_layers:
        for name in ("features", "labels", "logits"):
            assert np.array_equal(without_layers[f"data/{name}"][()], with_layers[f"data/{name}"][()])
        assert set(with_layers["data"]) - set(without_layers["data"]) == {"layers"}


def test_a_dump_with_other_layers_is_not_replaced(tmp_path: Path) -> None:
    series(tmp_path, layers="all")
    with pytest.raises(UsageError, match=r"another provenance .*: layers 'all' / '3'"):
        series(tmp_path, layers="3")


class Tokens(nn.Module):
    """A classifier of tokens, whose blocks combine only features of the same token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 6), nn.Linear(6, CLASSES)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


def test_rows_of_tokens_do_not_depend_on_padding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = Tokens().eval(), torch.randint(9, (2, 5))
    labels = torch.tensor([[0, 1, 2, 0, 1], [2, 1, -100, -100, -100]])
    alone = [(ids[:1], labels[:1]), (ids[1:, :2], labels[1:, :2])]
    by_layer = []
    for number, loader in enumerate(([(ids, labels)], alone)):
        path = cp.extract(model, loader, tmp_path / f"{number}.h5", device="cpu", layers="embedding,blocks.*.1")
        with cp.open_dump(path) as dump:
            by_layer.append({layer.name: layer.rows[:] for layer in dump["data"].layers})
    assert list(by_layer[0]) == ["embedding", "blocks.0.1", "blocks.1.1", "penultimate"]
    for layer, rows in by_layer[0].items():
        assert rows.shape == (7, 6)
        np.testing.assert_allclose(rows, by_layer[1][layer], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_store": "rows"}, r"`layer_store='rows'`: expected one of features, moments, both"),
        ({"subset_rows": 3}, r"`subset_rows=3`: expected at least 4"),
        ({"subset_seed": -1}, r"`subset_seed=-1`: expected at least 0"),
        ({"layers": "nine"}, r"`layers='nine'`: no layer has that name"),
        ({"pooling": "max"}, r"`pooling='max'`: expected one of"),
    ],
)
def test_invalid_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        series(tmp_path, **{"layers": "all", **options})


def test_a_name_of_a_layer_with_a_slash_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"layer 'a/b': not a name that a dump can hold"),
        DumpWriter(tmp_path / "a.h5", None, classes=2, features=3) as writer,
    ):
        writer.start_layer("test", "a/b", depth=0.0, pooling="mean")


def test_a_tree_of_a_dump_contains_its_layers(tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    path = series(tmp_path, layers="3", layer_store="both", subset_rows=20)
    with cp.open_dump(path) as dump:
        tree = dump.to_xarray().load()
    assert tree["/test/layers/3/features"].dims == ("sample", "layer_feature")
    assert tree["/test/layers/3/subset_rows"].dims == ("subset_row", "layer_feature")
    assert tree["/test/subset/indices"].shape == (20,)
