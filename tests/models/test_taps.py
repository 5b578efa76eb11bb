"""Tests of layers found in real models of every source, and of their rows against the modules' own outputs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ckpt_probe.errors import CkptProbeError, DataError, UsageError
from ckpt_probe.models import Backbone, Batch, Head, Taps, build_model, choose_taps, find_head
from ckpt_probe.models.calling import call
from ckpt_probe.models.head import Rows
from ckpt_probe.models.pooling import channel_axis

TEXT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}


def taps_of(model: nn.Module, inputs: Batch, layers: str = "all", pooling: str | None = None) -> Taps:
    model.eval()
    return choose_taps(model, inputs, find_head(model, inputs), layers, pooling)


def names(taps: Taps) -> list[str]:
    return [tap.layer for tap in taps.layers]


def output_of(model: nn.Module, layer: str, inputs: Batch) -> Tensor:
    """Return a layer's output, copied during the forward pass."""
    outputs: list[Tensor] = []

    def keep(_module: Any, _given: Any, output: Any) -> None:
        outputs.append((output if isinstance(output, Tensor) else output[0]).clone())

    hook = model.get_submodule(layer).register_forward_hook(keep)
    with torch.no_grad():
        call(model, inputs)
    hook.remove()
    assert len(outputs) == 1
    return outputs[0]


IMAGES = [
    ("mlp", {"input_shape": [1, 8, 8], "classes": 3}, (1, 8, 8), ["2"]),
    ("cnn", {"input_shape": [1, 8, 8], "classes": 3}, (1, 8, 8), ["2", "5"]),
    ("resnet", {"input_shape": [1, 8, 8], "classes": 3}, (1, 8, 8), ["2", "3", "4", "5"]),
    (
        "timm:resnet18",
        {"num_classes": 3},
        (3, 32, 32),
        ["maxpool", *(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1))],
    ),
    (
        "timm:vit_tiny_patch16_224",
        {"num_classes": 3, "img_size": 32},
        (3, 32, 32),
        ["norm_pre", *(f"blocks.{block}" for block in range(12))],
    ),
    (
        "torchvision:convnext_tiny",
        {"num_classes": 3},
        (3, 32, 32),
        ["features.0", *(f"features.{s}.{b}" for s, count in ((1, 3), (3, 3), (5, 9), (7, 3)) for b in range(count))],
    ),
]


def tapped(taps: Taps, model: nn.Module, head: Head | Backbone, inputs: Any) -> tuple[Rows, dict[str, Tensor]]:
    with taps.tapping(model, inputs) as recorded:
        rows = head.tapped(model, inputs)
    return rows, taps.rows_in(recorded, len(rows.features))


@pytest.mark.parametrize(("name", "arguments", "shape", "expected"), IMAGES)
def test_rows_of_image_models_are_the_pooled_outputs_of_their_layers(
    name: str, arguments: dict[str, Any], shape: tuple[int, ...], expected: list[str]
) -> None:
    if ":" in name:
        pytest.importorskip(name.partition(":")[0])
    model, inputs = build_model(name, arguments), torch.randn(2, *shape)
    taps = taps_of(model, inputs)
    assert names(taps) == expected
    assert [tap.depth for tap in taps.layers] == [number / len(expected) for number in range(len(expected))]
    with torch.no_grad():
        rows, rows_by_layer = tapped(taps, model, find_head(model, inputs), inputs)
    assert list(rows_by_layer) == expected
    assert len(rows.features) == 2
    for tap in taps.layers:
        output = output_of(model, tap.layer, inputs)
        assert tap.shape == output.shape[1:]
        mean = output if output.ndim == 2 else output.mean(dim=1) if output.ndim == 3 else output.mean(dim=(2, 3))
        torch.testing.assert_close(rows_by_layer[tap.layer], mean)


def text(lengths: tuple[int, ...] = (7, 4)) -> dict[str, Tensor]:
    ids = torch.randint(5, 50, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def test_layers_of_transformers_are_embeddings_and_blocks() -> None:
    transformers = pytest.importorskip("transformers")
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **TEXT))
    assert names(taps_of(bert, text())) == ["bert.embeddings", *(f"bert.encoder.layer.{n}" for n in range(3))]
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=16, patch_size=8, **TEXT))
    layers = names(taps_of(vit, torch.randn(2, 3, 16, 16)))
    assert layers[0] == "vit.embeddings"
    assert [name.rpartition(".")[2] for name in layers[1:]] == ["0", "1", "2"]
    words = transformers.BertForTokenClassification(transformers.BertConfig(vocab_size=50, **TEXT))
    assert {tap.pooling for tap in taps_of(words, text()).layers} == {"tokens"}


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_padding_does_not_change_the_rows(pooling: str) -> None:
    """A sequence has the same row in a padded batch as alone."""
    transformers = pytest.importorskip("transformers")
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **TEXT)).eval()
    batch = text()
    taps, head = taps_of(model, batch, pooling=pooling), find_head(model, batch)
    with torch.no_grad():
        _, together = tapped(taps, model, head, batch)
        for number, length in enumerate((7, 4)):
            alone = {name: part[number : number + 1, :length] for name, part in batch.items()}
            _, single = tapped(taps, model, head, alone)
            for layer, rows in single.items():
                torch.testing.assert_close(together[layer][number], rows[0], rtol=1e-5, atol=1e-5)


def test_layers_are_chosen_by_interval_or_by_name() -> None:
    timm = pytest.importorskip("timm")
    model, inputs = timm.create_model("resnet18", num_classes=3), torch.randn(2, 3, 32, 32)
    assert names(taps_of(model, inputs, "every=4")) == ["maxpool", "layer2.1", "layer4.1"]
    # Layers are ordered by when they finish, not by the order of the names.
    taps = taps_of(model, inputs, "layer4.*, layer1, conv1")
    assert names(taps) == ["conv1", "layer1", "layer4.0", "layer4.1"]
    assert [tap.depth for tap in taps.layers] == [0, 0.25, 0.5, 0.75]
    assert taps_of(model, inputs, "penultimate") == Taps()
    [flat] = taps_of(model, inputs, "layer4", "flatten").layers
    assert flat.width == 512
    with torch.no_grad():
        _, rows_by_layer = tapped(Taps((flat,)), model, find_head(model, inputs), inputs)
    torch.testing.assert_close(rows_by_layer["layer4"], output_of(model, "layer4", inputs).flatten(1))


@pytest.mark.parametrize(
    ("layers", "pooling", "message"),
    [
        ("layer9", None, r"`layers='layer9'`: no layer has that name; closest: layer\d"),
        ("every=0", None, r"`layers='every=0'`: expected every=K with a whole number K of at least 1"),
        ("layer1.0,", None, r"`layers=''`: no layer has that name"),
        ("all", "cls", r"`pooling='cls'`: layer maxpool gives \(2, 64, 32, 32\), not tokens"),
        ("all", "tokens", r"`pooling='tokens'`: samples have one label each"),
        ("conv1", "flatten", r"`pooling='flatten'`: layer conv1 would have 262,144 features, over 65,536"),
        ("all", "max", r"`pooling='max'`: expected one of mean, cls, last, tokens, flatten"),
    ],
)
def test_invalid_layers_and_poolings_are_refused(layers: str, pooling: str | None, message: str) -> None:
    timm = pytest.importorskip("timm")
    with pytest.raises(UsageError, match=message):
        taps_of(timm.create_model("resnet18", num_classes=3), torch.randn(2, 3, 128, 128), layers, pooling)


class Odd(nn.Module):
    """A model with a layer that runs twice, one without tensor output, one of varying width, and one never run."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.idle, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.textual, self.growing, self.summed = Textual(), Growing(), Summed()

    def forward(self, x: Tensor) -> Tensor:
        self.textual(x)
        self.growing(x)
        self.summed(x)
        return self.head(self.twice(self.twice(x)))


class Textual(nn.Module):
    def forward(self, x: Tensor) -> str:
        return f"{len(x)} samples"


class Growing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.amax() < 100 else torch.cat([x, x], dim=1)


class Summed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(dim=0)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("twice", r"layer twice runs 2 times in one forward pass"),
        ("textual", r"layer textual gives no tensor"),
        ("summed", r"layer summed gives \(6,\) for 2 samples"),
        ("idle", r"`layers='idle'`: the model does not run idle"),
    ],
)
def test_layers_without_one_output_per_sample_are_refused(layers: str, message: str) -> None:
    with pytest.raises(CkptProbeError, match=message):
        taps_of(Odd(), torch.randn(2, 6), layers)


def test_a_layer_that_changes_its_shape_between_passes_is_an_error() -> None:
    model, inputs = Odd(), torch.randn(2, 6)
    taps, head = taps_of(model, inputs, "growing"), find_head(model, inputs)
    with pytest.raises(DataError, match=r"layer growing changes its shape between passes: 12 features now, 6 at first"):
        tapped(taps, model, head, inputs + 1000)


def test_the_channel_axis_is_found_from_the_layer_and_its_shape() -> None:
    assert channel_axis(nn.Conv2d(3, 8, 3), (2, 8, 5, 7)) == 1
    assert channel_axis(nn.Linear(3, 8), (2, 5, 7, 8)) == -1
    assert channel_axis(nn.Identity(), (2, 5, 5, 8)) == -1
    assert channel_axis(nn.Identity(), (2, 8, 5, 5)) == 1
    assert channel_axis(nn.Conv1d(3, 8, 3), (2, 8, 5)) == 1
    assert channel_axis(nn.LayerNorm(8), (2, 5, 8)) == -1
    assert channel_axis(nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU()), (2, 8, 8)) == 1
    assert channel_axis(nn.Sequential(nn.Conv1d(3, 8, 1), nn.LayerNorm(8)), (2, 8, 8)) == -1
    assert channel_axis(nn.TransformerEncoderLayer(8, 2, 8), (2, 8, 8)) == -1
