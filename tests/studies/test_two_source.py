"""Tests of a model with two encoders: captions as tokens, cosines against brute force, a classifier without weights."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ckpt_probe.analysis import analyze, analyze_features
from ckpt_probe.analysis.similarity import similarity
from ckpt_probe.checkpoints import CheckpointMetadata, open_checkpoint, save_checkpoint
from ckpt_probe.data import load_data
from ckpt_probe.dumps import open_dump
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import extract_series
from ckpt_probe.metrics.similarity import cka
from ckpt_probe.models import (
    build_model,
    choose_taps,
    find_head,
    load_weights,
    model_arguments,
)
from ckpt_probe.plugins import load_function
from ckpt_probe.training.objective import TwoSource

FILE = Path(__file__).parents[2] / "sample_configs" / "cma" / "two_source.py"
NAME = f"{FILE}:two_source"

CAPTIONS = [
    ["A photo of a T-shirt.", "a short-sleeved top"],
    ["trousers"],
    ["an ankle boot", "A BOOT that covers the ankle", "a high shoe"],
]
SHAPE = {"input_shape": (1, 8, 8), "classes": 3}
SMALL = {"captions": CAPTIONS, "channels": [2, 4], "features": 5, "text_width": 6}


@pytest.fixture(autouse=True)
def _search_path(study: Callable[[str], str]) -> None:
    """Load the study's file first, since loading it changes `sys.path`."""


def tokenise(captions: list[list[str]]) -> torch.Tensor:
    return load_function(f"{FILE}:tokenise")(captions)


def build(**changes: Any) -> Any:
    torch.manual_seed(0)
    return build_model(NAME, {**SMALL, **SHAPE, **changes})


def images(count: int = 7) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_tokens_are_lower_case_words_numbered_in_alphabetic_order() -> None:
    tokens = tokenise([["b  a!", "A"], ["c-d, it's B"]])
    # Numbers of the words: a 1, b 2, c-d 3, it's 4.
    assert tokens.tolist() == [[[2, 1, 0], [1, 0, 0]], [[3, 4, 2], [0, 0, 0]]]
    assert tokens.dtype == torch.int64
    assert torch.equal(tokenise([["Straße Ελλάδα", "2 boots"]]), torch.tensor([[[3, 4], [1, 2]]]))


def test_a_model_keeps_its_captions_as_tokens() -> None:
    text = build().classifier.text
    assert torch.equal(text.tokens, tokenise(CAPTIONS))
    assert text.counts().tolist() == [2, 1, 3]
    assert "classifier.text.tokens" in build().state_dict()


@pytest.mark.parametrize("channels", [[], [3], [2, 4]])
def test_both_encoders_give_unit_rows_of_one_width(channels: list[int]) -> None:
    model = build(channels=channels)
    assert isinstance(model, TwoSource)
    for rows, count in ((model.encode_images(images()), 7), (model.encode_captions(torch.arange(3)), 3)):
        assert rows.shape == (count, 5)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(count))
    assert model.anchors().shape == (3, 5)


def test_models_with_one_encoder_are_not_two_source() -> None:
    assert not isinstance(build_model("cnn", SHAPE), TwoSource)


def encode_caption(text: nn.Module, caption: str) -> torch.Tensor:
    words = caption.lower().replace(".", "").split()
    vocabulary = sorted({w for group in CAPTIONS for c in group for w in c.lower().replace(".", "").split()})
    state = text.state_dict()
    mean = sum(state["words.weight"][1 + vocabulary.index(word)] for word in words) / len(words)
    hidden = torch.relu(state["hidden.weight"] @ mean + state["hidden.bias"])
    out = state["projection.weight"] @ hidden + state["projection.bias"]
    return out / out.norm()


def test_captions_anchors_and_logits_equal_those_of_brute_force() -> None:
    model = build()
    text = model.classifier.text
    rows = [[encode_caption(text, caption) for caption in group] for group in CAPTIONS]
    indices = [(2, 2), (0, 1), (1, 0), (2, 0)]
    encoded = model.encode_captions(*torch.tensor(indices).T)
    torch.testing.assert_close(encoded, torch.stack([rows[a][b] for a, b in indices]))
    means = [torch.stack(group).mean(dim=0) for group in rows]
    anchors = torch.stack([mean / mean.norm() for mean in means])
    torch.testing.assert_close(model.anchors(), anchors)
    cosines = [F.cosine_similarity(model.image(images()), anchor) for anchor in anchors]
    torch.testing.assert_close(model(images()), torch.stack(cosines, dim=1) / 0.07)


def test_captions_are_drawn_in_training_and_anchors_used_in_evaluation() -> None:
    model = build()
    classes = torch.arange(3).repeat(200)
    torch.manual_seed(3)
    drawn = model.encode_captions(classes)
    torch.manual_seed(3)
    assert torch.equal(model.encode_captions(classes), drawn)
    for number, group in enumerate(CAPTIONS):
        rows_of_class = torch.stack([encode_caption(model.classifier.text, caption) for caption in group])
        drawn_of_class = drawn[classes == number]
        nearest = (drawn_of_class @ rows_of_class.T).argmax(dim=1)
        torch.testing.assert_close(drawn_of_class, rows_of_class[nearest])
        assert set(nearest.tolist()) == set(range(len(group)))
    torch.testing.assert_close(model.eval().encode_captions(torch.tensor([2, 0])), model.anchors()[[2, 0]])


def test_a_missing_caption_of_a_class_is_an_error() -> None:
    for caption in (1, -1):
        with pytest.raises(IndexError, match=f"class 1 has no caption {caption}"):
            build().encode_captions(torch.tensor([0, 1]), torch.tensor([1, caption]))


def test_gradients_reach_both_encoders_and_the_scale() -> None:
    model = build()
    F.cross_entropy(model(images()), torch.tensor([0, 1, 2, 0, 1, 2, 0])).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert {name.partition(".")[0] for name in gradients} == {"image", "classifier"}
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())
    assert gradients["classifier.text.words.weight"][0].abs().max() == 0  # Padding is no word.


def test_the_scale_stays_at_most_100() -> None:
    model = build()
    torch.testing.assert_close(model.scale(), torch.tensor(1 / 0.07))
    with torch.no_grad():
        model.classifier.log_scale.fill_(math.log(500))
    torch.testing.assert_close(model.scale(), torch.tensor(100.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_copies_in_other_precisions_work(dtype: torch.dtype) -> None:
    model = copy.deepcopy(build()).to(dtype).eval()
    logits = model(images().to(dtype))
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), build().eval()(images()), rtol=0.05, atol=0.3)


def test_a_checkpoint_rebuilds_the_model(tmp_path: Path) -> None:
    arguments = model_arguments(NAME, SMALL, **SHAPE)
    model = build()
    with torch.no_grad():
        model.classifier.log_scale.fill_(2.0)
    path = tmp_path / "step-000001.safetensors"
    save_checkpoint(path, model.state_dict(), CheckpointMetadata(model=NAME, model_arguments=arguments))
    with open_checkpoint(path) as checkpoint:
        metadata, tensors = checkpoint.metadata, checkpoint.state_dict()
    torch.manual_seed(9)
    again = build_model(metadata.model or "", metadata.model_arguments)
    assert not torch.equal(again(images()), model(images()))
    load_weights(again, tensors, source=str(path))
    assert torch.equal(again(images()), model(images()))


def test_the_classifier_is_found_and_its_weights_are_the_anchors() -> None:
    model = build()
    assert find_head(model, images()).name == "classifier"
    layer = model.get_submodule("classifier")
    assert layer.bias is None
    assert (layer.in_features, layer.out_features) == (5, 3)
    torch.testing.assert_close(layer.weight, model.scale() * model.anchors())
    torch.testing.assert_close(F.linear(model.encode_images(images()), layer.weight), model(images()))


def test_extraction_taps_image_features_and_anchors(tmp_path: Path) -> None:
    captions = [[f"the digit {number}", f"a handwritten {number}"] for number in range(10)]
    arguments = model_arguments(NAME, {"captions": captions, "features": 12}, input_shape=(1, 8, 8), classes=10)
    torch.manual_seed(0)
    model: Any = build_model(NAME, arguments).eval()
    path = tmp_path / "step-000004.safetensors"
    metadata = CheckpointMetadata(model=NAME, model_arguments=arguments, data="digits", step=4)
    save_checkpoint(path, model.state_dict(), metadata)
    extract_series(path, tmp_path / "dumps", model=NAME, device="cpu")
    inputs, labels = load_data("digits").split("test").batch(slice(None))
    with open_dump(tmp_path / "dumps" / "step-000004.h5") as dump, torch.no_grad():
        features = torch.as_tensor(dump["test"].features[:])
        weights = torch.as_tensor(dump.weights)
        torch.testing.assert_close(features, model.encode_images(inputs))
        torch.testing.assert_close(weights.float(), model.scale() * model.anchors())
    record = analyze_features(features, labels, weights)
    assert record["accuracy"] == pytest.approx((model(inputs).argmax(dim=1) == labels).double().mean().item())
    assert 0 < record["sample.mir"] < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"captions": CAPTIONS[:2]}, "expected one list of descriptions for each of 3 classes, found 2"),
        ({"captions": "boots"}, "expected one list of descriptions for each of 3 classes, found str"),
        ({"captions": [["a"], [], ["b"]]}, r"captions of class 1: expected a list of descriptions, found \[\]"),
        ({"captions": [["a"], ["b"], "boots"]}, "captions of class 2: expected a list of descriptions, found 'boots'"),
        ({"captions": [["a"], ["b", "?!"], ["c"]]}, r"captions of class 1: '\?!' contains no words"),
        ({"captions": [["a"], ["b"], [7]]}, "captions of class 2: 7 contains no words"),
        ({"channels": [2, 2, 2, 2]}, r"4 convolutions with pooling need images larger than \(1, 8, 8\)"),
        ({"input_shape": [64]}, r"2 convolutions with pooling need images larger than \(64,\); try \[\]"),
    ],
)
def test_invalid_captions_and_shapes_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"two_source.py:two_source: cannot be built.*{message}"):
        build(**arguments)


def test_missing_captions_are_an_error() -> None:
    with pytest.raises(UsageError, match="missing 1 required positional argument: 'captions'"):
        build_model(NAME, SHAPE)


TEXT_LAYERS = ("classifier.text.words", "classifier.text.hidden", "classifier.text.projection")


def test_a_samples_row_of_a_text_layer_is_the_mean_over_the_captions_of_its_class(tmp_path: Path) -> None:
    model, labels = build().eval(), np.array([2, 0, 1, 1, 2, 0, 2])
    save_checkpoint(tmp_path / "a.safetensors", model.state_dict())
    np.savez(tmp_path / "data.npz", x_test=images().numpy(), y_test=labels)
    extract_series(
        tmp_path / "a.safetensors",
        tmp_path / "out",
        model=NAME,
        model_arguments={**SMALL, **SHAPE},
        data=f"npz:{tmp_path / 'data.npz'}",
        layers="image.1, image.4, classifier.text.*",
        layer_store="both",
        batch_size=3,
        device="cpu",
    )
    text = model.classifier.text
    with torch.no_grad():
        words = [
            [text.words(caption[caption > 0][None])[0] for caption in group if caption.any()] for group in text.tokens
        ]
        hidden = [[text.hidden(word) for word in group] for group in words]
        projected = [[text.projection(word.relu()) for word in group] for group in hidden]
    with open_dump(tmp_path / "out" / "a.h5") as dump:
        layers = {layer.name: layer for layer in dump["test"].layers}
        assert list(layers) == ["image.1", "image.4", *TEXT_LAYERS, "penultimate"]
        for name, rows in zip(TEXT_LAYERS, (words, hidden, projected), strict=True):
            expected = torch.stack([torch.stack(group).mean(dim=0) for group in rows])[labels]
            np.testing.assert_allclose(layers[name].features[()], expected.numpy(), rtol=1e-5, atol=1e-6)
    for record in analyze(tmp_path / "out", layers=True):
        assert record["within.entropy_mean"] > -1e-12
        if record["layer"] in TEXT_LAYERS:
            assert record["nc1.cdnv"] == pytest.approx(0, abs=1e-9)
            assert (record["separation"], record["nc1.pinv"]) == (None, 0)
    (matrix,) = similarity(tmp_path / "out" / "a.h5", measures=["cka"])
    image, words_row = matrix.rows.index("image.4"), matrix.rows.index("classifier.text.words")
    expected = cka(*(layers_of(tmp_path, name) for name in ("image.4", "classifier.text.words")))
    assert matrix.values[image][words_row] == pytest.approx(expected, rel=1e-9)


def layers_of(directory: Path, name: str) -> np.ndarray:
    with open_dump(directory / "out" / "a.h5") as dump:
        return next(layer for layer in dump["test"].layers if layer.name == name).features[()].astype(float)


def test_a_sample_without_a_label_has_no_description(tmp_path: Path) -> None:
    model, inputs = build().eval(), images(4)
    taps = choose_taps(model, inputs, find_head(model, inputs), "classifier.text.hidden")
    rows = {"classifier.text.hidden": torch.zeros(6, 6)}
    with pytest.raises(
        DataError, match=r"layer classifier\.text\.hidden describes classes: every sample needs a label"
    ):
        taps.of_samples(rows, torch.tensor([0, -1]), None)
