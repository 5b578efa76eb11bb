"""Tests of records by layer: they equal records of the same rows analyzed alone; and the line through separation."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.analysis import Settings, read_series
from ckpt_probe.errors import DataError
from ckpt_probe.extraction import Block, Storage, store_writer
from ckpt_probe.metrics.covariance import line_through
from ckpt_probe.metrics.stochastic import Sampling
from ckpt_probe.models import LayerTap, Taps
from ckpt_probe.moments.entropies.levels import Options
from ckpt_probe.moments.record import compute_record

SAMPLES, CLASSES, WIDTHS = 90, 3, {"stem": 4, "block": 9, "last": 6}
FEATURES = 7


def rows() -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return features of layers, features, labels and weights; the classes are further apart in each later layer."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(SAMPLES) % CLASSES
    layers = {}
    for number, (name, width) in enumerate({**WIDTHS, "penultimate": FEATURES}.items()):
        means = torch.randn(CLASSES, width, generator=draw)
        layers[name] = means[labels] * (1 + number) + torch.randn(SAMPLES, width, generator=draw)
    return layers, layers.pop("penultimate"), labels, torch.randn(CLASSES, FEATURES, generator=draw).double()


def write(path: Path, layer_store: str, *, dead: str | None = None, **options: Any) -> Path:
    layers, features, labels, weights = rows()
    layers |= {} if dead is None else {dead: torch.zeros_like(layers[dead])}
    taps = Taps(tuple(LayerTap(name, n / 3, "mean", (width,), width) for n, (name, width) in enumerate(WIDTHS.items())))
    storage = Storage(layer_store=layer_store, subset_rows=30, **options)
    logits = features @ weights.float().T
    blocks = [
        Block(features[part], labels[part], logits[part], {name: values[part] for name, values in layers.items()})
        for part in torch.arange(SAMPLES).split(40)
    ]
    with store_writer(path, None, storage, weights, taps=taps) as writer:
        writer.write_split("test", blocks, rows=SAMPLES)
    return path


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a dump for each way to store layers."""
    directory = tmp_path_factory.mktemp("layers")
    return {store: write(directory / f"{store}.h5", store) for store in ("moments", "features", "both")}


@pytest.mark.parametrize("layer_store", ["moments", "features", "both"])
def test_a_layer_has_the_record_of_its_rows_analyzed_alone(dumps: dict[str, Path], layer_store: str) -> None:
    layers, _, labels, weights = rows()
    records = list(cp.analyze(dumps[layer_store], layers=True))
    assert [(record["layer"], record["depth"]) for record in records] == [
        ("stem", 0.0),
        ("block", 1 / 3),
        ("last", 2 / 3),
        ("penultimate", 1.0),
    ]
    for record in records[:-1]:
        values = layers[record["layer"]]
        alone = cp.analyze_features(values, labels)
        for name in ("nc1.pinv", "nc1.cdnv", "separation", "nc2.etf", "within.entropy_mean", "gnc2.uniformity"):
            assert record[name] == pytest.approx(alone[name], rel=1e-12)
        assert record["sample.mir"] == pytest.approx(float(cp.mir(values.double(), weights[labels])), rel=1e-10)
        assert record["sample.hdr"] == pytest.approx(float(cp.hdr(values.double(), weights[labels])), rel=1e-10)
        entropy = float(cp.matrix_entropy(values.double()))
        assert record["sample.entropy_features"] == pytest.approx(entropy, rel=1e-12)
        assert record["sample.effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-12)
        least = math.log(min(SAMPLES, values.shape[1]))
        assert record["sample.entropy_normalized"] == pytest.approx(entropy / least, rel=1e-12)
        if layer_store == "moments":
            assert record["nearest_mean_accuracy"] is None
            assert "extract again with `layer_store='both'`" in record["missing"]
        else:
            means = torch.stack([values[labels == c].mean(dim=0) for c in range(CLASSES)])
            nearest = torch.cdist(values, means).argmin(dim=1)
            assert record["nearest_mean_accuracy"] == pytest.approx(float((nearest == labels).float().mean()))
            assert record["missing"] is None
        assert not {"accuracy", "class.mir", "nc3.duality", "nc2.equinorm_weights"} & set(record)


def test_the_record_at_depth_1_is_that_without_layers(dumps: dict[str, Path]) -> None:
    [alone] = cp.analyze(dumps["moments"], layers=False)
    last = cp.analyze(dumps["moments"], layers=True)[-1]
    assert {name: value for name, value in last.items() if name in alone} == alone
    assert set(last) - set(alone) == {"layer", "depth", "separation.slope", "separation.r2"}


def test_the_separation_has_a_line_over_the_layers(dumps: dict[str, Path]) -> None:
    records = list(cp.analyze(dumps["moments"], layers=True))
    x, y = np.array([(record["depth"], record["separation"]) for record in records]).T
    slope, intercept = np.polyfit(x, y, 1)
    assert records[-1]["separation.slope"] == pytest.approx(slope)
    assert records[-1]["separation.r2"] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    fit = line_through(list(zip(x.tolist(), y.tolist(), strict=True)))
    assert fit is not None
    assert fit.intercept == pytest.approx(intercept)
    assert line_through([(0, 1), (1, 0)]) is None


def test_with_too_few_samples_there_is_no_line(dumps: dict[str, Path]) -> None:
    last = cp.analyze(dumps["moments"], layers=True, min_samples=31)[-1]
    assert last["separation.slope"] is None
    assert "separation.slope, separation.r2: separation is known of fewer than three layers" in last["missing"]


def test_only_the_requested_families_are_in_records_of_layers(dumps: dict[str, Path]) -> None:
    records = list(cp.analyze(dumps["moments"], layers=True, only=("quality",)))
    assert "nc1.pinv" not in records[0]
    assert "separation.slope" not in records[-1]
    assert records[-1]["accuracy"] is not None
    [first, *_] = cp.analyze(dumps["features"], layers=True, only=("nc1", "nc4"))
    assert {"nc1.pinv", "nearest_mean_accuracy"} <= first.keys()
    assert "sample.mir" not in first


def test_records_of_layers_are_read_from_the_cache(dumps: dict[str, Path]) -> None:
    path, settings = dumps["both"], Settings(layers=True, per_class=True)
    computed, cached = ([*read_series(path, settings, cache=True)] for _ in range(2))
    assert [(r.record, r.per_class) for r in computed] == [(r.record, r.per_class) for r in cached]
    assert len(computed) == 4
    assert [row["layer"] for row in computed[0].per_class] == ["stem"] * CLASSES
    # Without layers the key of the cache is another one.
    assert len([*read_series(path, Settings(layers=False), cache=True)]) == 1


def test_a_layer_that_is_not_finite_is_named(tmp_path: Path) -> None:
    import h5py

    path = write(tmp_path / "a.h5", "features")
    with h5py.File(path, "a") as file:
        file["test/layers/block/features"][3, 2] = np.nan
    with pytest.raises(DataError, match=r"a\.h5: test: layer block: .*NaN"):
        list(cp.analyze(path, layers=True))


@pytest.mark.parametrize(("features", "width", "classes"), [(40, 12, 20), (20, 40, 18), (16, 40, 18)])
def test_sampled_mir_accepts_rows_and_classifier_of_different_widths(features: int, width: int, classes: int) -> None:
    """Check MIR with a sampled joint entropy if rows and classifier have different widths."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % classes
    means, weights = torch.randn(classes, features, generator=draw), torch.randn(classes, width, generator=draw)
    values, weights = (means[labels] + torch.randn(300, features, generator=draw)).double(), weights.double()
    moments = cp.Moments(classes, memory=2000)
    moments.update(values, labels)
    options = Options(sampling=Sampling(2e-2), families=frozenset({"sample"}))
    inputs = moments.inputs(options=options, label_rows=weights, rows=lambda: [(values, labels)])
    record = compute_record(inputs).record
    if features < classes < width:
        assert record["sample.mir"] is None
        assert "sampling needs classifier rows that are no wider than the features, or fewer" in str(record["missing"])
        return
    assert record["route"] == "stochastic"
    exact = float(cp.mir(values, weights[labels]))
    assert record["sample.mir"] == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("layer_store", ["features", "moments"])
def test_a_dead_layer_has_reasons_and_the_other_layers_their_numbers(tmp_path: Path, layer_store: str) -> None:
    alive = list(cp.analyze(write(tmp_path / "a.h5", layer_store)))
    records = list(cp.analyze(write(tmp_path / "b.h5", layer_store, dead="block")))
    for record, other in zip(records, alive, strict=True):
        assert list(record) == list(other)
        if record["layer"] == "block":
            assert record["sample.mir"] is record["within.entropy_mean"] is record["route"] is None
            assert record["samples_left_out"] == SAMPLES
            assert f"{SAMPLES} of {SAMPLES} rows have zero length" in str(record["missing"])
        else:
            assert record["sample.mir"] == other["sample.mir"]
    assert len(list(cp.analyze(tmp_path / "b.h5", per_class=True))) == CLASSES * len(records)
