"""Models without a head, and data without labels: entropies are computed, all else is missing with the reason."""

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


def shown(place: Path, documents: Path) -> Any:
    """All documents as one padded batch."""
    return load_data(f"text:{documents}", hints=ModelHints(f"hf:{place}")).splits["held"].batch(slice(None))[0]


@pytest.mark.parametrize("pooling", [None, "cls", "last", "tokens"])
def test_an_encoder_of_texts(
    pooling: str | None, save_model: Callable[..., Any], documents: Path, tmp_path: Path
) -> None:
    model = save_model("bert", "Model", tmp_path / "model")
    given: dict[str, Any] = {"data": f"text:{documents}", "pooling": pooling, "device": "cpu", "batch_size": 5}
    cp.extract_series(tmp_path / "model", tmp_path / "dumps", **given)
    inputs = shown(tmp_path / "model", documents)
    mask = inputs["attention_mask"]
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    each = [state[kept != 0] for state, kept in zip(states, mask, strict=True)]
    wanted = {
        None: [state.mean(0, keepdim=True) for state in each],
        "cls": [state[:1] for state in each],
        "last": [state[-1:] for state in each],
        "tokens": each,
    }
    rows = torch.cat(wanted[pooling])
    with cp.open_dump(tmp_path / "dumps" / "model.h5") as dump:
        held = dump["held"]
        assert (dump.weights, held.labels, held.logits, held.labelled) == (None, None, None, False)
        np.testing.assert_allclose(held.features[:], rows, rtol=1e-4, atol=1e-5)
        assert dump.provenance is not None
        assert dump.provenance.classifier is None
    other = {**given, "pooling": "mean" if pooling else "cls"}
    with pytest.raises(UsageError, match=r"another provenance .*pooling '\w+' / '\w+'"):
        cp.extract_series(tmp_path / "model", tmp_path / "dumps", **other)
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


def test_moments_of_rows_without_labels(save_model: Callable[..., Any], documents: Path, tmp_path: Path) -> None:
    save_model("bert", "Model", tmp_path / "model")
    given: dict[str, Any] = {"data": f"text:{documents}", "device": "cpu", "pooling": "tokens"}
    cp.extract_series(tmp_path / "model", tmp_path / "rows", **given)
    cp.extract_series(tmp_path / "model", tmp_path / "moments", store="moments", **given)
    [rows], [moments] = (list(cp.analyze(tmp_path / place, cache=False)) for place in ("rows", "moments"))
    for name in OF_ROWS:
        assert moments[name] == pytest.approx(rows[name], rel=1e-9)


def test_a_causal_models_own_rows_without_labels(
    save_model: Callable[..., Any], documents: Path, tmp_path: Path
) -> None:
    save_model("gpt2", "LMHeadModel", tmp_path / "model")
    given: dict[str, Any] = {"data": f"text:{documents}", "device": "cpu"}
    cp.extract_series(tmp_path / "model", tmp_path / "dumps", unlabelled=True, **given)
    with cp.open_dump(tmp_path / "dumps" / "model.h5") as dump:
        held = dump["held"]
        # Every token that is no padding, also the last one, which predicts nothing that is known.
        assert held.samples == int(shown_unlabelled(tmp_path / "model", documents).sum())
        assert (held.labels, held.loss) == (None, None)
        assert held.prediction is not None
    [record] = cp.analyze(tmp_path / "dumps", cache=False)
    assert record["loss"] is None
    assert record["sample.effective_rank"] > 1


def shown_unlabelled(place: Path, documents: Path) -> torch.Tensor:
    given = {"unlabelled": True}
    data = load_data(f"text:{documents}", given, hints=ModelHints(f"hf:{place}"))
    inputs: Any = data.splits["held"].batch(slice(None))[0]
    return inputs["attention_mask"]


def images(place: Path) -> str:
    draw = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (place / "test" / name).mkdir(parents=True)
        for number in range(9):
            Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)).save(place / "test" / name / f"{number}.png")
    return f"imagefolder:{place}"


def test_a_backbone_with_labels_has_what_needs_no_weights(save_model: Callable[..., Any], tmp_path: Path) -> None:
    model = save_model("vit", "Model", tmp_path / "model")
    given: dict[str, Any] = {"data": images(tmp_path / "images"), "data_arguments": {"channels": 1}, "device": "cpu"}
    cp.extract_series(tmp_path / "model", tmp_path / "dumps", pooling="cls", data_workers=0, **given)
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
        tmp_path / "model", tmp_path / "plain", pooling="cls", data_workers=0, unlabelled=True, store="both", **given
    )
    [plain] = cp.analyze(tmp_path / "plain", cache=False)
    assert plain["sample.entropy_features"] == pytest.approx(record["sample.entropy_features"], rel=1e-12)
    assert plain["nc1.pinv"] is None


def test_any_model_can_be_said_to_have_no_head(save_model: Callable[..., Any], tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0, in_chans=1).eval()
    save_file(network.state_dict(), tmp_path / "step-1.safetensors")
    np.savez(tmp_path / "a.npz", x_test=np.random.default_rng(0).random((6, 1, 64, 64)), y_test=np.arange(6) % 2)
    given: dict[str, Any] = {
        "model": "timm:test_resnet",
        "model_arguments": {"num_classes": 0, "in_chans": 1},
        "data": f"npz:{tmp_path / 'a.npz'}",
        "device": "cpu",
    }
    cp.extract_series(tmp_path / "step-1.safetensors", tmp_path / "dumps", classifier="none", **given)
    with np.load(tmp_path / "a.npz") as arrays, torch.no_grad():
        expected = network(torch.from_numpy(arrays["x_test"]).float())
    with cp.open_dump(tmp_path / "dumps" / "step-1.h5") as dump:
        np.testing.assert_allclose(dump["test"].features[:], expected, rtol=1e-4, atol=1e-5)


def test_pooling_is_for_models_without_a_head(save_model: Callable[..., Any], documents: Path, tmp_path: Path) -> None:
    save_model("gpt2", "LMHeadModel", tmp_path / "model")
    with pytest.raises(UsageError, match="`pooling='mean'`: the model has a head"):
        cp.extract_series(tmp_path / "model", tmp_path / "dumps", data=f"text:{documents}", pooling="mean")
    with pytest.raises(UsageError, match="`pooling='max'`: expected one of mean, cls, last, tokens"):
        cp.extract_series(tmp_path / "model", tmp_path / "dumps", data=f"text:{documents}", pooling="max")


def test_class_means_against_data_of_other_classes(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    weights = draw.normal(size=(3, 6))
    made = {}
    for place, count in (("own", 60), ("other", 25)):
        features, labels = draw.normal(size=(count, 6)) + 1, np.arange(count) % 3
        made[place] = features, labels
        import h5py

        (tmp_path / place).mkdir()
        with h5py.File(tmp_path / place / "step-4.h5", "w") as file:
            file["test/features"], file["test/labels"], file["classifier/weights"] = features, labels, weights
    [record] = cp.analyze(tmp_path / "own", outside=tmp_path / "other", cache=True)
    means = np.stack([made["own"][0][made["own"][1] == label].mean(0) for label in range(3)])
    outside = made["other"][0].mean(0)
    assert record["nc5.cosine"] == pytest.approx(cp.nc5(means, outside), rel=1e-9)
    assert record["nc5.centred"] == pytest.approx(cp.nc5(means, outside, centred=True), rel=1e-9)
    [plain] = cp.analyze(tmp_path / "own", cache=True)
    assert "nc5.cosine" not in plain
    [asked] = cp.analyze(tmp_path / "own", only=("nc5",), cache=False)
    assert asked["nc5.cosine"] is None
    assert "nc5.cosine, nc5.centred: no data of other classes (`outside=`)" in asked["missing"]
