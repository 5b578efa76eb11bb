"""Tests of models without a head and of data without labels: entropies are computed, other values are missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ckpt_probe as cp
from ckpt_probe.data import ModelHints, load_data
from ckpt_probe.errors import UsageError

pytest.importorskip("transformers")

OF_ROWS = {"sample.entropy_features", "sample.effective_rank", "sample.entropy_normalized"}
OF_SPECTRUM = {"rankme", "alpha_req", "participation_ratio"}
OF_DOCUMENTS = {"documents.entropy", "documents.curvature", "erank.documents"}


def padded_batch(directory: Path, documents: Path) -> Any:
    """Return all documents as one padded batch."""
    return load_data(f"text:{documents}", hints=ModelHints(f"hf:{directory}")).splits["texts"].batch(slice(None))[0]


@pytest.mark.parametrize("pooling", [None, "cls", "last", "tokens"])
def test_rows_of_an_encoder_are_pooled_as_requested_and_have_entropies(
    pooling: str | None, save_model: Callable[..., Any], documents: Path, tmp_path: Path
) -> None:
    model = save_model("bert", "Model", tmp_path / "model")
    options: dict[str, Any] = {"data": f"text:{documents}", "pooling": pooling, "device": "cpu", "batch_size": 5}
    cp.extract_series(tmp_path / "model", tmp_path / "dumps", **options)
    inputs = padded_batch(tmp_path / "model", documents)
    mask = inputs["attention_mask"]
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    sequences = [state[counted != 0] for state, counted in zip(states, mask, strict=True)]
    by_pooling = {
        None: [state.mean(0, keepdim=True) for state in sequences],
        "cls": [state[:1] for state in sequences],
        "last": [state[-1:] for state in sequences],
        "tokens": sequences,
    }
    rows = torch.cat(by_pooling[pooling])
    with cp.open_dump(tmp_path / "dumps" / "model.h5") as dump:
        view = dump["texts"]
        assert (dump.weights, view.labels, view.logits, view.labelled) == (None, None, None, False)
        np.testing.assert_allclose(view.features[:], rows, rtol=1e-4, atol=1e-5)
        assert dump.provenance is not None
        assert dump.provenance.classifier is None
    other_pooling = {**options, "pooling": "mean" if pooling else "cls"}
    with pytest.raises(UsageError, match=r"another provenance .*pooling '\w+' / '\w+'"):
        cp.extract_series(tmp_path / "model", tmp_path / "dumps", **other_pooling)
    [record] = cp.analyze(tmp_path / "dumps", centred=True, cache=False)
    assert record["sample.entropy_features"] == pytest.approx(cp.matrix_entropy(rows.double()).item(), rel=1e-5)
    centred = rows.double() - rows.double().mean(0)
    assert record["centred.effective_rank"] == pytest.approx(cp.effective_rank(centred).item(), rel=1e-4)
    numbers = {name for name, value in record.items() if isinstance(value, float)}
    of_documents = OF_DOCUMENTS if pooling == "tokens" else set()
    assert numbers == {*OF_ROWS, *OF_SPECTRUM, *of_documents, "centred.effective_rank"}
    assert record["rankme"] == pytest.approx(cp.rankme(rows.double()).item(), rel=1e-5)
    assert "nc1.pinv" in record["missing"]
    assert record["missing"].endswith(": the data have no labels")


def test_moments_of_rows_without_labels_give_the_numbers_of_the_rows(
    save_model: Callable[..., Any], documents: Path, tmp_path: Path
) -> None:
    save_model("bert", "Model", tmp_path / "model")
    options: dict[str, Any] = {"data": f"text:{documents}", "device": "cpu", "pooling": "tokens"}
    cp.extract_series(tmp_path / "model", tmp_path / "rows", **options)
    cp.extract_series(tmp_path / "model", tmp_path / "moments", store="moments", **options)
    [rows], [moments] = (list(cp.analyze(tmp_path / store, cache=False)) for store in ("rows", "moments"))
    for name in OF_ROWS:
        assert moments[name] == pytest.approx(rows[name], rel=1e-9)


def test_rows_of_a_causal_model_can_be_stored_without_labels(
    save_model: Callable[..., Any], documents: Path, tmp_path: Path
) -> None:
    save_model("gpt2", "LMHeadModel", tmp_path / "model")
    options: dict[str, Any] = {"data": f"text:{documents}", "device": "cpu"}
    cp.extract_series(tmp_path / "model", tmp_path / "dumps", unlabelled=True, **options)
    with cp.open_dump(tmp_path / "dumps" / "model.h5") as dump:
        view = dump["texts"]
        # Every token except padding is a row, also the last one, whose successor is unknown.
        assert view.samples == int(attention_mask(tmp_path / "model", documents).sum())
        assert (view.labels, view.loss) == (None, None)
        assert view.prediction is not None
    [record] = cp.analyze(tmp_path / "dumps", cache=False)
    assert record["loss"] is None
    assert record["sample.effective_rank"] > 1


def attention_mask(directory: Path, documents: Path) -> torch.Tensor:
    arguments = {"unlabelled": True}
    data = load_data(f"text:{documents}", arguments, hints=ModelHints(f"hf:{directory}"))
    inputs: Any = data.splits["texts"].batch(slice(None))[0]
    return inputs["attention_mask"]


def images(directory: Path) -> str:
    draw = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (directory / "test" / name).mkdir(parents=True)
        for number in range(9):
            Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)).save(
                directory / "test" / name / f"{number}.png"
            )
    return f"imagefolder:{directory}"


def test_a_backbone_with_labels_has_the_metrics_that_need_no_weights(
    save_model: Callable[..., Any], tmp_path: Path
) -> None:
    model = save_model("vit", "Model", tmp_path / "model")
    options: dict[str, Any] = {"data": images(tmp_path / "images"), "data_arguments": {"channels": 1}, "device": "cpu"}
    cp.extract_series(tmp_path / "model", tmp_path / "dumps", pooling="cls", data_workers=0, **options)
    with cp.open_dump(tmp_path / "dumps" / "model.h5") as dump:
        features, labels = dump["test"].features[:], dump["test"].labels[:]
    assert labels.tolist() == [0] * 9 + [1] * 9
    assert features.shape == (18, model.config.hidden_size)
    [record] = cp.analyze(tmp_path / "dumps", cache=False)
    assert record["nc1.pinv"] == cp.analyze_features(features, labels)["nc1.pinv"]
    assert record["accuracy"] is None
    assert record["nc3.duality"] is None
    assert "no classifier weights" in record["missing"]
    cp.extract_series(
        tmp_path / "model", tmp_path / "plain", pooling="cls", data_workers=0, unlabelled=True, store="both", **options
    )
    [plain] = cp.analyze(tmp_path / "plain", cache=False)
    assert plain["sample.entropy_features"] == pytest.approx(record["sample.entropy_features"], rel=1e-12)
    assert plain["nc1.pinv"] is None


def test_a_model_is_extracted_without_a_head_on_request(save_model: Callable[..., Any], tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0, in_chans=1).eval()
    save_file(network.state_dict(), tmp_path / "step-1.safetensors")
    np.savez(tmp_path / "a.npz", x_test=np.random.default_rng(0).random((6, 1, 64, 64)), y_test=np.arange(6) % 2)
    options: dict[str, Any] = {
        "model": "timm:test_resnet",
        "model_arguments": {"num_classes": 0, "in_chans": 1},
        "data": f"npz:{tmp_path / 'a.npz'}",
        "device": "cpu",
    }
    cp.extract_series(tmp_path / "step-1.safetensors", tmp_path / "dumps", classifier="none", **options)
    with np.load(tmp_path / "a.npz") as arrays, torch.no_grad():
        expected = network(torch.from_numpy(arrays["x_test"]).float())
    with cp.open_dump(tmp_path / "dumps" / "step-1.h5") as dump:
        np.testing.assert_allclose(dump["test"].features[:], expected, rtol=1e-4, atol=1e-5)


def test_pooling_is_refused_for_models_with_a_head(
    save_model: Callable[..., Any], documents: Path, tmp_path: Path
) -> None:
    save_model("gpt2", "LMHeadModel", tmp_path / "model")
    with pytest.raises(UsageError, match="`pooling='mean'`: the model has a head"):
        cp.extract_series(tmp_path / "model", tmp_path / "dumps", data=f"text:{documents}", pooling="mean")
    with pytest.raises(UsageError, match="`pooling='max'`: expected one of mean, cls, last, tokens"):
        cp.extract_series(tmp_path / "model", tmp_path / "dumps", data=f"text:{documents}", pooling="max")


def test_class_means_are_compared_with_data_of_other_classes(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    weights = draw.normal(size=(3, 6))
    data = {}
    for name, count in (("inside", 60), ("other", 25)):
        features, labels = draw.normal(size=(count, 6)) + 1, np.arange(count) % 3
        data[name] = features, labels
        import h5py

        (tmp_path / name).mkdir()
        with h5py.File(tmp_path / name / "step-4.h5", "w") as file:
            file["test/features"], file["test/labels"], file["classifier/weights"] = features, labels, weights
    [record] = cp.analyze(tmp_path / "inside", outside=tmp_path / "other", cache=True)
    means = np.stack([data["inside"][0][data["inside"][1] == label].mean(0) for label in range(3)])
    outside = data["other"][0].mean(0)
    assert record["nc5.cosine"] == pytest.approx(cp.nc5(means, outside), rel=1e-9)
    assert record["nc5.centred"] == pytest.approx(cp.nc5(means, outside, centred=True), rel=1e-9)
    [plain] = cp.analyze(tmp_path / "inside", cache=True)
    assert "nc5.cosine" not in plain
    [requested] = cp.analyze(tmp_path / "inside", only=("nc5",), cache=False)
    assert requested["nc5.cosine"] is None
    assert "nc5.cosine, nc5.centred: no data of other classes (`outside=`)" in requested["missing"]
